"""GPT-2's files, both ways, against transformers; and every variant through its own files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import kernels
from model import GPT, pretrained
from model.generate import stream
from model.pretrained import is_gpt2
from tests.hub import hub

transformers = pytest.importorskip("transformers")
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def theirs(tmp_path):
    """Return a small GPT-2 made and saved by transformers; its biases and norms are random too."""
    config = transformers.GPT2Config(
        vocab_size=61, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None
    )
    gpt2 = transformers.GPT2LMHeadModel(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in gpt2.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    gpt2.save_pretrained(tmp_path / "theirs")
    return gpt2


def greedy(gpt2, ids, count):
    prompt = torch.tensor([ids])
    written = gpt2.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return written[0, len(ids) :].tolist()


def test_transformers_weights_give_transformers_logits_and_text(theirs, tmp_path, batch, each_kernel):
    ours = GPT.from_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(ours(batch[0])[0], theirs(batch[0]).logits, rtol=1e-5, atol=1e-5)
    assert list(stream(ours, [1, 2, 3], 29, temperature=0)) == greedy(theirs, [1, 2, 3], 29)


@pytest.mark.parametrize(
    "changes", [{}, {"tied_head": False, "n_inner": 48}, {"mlp": "silu", "norm_eps": 1e-3}]
)
def test_our_weights_give_our_logits_and_text_in_transformers(tiny, tmp_path, batch, changes):
    ours = tiny(**changes).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    ours.save_pretrained(tmp_path)
    gpt2, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(gpt2.eval()(batch[0]).logits, ours(batch[0])[0], rtol=1e-5, atol=1e-5)
    assert greedy(gpt2, [1, 2, 3], 29) == list(stream(ours, [1, 2, 3], 29, temperature=0))


def test_every_variant_comes_back_as_it_was(tiny, tmp_path, batch, variant):
    gpt = tiny(**variant, dropout=0.1).eval()
    gpt.save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path)
    assert again.config == gpt.config
    assert torch.equal(again(batch[0])[0], gpt(batch[0])[0])
    kind = json.loads((tmp_path / "config.json").read_text())["model_type"]
    assert kind == ("gpt2" if is_gpt2(gpt.config) else "slm")


def test_only_what_gpt2s_code_computes_is_called_gpt2(tiny, variant):
    assert is_gpt2(tiny(**variant).config) == (variant == {})


def test_old_files_without_prefix_and_with_stored_masks_load(theirs, tmp_path, batch):
    path = tmp_path / "theirs" / "model.safetensors"
    old = {name.removeprefix("transformer."): t.clone() for name, t in load_file(path).items()}
    old["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
    old["h.1.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(old, path)
    ours = GPT.from_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(ours(batch[0])[0], theirs(batch[0]).logits, rtol=1e-5, atol=1e-5)


def test_half_precision_weights_are_read_into_float32(tiny, tmp_path):
    tiny().bfloat16().save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["transformer.wte.weight"].dtype == torch.bfloat16
    assert GPT.from_pretrained(tmp_path).wte.weight.dtype == torch.float32


def test_the_tokenizer_loads_in_transformers(tiny, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(["the cat sat on the mat"] * 9, vocab_size=270, special_tokens=["<|endoftext|>"])
    bpe.save(str(tmp_path / "made.json"))
    tiny(vocab_size=270).save_pretrained(tmp_path / "out", tokenizer=tmp_path / "made.json")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded("the mat sat")["input_ids"] == bpe.encode("the mat sat").ids
    assert loaded.decode(loaded("the mat sat")["input_ids"]) == "the mat sat"
    end = bpe.token_to_id("<|endoftext|>")
    assert loaded.eos_token_id == end
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == end


def test_our_kernels_are_not_taken_for_the_package_that_transformers_probes():
    """transformers asks for a package called `kernels` by version; ours must answer no, and break nothing."""
    code = """if True:
        import kernels, torch
        from transformers import GPT2Config, GPT2LMHeadModel
        from transformers.utils import is_kernels_available
        assert not is_kernels_available()
        GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9))(torch.tensor([[1, 2]]))
        print(kernels.__file__)
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == Path(kernels.__file__)


def damaged(tmp_path, gpt, change):
    gpt.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")


def test_weights_that_do_not_fit_are_all_listed(tiny, tmp_path):
    def change(weights):
        del weights["transformer.h.0.ln_1.weight"], weights["transformer.wte.weight"]
        weights["transformer.h.9.ln_1.weight"] = torch.ones(32)
        weights["transformer.wpe.weight"] = torch.ones(7, 32)

    damaged(tmp_path, tiny(), change)
    with pytest.raises(ValueError) as error:
        GPT.from_pretrained(tmp_path)
    for fault in (
        "missing h.0.ln_1.weight",
        "missing wte.weight",
        "unexpected h.9.ln_1.weight",
        "wpe.weight is (7, 32), not (32, 32)",
    ):
        assert fault in str(error.value)
    assert "lm_head" not in str(error.value)


def test_weights_are_checked_without_being_read(tiny, tmp_path, monkeypatch):
    """And before memory is asked for: a config may want more of it than there is."""
    tiny().save_pretrained(tmp_path)
    monkeypatch.setattr(pretrained, "load_file", None)
    GPT.check_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 10**12}))
    for look in (GPT.check_pretrained, GPT.from_pretrained):
        with pytest.raises(ValueError, match=r"wte.weight is \(61, 32\), not \(1000000000000, 32\)"):
            look(tmp_path)


def test_a_cut_file_is_named(tiny, tmp_path):
    tiny().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        GPT.from_pretrained(tmp_path)


def test_a_file_that_is_no_tokenizer_is_named_and_nothing_written(tiny, tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(ValueError, match=r"vocab\.json is no tokenizer\.json"):
        tiny().save_pretrained(tmp_path / "out", tokenizer=tmp_path / "vocab.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("attention", ["torch", "sdpa", "fused"])
def test_configs_of_earlier_versions_are_read_without_their_choice_of_kernels(tiny, tmp_path, attention):
    """It chose who computes, not what: the model is the same."""
    gpt = tiny()
    gpt.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    assert "attention" not in content["slm"]
    path.write_text(json.dumps({**content, "slm": {**content["slm"], "attention": attention}}))
    assert GPT.from_pretrained(tmp_path).config == gpt.config


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(tiny, tmp_path, name):
    tiny().save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {name}"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "bert"}, "model_type 'bert', not gpt2, llama or slm"),
        ({"activation_function": "relu"}, "does not compute: activation_function=relu"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"n_head": 5}, "n_embd 32 is not divisible by n_head 5"),
        ({"slm": {"flux": 1}}, "GPTConfig has no field called flux"),
        ({"slm": {"attention": "flash"}}, "GPTConfig has no field called attention"),
        ({"n_layer": "2"}, "n_layer is '2', must be a whole number"),
        ({"n_embd": None}, "n_embd is None, must be a whole number"),
        ({"slm": ["flux"]}, "does not describe a model"),
        ({"activation_function": ["relu"]}, r"activation_function=\['relu'\]"),
        ({"resid_pdrop": "half"}, "dropout is 'half', must be in"),
    ],
)
def test_a_config_that_cannot_be_met_is_refused(tiny, tmp_path, change, message):
    tiny().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(tmp_path)


def test_a_model_of_the_hub_is_downloaded_once_and_then_read_from_the_cache(tiny, tmp_path):
    gpt = tiny()
    gpt.save_pretrained(tmp_path / "saved")
    files = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    program = (
        "import sys; from model import GPT; print(GPT.from_pretrained(sys.argv[1]).wte.weight.sum().item())"
    )

    def load(name: str) -> subprocess.CompletedProcess:
        command = [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{program}",
            name,
        ]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)

    pickled = {"pytorch_model.bin": b"not to be downloaded"}
    with hub("models/me/teller", files | pickled, tmp_path / "cache") as (environment, stop):
        first = load("me/teller")
        stop()
        again = load("me/teller")
        missing = load("me/other")
    assert first.stdout == again.stdout == f"{gpt.wte.weight.sum().item()}\n", first.stderr
    assert not list((tmp_path / "cache").rglob("*.bin"))
    assert "OSError: cannot load me/other: " in missing.stderr and "needs no network" in missing.stderr


def test_a_directory_is_never_taken_for_a_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("common.hub.model", lambda name: pytest.fail(f"asked for {name}"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/typo", "runs", str(tmp_path / "nothing"), "runs/typo/best"):
        assert pretrained.located(name) == Path(name)
