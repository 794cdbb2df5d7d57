"""Attention against torch's own and against basics/gpt.py, which is held against torch's in tests/basics."""

import pytest
import torch

from basics import gpt
from kernels import reference
from model import GPTConfig
from model.attention import CausalSelfAttention

T, C, H = 9, 24, 4


@pytest.fixture
def x():
    return torch.randn(2, T, C, generator=torch.Generator().manual_seed(0))


def attention(**changes):
    return CausalSelfAttention(GPTConfig(n_embd=C, n_head=H, **changes))


def plain():
    return gpt.Attention(gpt.GPTConfig(n_head=H, n_embd=C))


def test_with_a_key_head_for_each_query_head_it_is_multi_head_attention(x, each_kernel):
    ours, lesson = attention(), plain()
    ours.load_state_dict(lesson.state_dict())
    torch.testing.assert_close(ours(x), lesson(x))


def test_grouped_query_equals_plain_with_the_key_heads_repeated(x, each_kernel):
    lesson, grouped = plain(), attention(n_kv_head=2)
    q, k, v = grouped.c_attn.weight.split([C, C // 2, C // 2])
    k, v = (w.unflatten(0, (2, -1)).repeat_interleave(2, 0).flatten(0, 1) for w in (k, v))  # 2 heads -> 4
    torch.nn.init.zeros_(grouped.c_attn.bias)
    projections = {"c_attn.weight": torch.cat([q, k, v]), "c_proj.weight": grouped.c_proj.weight}
    lesson.load_state_dict(
        {**projections, "c_attn.bias": torch.zeros(3 * C), "c_proj.bias": grouped.c_proj.bias}
    )
    torch.testing.assert_close(grouped(x), lesson(x))


@pytest.mark.parametrize("window", [1, 3, T, 2 * T])
def test_a_window_sees_exactly_that_many_tokens(window):
    seen = reference.seen(T, window)
    for q in range(T):
        assert seen[q].nonzero().flatten().tolist() == list(range(max(0, q - window + 1), q + 1))


@pytest.mark.parametrize("window", [None, 3])
def test_grouped_queries_and_a_window_equal_the_formula(x, each_kernel, window):
    ours = attention(n_kv_head=2, window=window)
    heads = ours.c_attn(x).unflatten(-1, (-1, C // H))  # (B, T, H + 2 KV, D)
    q, k, v = (part.double() for part in heads.split([H, 2, 2], dim=2))
    expected = reference.causal_attention(q, k, v, window=window).float().flatten(2)
    torch.testing.assert_close(ours(x), ours.c_proj(expected))


def test_heads_wider_than_the_kernels_take_are_left_to_torch_or_refused(each_kernel):
    import kernels

    wide = CausalSelfAttention(GPTConfig(n_embd=132, n_head=1))
    lesson = gpt.Attention(gpt.GPTConfig(n_head=1, n_embd=132))
    lesson.load_state_dict(wide.state_dict())
    x = torch.randn(1, 5, 132)
    with kernels.use("auto"):
        torch.testing.assert_close(wide(x), lesson(x))
    if each_kernel == "torch":
        torch.testing.assert_close(wide(x), lesson(x))
    else:
        with pytest.raises(ValueError, match="heads of at most 128 numbers, not 132: choose auto or torch"):
            wide(x)
