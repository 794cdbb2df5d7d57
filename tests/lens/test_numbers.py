"""The page's forward pass computes what torch does with the same rounded weights, in every variant it shows."""

import pytest
import torch
from torch.nn import functional as F

import kernels
from lens import export
from model import GPT
from tests.lens.asking import as_rounded, ask, small

IDS = [299, 7, 100, 255, 270, 3, 3, 199, 0, 45, 280, 11]
VARIANTS = {
    "gpt2": {},
    "modern": {"positions": "rotary", "n_kv_head": 2, "mlp": "swiglu", "norm": "rmsnorm", "bias": False},
    "qk_norm": {"qk_norm": True, "positions": "rotary", "rope_theta": 1e6, "tied_head": False, "n_inner": 40},
    "first transformer": {"norm_place": "post", "positions": "sinusoidal", "tied_head": False},
    "window": {"window": 4, "n_ahead": 2, "positions": "none", "mlp": "relu2", "logit_softcap": 5.0},
    "speedrun": {"value_embedding": True, "residual_scalars": True, "mlp": "silu", "n_kv_head": 1},
    "mup": {"mup_width": 16},
}


@pytest.fixture(autouse=True)
def plain_kernels():
    with kernels.use("torch"):
        yield


@pytest.mark.parametrize("precision", ["float16", "int8"])
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_torch(name, precision, tokenizer, tmp_path):
    gpt = small(**VARIANTS[name])
    head, data = export.payload(gpt, tokenizer, tmp_path, precision)
    _, analysis, part = ask(
        head, data, ("analyse", {"ids": IDS}), ("part", {"name": "logits", "layer": None})
    )
    theirs = as_rounded(gpt, precision)(torch.tensor([IDS]))[0][0]
    ours = torch.tensor(part["values"]).view(len(IDS), -1)
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-4, rtol=0)
    lens = analysis["lens"]
    last = torch.tensor(lens["top"]).view(lens["points"], len(IDS), -1)[-1, :, 0]
    assert last.tolist() == theirs.argmax(-1).tolist()
    for layer in analysis["attention"]:
        rows = torch.tensor(layer).view(-1, len(IDS))
        torch.testing.assert_close(rows.sum(-1), torch.ones(len(rows)))


def test_any_number_of_tokens_and_rows(tokenizer, tmp_path):
    """Products are made of pairs of tokens and three rows at a time: here neither number divides."""
    gpt = small(n_inner=41)
    head, data = export.payload(gpt, tokenizer, tmp_path)
    lengths = (1, 2, 11)
    asks = [
        each
        for n in lengths
        for each in (("analyse", {"ids": IDS[:n]}), ("part", {"name": "logits", "layer": None}))
    ]
    found = ask(head, data, *asks)[2::2]
    for n, part in zip(lengths, found, strict=True):
        theirs = as_rounded(gpt, "float16")(torch.tensor([IDS[:n]]))[0][0].detach()
        torch.testing.assert_close(torch.tensor(part["values"]).view(n, -1), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_attribution_sums_to_the_logit(name, tokenizer, tmp_path):
    gpt = small(**{**VARIANTS[name], "logit_softcap": None})
    head, data = export.payload(gpt, tokenizer, tmp_path)
    asks = [("attribution", {"position": at, "target": target}) for at, target in ((3, 7), (11, 250))]
    for found in ask(head, data, ("analyse", {"ids": IDS}), *asks)[2:]:
        assert sum(part["value"] for part in found["parts"]) == pytest.approx(found["logit"], abs=1e-3)


def test_every_intermediate_equals_the_textbook(tokenizer, tmp_path):
    from basics import gpt as basics

    gpt = small()
    plain = basics.GPT(basics.GPTConfig(300, 24, 2, 4, 32)).eval()
    state = export.rounded(gpt.state_dict(), "float16")
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    kept = {}
    for layer, block in enumerate(plain.h):
        for name, module in (
            ("attentionRead", block.ln_1),
            ("attentionOut", block.attn),
            ("mlpOut", block.mlp),
            ("stream", block),
        ):
            module.register_forward_hook(lambda _, __, out, key=(name, layer): kept.__setitem__(key, out[0]))
        block.mlp.c_proj.register_forward_pre_hook(
            lambda _, inputs, key=("hidden", layer): kept.__setitem__(key, inputs[0][0])
        )
    plain.ln_f.register_forward_hook(lambda _, __, out: kept.__setitem__(("final", None), out[0]))
    with torch.no_grad():
        plain(torch.tensor([IDS]))
    head, data = export.payload(gpt, tokenizer, tmp_path)
    asks = [("part", {"name": name, "layer": layer}) for name, layer in kept]
    found = ask(head, data, ("analyse", {"ids": IDS}), *asks)[2:]
    for (name, layer), part in zip(kept, found, strict=True):
        ours = torch.tensor(part["values"]).view(part["rows"], part["columns"])
        torch.testing.assert_close(ours, kept[name, layer], atol=1e-5, rtol=1e-5, msg=f"{name} {layer}")


def test_the_lens_of_an_early_layer_is_its_own_stream_through_the_final_norm(tokenizer, tmp_path):
    gpt = small()
    head, data = export.payload(gpt, tokenizer, tmp_path)
    lens = ask(head, data, ("analyse", {"ids": IDS}))[1]["lens"]
    theirs, streams = as_rounded(gpt, "float16"), []
    theirs.h[0].register_forward_hook(lambda _, __, out: streams.append(out[0]))
    with torch.no_grad():
        theirs(torch.tensor([IDS]))
        logp = theirs.logits(theirs.ln_f(streams[0])).log_softmax(-1)
    T = len(IDS)
    expected = logp[range(T - 1), IDS[1:]]
    torch.testing.assert_close(torch.tensor(lens["logp"][T : 2 * T - 1]), expected, atol=1e-4, rtol=0)
    ranks = [int((row > row[next]).sum()) + 1 for row, next in zip(logp, IDS[1:], strict=False)]
    assert lens["rank"][T : 2 * T] == [*ranks, -1]


@pytest.mark.parametrize("name", ["gpt2", "first transformer"])
def test_a_second_worker_changes_no_number(name, tokenizer, tmp_path):
    head, data = export.payload(small(**VARIANTS[name]), tokenizer, tmp_path)
    asks = [("analyse", {"ids": ids}) for ids in (IDS, IDS[:1])]
    alone = ask(head, data, *asks)
    *assisted, reads = ask(head, data, *asks, assisted=True)
    assert assisted == alone
    assert reads > len(asks)


def test_parts_that_are_off_are_zero(tokenizer, tmp_path):
    gpt = small()
    head, data = export.payload(gpt, tokenizer, tmp_path)
    rules = {"temperature": 1, "top_k": None, "top_p": None, "min_p": None}
    off = ["head 0 2", "mlp 1"]
    compared = ask(
        head, data, ("compare", {"ids": IDS, "off": off, "patch": None, "other": [], "rules": rules})
    )[1]
    theirs = as_rounded(gpt, "float16")
    with torch.no_grad():
        plain = theirs(torch.tensor([IDS]))[0][0, -1].softmax(-1)
        theirs.h[0].attn.c_proj.weight[:, 16:24] = 0
        theirs.h[1].mlp.c_proj.weight.zero_()
        theirs.h[1].mlp.c_proj.bias.zero_()
        changed = theirs(torch.tensor([IDS]))[0][0, -1].softmax(-1)
    for row in compared["rows"]:
        assert row["before"] == pytest.approx(plain[row["id"]].item(), abs=1e-5)
        assert row["after"] == pytest.approx(changed[row["id"]].item(), abs=1e-5)
    assert compared["divergence"] == pytest.approx((plain * (plain / changed).log()).sum().item(), abs=1e-5)


def test_a_patch_of_the_last_stream_gives_the_other_prompts_distribution(tokenizer, tmp_path):
    gpt = small()
    head, data = export.payload(gpt, tokenizer, tmp_path)
    rules = {"temperature": 1, "top_k": None, "top_p": None, "min_p": None}
    other = [299, 17, 8, 9]
    patch = {"site": "stream", "layer": 1, "position": len(IDS) - 1, "from": 3}
    compared = ask(
        head, data, ("compare", {"ids": IDS, "off": [], "patch": patch, "other": other, "rules": rules})
    )[1]
    with torch.no_grad():
        expected = as_rounded(gpt, "float16")(torch.tensor([other]))[0][0, -1].softmax(-1)
    assert all(
        row["after"] == pytest.approx(expected[row["id"]].item(), abs=1e-5) for row in compared["rows"]
    )


@pytest.mark.parametrize("name", ["gpt2", "modern", "window"])
def test_greedy_text_equals_ours_beyond_the_context(name, tokenizer, tmp_path):
    from model import generate

    gpt = small(**VARIANTS[name])
    head, data = export.payload(gpt, tokenizer, tmp_path)
    rules = {"temperature": 0, "top_k": None, "top_p": None, "min_p": None}
    asks = [
        ("begin", {"name": "a", "ids": IDS}),
        ("generate", {"name": "a", "rules": rules, "count": 200, "seed": 1, "stop": []}),
    ]
    tokens = ask(head, data, *asks)[2]
    theirs = list(generate.stream(as_rounded(gpt, "float16"), IDS, 200, temperature=0))
    assert [token["id"] for token in tokens] == theirs


def test_rules_equal_ours(tokenizer, tmp_path):
    from model.generate import Rules

    gpt = small()
    head, data = export.payload(gpt, tokenizer, tmp_path)
    chosen = [
        {"temperature": 0.7, "top_k": 9, "top_p": None, "min_p": None},
        {"temperature": 1.3, "top_k": None, "top_p": 0.8, "min_p": None},
        {"temperature": 1.0, "top_k": 40, "top_p": 0.95, "min_p": 0.1},
        {"temperature": 0, "top_k": None, "top_p": None, "min_p": None},
    ]
    asks = [("begin", {"name": "a", "ids": IDS})]
    asks += [("next", {"name": "a", "rules": rules, "count": 300}) for rules in chosen]
    logits = as_rounded(gpt, "float16")(torch.tensor([IDS]))[0][0, -1].detach()
    for rules, found in zip(chosen, ask(head, data, *asks)[2:], strict=True):
        given = Rules(**rules)
        theirs = F.one_hot(logits.argmax(), 300) if given.greedy else given.probabilities(logits)
        ours = torch.zeros(300)
        for row in found["rows"]:
            ours[row["id"]] = row["p"]
        torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=0)


def test_undo_gives_the_distribution_from_before(tokenizer, tmp_path):
    head, data = export.payload(small(), tokenizer, tmp_path)
    rules = {"temperature": 1, "top_k": None, "top_p": None, "min_p": None}
    following = ("next", {"name": "a", "rules": rules, "count": 4})
    steps = [("append", {"name": "a", "id": id}) for id in range(20)]  # past the context of 24
    asks = [
        ("begin", {"name": "a", "ids": IDS}),
        following,
        *steps,
        *[("undo", {"name": "a"})] * 20,
        following,
    ]
    _, _, first, *_, last = ask(head, data, *asks)
    assert [row["id"] for row in first["rows"]] == [row["id"] for row in last["rows"]]
    assert last["rows"][0]["p"] == pytest.approx(first["rows"][0]["p"], abs=1e-6)


def test_the_beam_tree_ends_in_the_best_beam(tokenizer, tmp_path):
    from model.beam import beam_search

    gpt = small()
    head, data = export.payload(gpt, tokenizer, tmp_path)
    nodes = ask(head, data, ("beam", {"ids": IDS[:6], "beams": 3, "steps": 5, "stop": []}))[1]
    best = beam_search(as_rounded(gpt, "float16"), IDS[:6], 5, beams=3)[0]
    assert [node["id"] for node in nodes if node["best"]] == best.ids
    assert max(node["logp"] for node in nodes if node["best"] and node["depth"] == 4) == pytest.approx(
        best.log_probability, abs=1e-4
    )


def test_what_the_page_cannot_compute_is_refused(tokenizer, tmp_path):
    cases = {
        "state space": {"layers": "am"},
        "latent attention": {"kv_lora_rank": 8, "positions": "rotary"},
        "experts": {"n_expert": 2},
    }
    for words, changes in cases.items():
        gpt = GPT(type(small().config)(**{**vars(small().config), "ssm_head": 16, **changes}))
        with pytest.raises(ValueError, match=words):
            export.payload(gpt, tokenizer, tmp_path)


def test_a_text_that_begins_with_the_analysed_prompt_goes_on_alike(tokenizer, tmp_path):
    head, data = export.payload(small(n_kv_head=2, positions="rotary"), tokenizer, tmp_path)
    rules = {"temperature": 1, "top_k": None, "top_p": None, "min_p": None}
    steps = [("append", {"name": "a", "id": 5}), ("next", {"name": "a", "rules": rules, "count": 300})]
    computed = ask(head, data, ("begin", {"name": "a", "ids": IDS}), *steps)[-1]
    known = ask(head, data, ("analyse", {"ids": IDS}), ("begin", {"name": "a", "ids": IDS}), *steps)[-1]
    assert computed["used"] == known["used"] == len(IDS) + 1
    assert [row["id"] for row in computed["rows"]] == [row["id"] for row in known["rows"]]
    assert all(
        a["p"] == pytest.approx(b["p"], abs=1e-6)
        for a, b in zip(computed["rows"], known["rows"], strict=True)
    )
