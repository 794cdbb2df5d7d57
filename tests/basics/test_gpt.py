"""basics/gpt.py against PyTorch's ops and transformers' GPT-2, and model/ against basics/gpt.py."""

import math
import runpy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kernels
import model
from basics import gpt

T, C, H = 9, 24, 4
SIZES = {"vocab_size": 61, "block_size": 32, "n_layer": 2, "n_head": 4, "n_embd": 32}
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


@pytest.fixture
def x():
    return torch.randn(2, T, C, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def plain():
    """Return a GPT of 61 ids whose weights are far from their beginning, so that every part counts."""
    made = gpt.GPT(gpt.GPTConfig(**SIZES)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def test_attention_is_scaled_dot_product_attention(x):
    q, k, v = torch.randn(3, 2, T, 6)
    torch.testing.assert_close(gpt.attend(q, k, v, causal=False), F.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(gpt.attend(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True))


def test_the_first_token_sees_only_itself():
    q, k, v = torch.randn(3, 2, T, 6)
    torch.testing.assert_close(gpt.attend(q, k, v)[:, 0], v[:, 0])


def test_scores_of_ten_thousand_give_no_nan():
    q = torch.tensor([[[100.0]], [[-100.0]]]).repeat(1, 3, 1)
    assert torch.isfinite(gpt.attend(q, q, q)).all()


def test_multi_head_equals_torchs_multihead_attention(x):
    ours, theirs = (
        gpt.Attention(gpt.GPTConfig(n_head=H, n_embd=C)),
        nn.MultiheadAttention(C, H, batch_first=True),
    )
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.c_attn.weight,
            "in_proj_bias": ours.c_attn.bias,
            "out_proj.weight": ours.c_proj.weight,
            "out_proj.bias": ours.c_proj.bias,
        }
    )
    later = torch.ones(T, T, dtype=torch.bool).triu(1)
    expected, _ = theirs(x, x, x, attn_mask=later, need_weights=False)
    torch.testing.assert_close(ours(x), expected)


WRITTEN_OUT = {
    "layernorm": (gpt.LayerNorm(24), lambda x: F.layer_norm(x, (24,))),
    "gelu": (gpt.gelu, lambda x: F.gelu(x, approximate="tanh")),
}


@pytest.mark.parametrize("part", WRITTEN_OUT)
def test_written_out_equals_torch_forward_and_backward(part):
    ours, theirs = WRITTEN_OUT[part]
    x = (torch.randn(5, 7, 24) * 3 + 1).requires_grad_()
    y, again = x.detach().clone().requires_grad_(), torch.randn(5, 7, 24)
    ours(x).backward(again)
    theirs(y).backward(again)
    torch.testing.assert_close(ours(x), theirs(y), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-5)


def test_dropout_keeps_the_mean_and_drops_the_share_it_says():
    n, p = 100_000, 0.3
    y = gpt.dropout(torch.ones(n), p, training=True)
    zeros = (y == 0).sum().item()
    assert abs(zeros - n * p) < 5 * math.sqrt(n * p * (1 - p))
    torch.testing.assert_close(y[y != 0].unique(), torch.tensor([1 / (1 - p)]))
    assert torch.equal(gpt.dropout(y, p, training=False), y)


def test_logits_are_those_of_transformers(plain):
    transformers = pytest.importorskip("transformers")
    sizes = {"n_positions" if name == "block_size" else name: value for name, value in SIZES.items()}
    config = transformers.GPT2Config(**sizes, **dict.fromkeys(DROPOUTS, 0.0))
    theirs = transformers.GPT2LMHeadModel(config).eval()
    named = plain.state_dict()
    conv1d = {  # stored as (in, out) there
        name: tensor.T if name.startswith("h.") and tensor.dim() == 2 else tensor
        for name, tensor in named.items()
    }
    theirs.transformer.load_state_dict(conv1d)
    idx = torch.randint(61, (3, 32))
    torch.testing.assert_close(plain(idx), theirs(idx).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chosen", ["torch", "fused", "emulated"])
def test_the_fast_model_has_the_same_logits_and_gradients(plain, chosen):
    if chosen != "torch" and kernels.backends()["cpu" if chosen == "fused" else chosen] != "available":
        pytest.skip(f"the {chosen} kernels are not built")
    fast = model.GPT(model.GPTConfig(**SIZES)).eval()
    head = {"lm_head.weight": plain.wte.weight}  # tied: the plain model has no second name for it
    fast.load_state_dict({**plain.state_dict(), **head})
    idx, targets = torch.randint(61, (2, 3, 32))
    expected = plain(idx)
    loss = F.cross_entropy(expected.flatten(0, 1), targets.flatten())
    loss.backward()
    with kernels.use(chosen):
        logits, found = fast(idx, targets)
        found.backward()
    torch.testing.assert_close(logits, expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, loss)
    gradients = dict(fast.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-4, atol=1e-5)


def test_initial_weights_have_the_spread_of_the_fast_models():
    torch.manual_seed(0)
    plain = dict(gpt.GPT(gpt.GPTConfig(500, 64, 8, 4, 128)).named_parameters())
    fast = model.GPT(model.GPTConfig(vocab_size=500, block_size=64, n_layer=8, n_head=4, n_embd=128))
    for name, parameter in fast.named_parameters():
        assert plain[name].std(unbiased=False).item() == pytest.approx(
            parameter.std(unbiased=False).item(), rel=0.05
        )


def test_it_runs_by_itself(tmp_path, monkeypatch, capsys):
    (tmp_path / "my.txt").write_text("the cat sat on the mat. " * 10)
    monkeypatch.setattr("sys.argv", ["gpt.py", str(tmp_path / "my.txt")])
    runpy.run_path(gpt.__file__, run_name="__main__")
    assert "logits (1, 64, 256)" in capsys.readouterr().out
