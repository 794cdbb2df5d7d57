"""The small findings, each against its formula or transformers' own."""

import pytest
import torch

from kernels import reference
from kernels.reference import softcap
from model.attention import CausalSelfAttention
from model.config import GPTConfig
from model.layers import ReLU2


def test_relu_squared_is_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    x = torch.randn(50)
    torch.testing.assert_close(ReLU2()(x), transformers.activations.ACT2FN["relu2"](x))


def test_soft_capped_logits_are_those_of_gemma2(batch):
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "head_dim": 8,
        "vocab_size": 61,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "final_logit_softcapping": 5.0}
    gemma = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**sizes, **heads, pad_token_id=0)).eval()
    torch.nn.init.normal_(gemma.lm_head.weight)
    with torch.no_grad():
        capped = gemma(batch[0]).logits
        gemma.config.final_logit_softcapping = None
        free = gemma(batch[0]).logits
    assert free.abs().max() > 10
    torch.testing.assert_close(softcap(free, 5.0), capped)


def test_a_value_embedding_is_added_to_the_values():
    attention = CausalSelfAttention(GPTConfig(n_embd=24, n_head=4, n_kv_head=2, value_embedding=True))
    torch.nn.init.constant_(attention.value_scale, 0.7)
    x, values = torch.randn(2, 9, 24), torch.randn(2, 9, 12)
    heads = attention.c_attn(x).unflatten(-1, (-1, 6)).double()
    q, k, v = heads.split([4, 2, 2], dim=2)
    expected = reference.causal_attention(q, k, v + 0.7 * values.unflatten(-1, (2, 6))).float().flatten(2)
    torch.testing.assert_close(attention(x, values=values), attention.c_proj(expected))


def test_residual_scalars_mix_the_stream_and_the_embedding(tiny, batch):
    gpt = tiny(residual_scalars=True, positions="none").eval()
    with torch.no_grad():
        gpt.stream_scale.copy_(torch.tensor([0.5, 2.0]))
        gpt.embedding_scale.copy_(torch.tensor([0.25, -1.0]))
    embedding = gpt.wte(batch[0])
    middle = gpt.h[0](0.75 * embedding)
    torch.testing.assert_close(gpt.hidden(batch[0]), gpt.ln_f(gpt.h[1](2 * middle - embedding)))


@pytest.mark.parametrize("changes", [{}, {"n_kv_head": 1}, {"positions": "rotary"}])
def test_mimetic_heads_look_for_their_like_and_write_what_they_read(tiny, changes):
    """Products of the four matrices, a head at a time, against multiples of the identity."""
    gpt = tiny(n_embd=256, n_head=2, n_layer=8, mimetic_init=True, **changes)
    attention, width, size = gpt.h[0].attn, 256, 128
    rows = attention.c_attn.weight.unflatten(0, (-1, size)).split(attention.heads)
    group = 2 // len(rows[1])
    for head in range(2):
        q, k, v = rows[0][head], rows[1][head // group], rows[2][head // group]
        written = attention.c_proj.weight[:, head * size : (head + 1) * size]
        for product, diagonal in ((q.T @ k, size / (4 * width)), (written @ v, size * 0.02**2 / 4)):
            assert product.diagonal().mean().item() == pytest.approx(diagonal, rel=0.05)
            assert (product - product.diagonal().diag()).mean().abs().item() < 0.02 * diagonal


def test_mimetic_positions_begin_as_sines_and_are_learned(tiny, batch):
    gpt = tiny(mimetic_init=True)
    length, width = gpt.wpe.weight.shape
    for column in range(width):
        angles = torch.arange(length) / 10000 ** ((column - column % 2) / width)
        torch.testing.assert_close(
            gpt.wpe.weight[:, column], 0.02 * (angles.cos() if column % 2 else angles.sin())
        )
    gpt(*batch)[1].backward()
    assert gpt.wpe.weight.grad.any()


@pytest.mark.parametrize(
    "other", [{"zero_init": True}, {"mup_width": 16}, {"kv_lora_rank": 8, "positions": "rotary"}]
)
def test_mimetic_init_names_what_it_excludes(other):
    with pytest.raises(ValueError, match=f"mimetic_init excludes {next(iter(other))}"):
        GPTConfig(n_embd=32, n_head=2, n_layer=2, mimetic_init=True, **other)


def test_with_projections_at_zero_every_block_begins_as_the_identity(tiny, batch):
    gpt = tiny(zero_init=True, positions="none").eval()
    assert torch.equal(gpt.hidden(batch[0]), gpt.ln_f(gpt.wte(batch[0])))
    gpt(*batch)[1].backward()
    assert all(block.attn.c_proj.weight.grad.any() for block in gpt.h)
