"""python -m lens writes one file that asks nothing of a network, and refuses in one line what it cannot show."""

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bpe import Tokenizer
from data.tokenfile import TokenFile
from inference.run import load_tokenizer
from lens import assemble, export
from lens.__main__ import main
from model import GPT
from tests.lens.asking import as_rounded, ask, small

PAGES = Path(assemble.__file__).with_name("page")


def element(page: str, name: str) -> str:
    """Return what is inside the element with this id."""
    return re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)[1]


@pytest.fixture(scope="module")
def page(babble, corpus, tmp_path_factory) -> str:
    """Return the page of a tiny run."""
    out = tmp_path_factory.mktemp("lens") / "lens.html"
    main([str(babble), "--out", str(out), "--index", str(corpus)])
    return out.read_text(encoding="utf-8")


@pytest.fixture
def run(babble, tmp_path) -> Path:
    """Return a copy of a tiny run."""
    return shutil.copytree(babble, tmp_path / "run")


def test_the_file_is_whole_and_asks_nothing_of_a_network(page):
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:,)""", page)
    assert not re.search(r"\b(?:fetch|XMLHttpRequest|WebSocket|EventSource|sendBeacon|importScripts)\b", page)
    assert not re.search(
        r"\beval\(|new Function|innerHTML|outerHTML|insertAdjacentHTML|document\.write", page
    )
    assert not re.search(r"\son[a-z]+=", page.split("<script", 1)[0])


def test_the_policy_names_exactly_the_script_and_the_styles(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    styles = re.findall(r"<style[^>]*>(.*?)</style>", page, re.DOTALL)
    assert (len(script), len(styles)) == (1, 2)
    for kind, texts in (("script", script), ("style", styles)):
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
        sources = " ".join(f"'sha256-{digest}'" for digest in digests)
        assert f"{kind}-src {sources};" in policy
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy


def test_the_payload_is_the_models(page, babble):
    head = json.loads(element(page, "head"))
    assert (head["format"], head["version"], head["name"]) == ("slm-lens", 1, "babble")
    parts = re.findall(r'class="data">([^<]*)<', page)
    data = b"".join(base64.b64decode(part) for part in parts)
    assert len(data) == head["bytes"]
    gpt = GPT.from_pretrained(babble / "best")
    state = export.rounded(export.weights_of(gpt), "float16")
    assert {tensor["name"] for tensor in head["tensors"]} == state.keys()
    for tensor in head["tensors"]:
        kind = torch.float16 if tensor["dtype"] == "float16" else torch.float32
        count = state[tensor["name"]].numel()
        found = torch.frombuffer(bytearray(data), dtype=kind, offset=tensor["at"], count=count)
        assert found.float().view(tensor["shape"]).equal(state[tensor["name"]])


def test_no_two_modules_of_a_script_declare_the_same_name():
    for names in (assemble.READ, assemble.SHOW):
        text = assemble.joined(names)
        declared = re.findall(r"^(?:async )?(?:function|class|const|let) (\w+)", text, re.MULTILINE)
        assert len(declared) > 40 and len(declared) == len(set(declared))
        assert (
            "</script" not in text
            and "<!--" not in text
            and not re.search(r"^(import|export) ", text, re.MULTILINE)
        )
    listed = {f"{name}.js" for name in (*assemble.READ, *assemble.SHOW)}
    assert listed == {path.relative_to(PAGES).as_posix() for path in PAGES.rglob("*.js")}


def test_hostile_names_are_text(run, tmp_path):
    name = 'x"><script>alert(1)</script>\u2028'
    hostile = run.rename(run.with_name(name.replace("/", "∕")))
    log = [{"step": 0, "loss": 1.0, "story": "</script><script>alert(2)</script><!-- \u2028"}]
    (hostile / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log), encoding="utf-8")
    main([str(hostile), "--out", str(tmp_path / "out.html")])
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert page.count("<script") == 4  # head, worker, data, the script
    assert "<script>alert" not in page and "\u2028" not in element(page, "head")
    assert json.loads(element(page, "head"))["prompts"] == ["</script><script>alert(2)</script><!"]


def test_every_line_of_code_that_is_named_is_there(page):
    head = json.loads(element(page, "head"))
    assert head["code"].keys() == export.GPT2_CODE.keys()
    for changes in export.VARIANT_CODE.values():
        for file, snippet in changes.values():
            assert export._line(file, snippet), (file, snippet)
    for line in head["code"].values():
        text = (export.ROOT / line["file"]).read_text(encoding="utf-8").splitlines()
        assert text[line["line"] - 1].strip() == line["text"]


def test_the_index_names_the_places_of_the_largest_values(babble, corpus):
    gpt = GPT.from_pretrained(babble / "best")
    ids = torch.randint(0, 300, (9, 20), generator=torch.Generator().manual_seed(1))
    values, places = export.strongest(gpt, ids, 3)
    kept = []
    gpt.h[0].mlp.c_proj.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with torch.inference_mode():
        gpt(ids)
    torch.testing.assert_close(
        kept[0].flatten(0, 1)[places[0], torch.arange(gpt.config.inner)[:, None]], values[0]
    )
    best = kept[0].amax(1).sort(0, descending=True).values[:3]  # (9, 20, inner) -> (3, inner)
    torch.testing.assert_close(best.T, values[0])


def test_the_map_shows_words_of_the_training_text_not_beginnings(babble, corpus):
    head, data = export.export(babble, index=corpus)
    with_index, without = (
        ask({**head, "index": index}, data, ("words", {}))[1] for index in (head["index"], None)
    )
    assert set(with_index) < set(without)
    tokenizer = load_tokenizer(babble)
    text = tokenizer.decode(TokenFile.open(corpus, "train").tokens.tolist())
    for id in with_index:
        assert re.search(rf"{tokenizer.decode([id])}(?![a-zA-Z'])", text), id


def test_the_film_is_made_of_what_the_run_kept(run, tmp_path):
    for step in (10, 20, 30, 40):
        shutil.copytree(run / "best", run / f"step-{step:08d}")
    head, _ = export.export(run, film=3)
    assert [frame["step"] for frame in head["film"]] == [10, 30, 40]
    assert export.export(run, film=0)[0]["film"] == []


def test_runs_that_cannot_be_shown_are_refused_before_anything_is_written(run, tmp_path, refused, corpus):
    out = tmp_path / "out.html"
    call = lambda *flags: refused(main, str(run), "--out", str(out), *flags)  # noqa: E731
    assert "is a directory" in refused(main, str(run), "--out", str(tmp_path))
    assert "film is -1" in call("--film", "-1")
    assert "no token files" in call("--index", str(tmp_path))
    tokenizer = (run / "tokenizer.json").read_bytes()
    (run / "tokenizer.json").unlink()
    assert "holds no tokenizer.json" in call()
    Tokenizer([(b"a", b"b")], pattern=r"regex:\w+|\W", special_tokens=["<|endoftext|>"]).save(
        run / "tokenizer.json"
    )
    assert "split pattern of its own" in call()
    (run / "tokenizer.json").write_bytes(tokenizer)
    weights = load_file(run / "best" / "model.safetensors")
    name = next(name for name in weights if name.endswith("wte.weight"))
    broken = {**weights, name: weights[name] * float("nan")}
    save_file(broken, run / "best" / "model.safetensors", metadata={"format": "pt"})
    assert "no numbers" in call()
    codes = {name: weight.to(torch.int8) for name, weight in weights.items()}
    save_file(
        {**codes, f"{name}.scales": torch.ones(3)},
        run / "best" / "model.safetensors",
        metadata={"format": "pt"},
    )
    assert "does not fit its config" in call()
    shutil.rmtree(run / "best")
    assert "holds no trained model" in call() or "no best weights" in call()
    assert not out.exists()


def test_a_model_too_large_to_embed_is_refused_before_its_weights_are_read(
    monkeypatch, run, tmp_path, refused
):
    monkeypatch.setattr(export, "LARGEST", 1000)
    monkeypatch.setattr(export.TextModel, "load", lambda *_: pytest.fail("the weights were read"))
    assert "a page embeds at most 1,000" in refused(main, str(run), "--out", str(tmp_path / "out.html"))


def test_packed_weights_are_refused(babble, tmp_path):
    from model.pack import is_packable, pack

    gpt = GPT.from_pretrained(babble / "best")
    if not is_packable(gpt.config):
        pytest.skip("there is no compiled kernel to pack weights for")
    with pytest.raises(ValueError, match="a packed model cannot be shown"):
        export.payload(pack(gpt, "int8"), Tokenizer([]), tmp_path)


def test_without_out_the_page_is_in_the_run_and_opened(run, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    main([str(run)])
    assert opened == [(run / "lens.html").resolve().as_uri()]
    assert "parameters in float16" in capsys.readouterr().out


def test_the_template_of_a_chat_run_becomes_its_marks(tokenizer, tmp_path):
    from inference.chat import ChatTemplate, Message, add_chat_tokens

    chat = add_chat_tokens(tokenizer)
    template = ChatTemplate(chat)
    template.save(tmp_path, 64)
    (tmp_path / "config.toml").write_text("")
    marks = export.chat_head(tmp_path, chat)
    assert marks["start"] == "<|endoftext|><|user|>" and marks["answer"] == "<|end|><|assistant|>"
    head, data = export.payload(small(vocab_size=chat.vocab_size), chat, tmp_path)
    turns = ["Hi <|end|>", "Hello!", " you  dog\n"]
    found = ask(head, data, ("conversation", {"turns": turns}))[1]
    roles = ("user", "assistant", "user")
    assert found == template.prompt([Message(role, text) for role, text in zip(roles, turns, strict=True)])


def test_200_greedy_tokens_are_those_of_sample_py(run, tmp_path):
    import sample

    as_rounded(GPT.from_pretrained(run / "best"), "float16").save_pretrained(run / "best")
    flags = ("--temperature", "0", "--max-new-tokens", "200", "--num-samples", "1", "--ignore-eot")
    said = tmp_path / "said.jsonl"
    sample.main(
        ["--run", str(run), "--prompt", "One day", "--precision", "float32", *flags, "--out", str(said)]
    )
    head, data = export.export(run)
    tokenizer = Tokenizer.load(run / "tokenizer.json")
    ids = [head["tokenizer"]["end"], *tokenizer.encode("One day")]
    rules = {"temperature": 0, "top_k": None, "top_p": None, "min_p": None}
    growing = {"name": "a", "rules": rules, "count": 200, "seed": 1, "stop": []}
    tokens = ask(head, data, ("begin", {"name": "a", "ids": ids}), ("generate", growing))[2]
    theirs = json.loads(said.read_text(encoding="utf-8").splitlines()[0])
    assert tokenizer.decode([token["id"] for token in tokens]) == theirs["text"]


def test_a_template_that_does_more_is_said_to(tokenizer, tmp_path):
    from inference.chat import TEMPLATE, ChatTemplate, add_chat_tokens

    chat = add_chat_tokens(tokenizer)
    source = TEMPLATE.replace("{{- message['content'] +", "{{- message['content'] | trim +")
    ChatTemplate(chat, source).save(tmp_path, 64)
    assert "does more" in export.chat_head(tmp_path, chat)["refused"]
