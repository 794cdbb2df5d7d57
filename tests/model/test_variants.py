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


def test_with_projections_at_zero_every_block_begins_as_the_identity(tiny, batch):
    gpt = tiny(zero_init=True, positions="none").eval()
    assert torch.equal(gpt.hidden(batch[0]), gpt.ln_f(gpt.wte(batch[0])))
    gpt(*batch)[1].backward()
    assert all(block.attn.c_proj.weight.grad.any() for block in gpt.h)
