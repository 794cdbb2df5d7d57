"""Each rung of attention against torch's own attention, and against the rung before it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model import GPTConfig
from model.attention import (
    CausalHead,
    CausalSelfAttention,
    GroupedQueryAttention,
    MultiHeadAttention,
    SelfAttention,
    attend,
    causal_mask,
)

T, C, H = 9, 24, 4


@pytest.fixture
def x():
    return torch.randn(2, T, C, generator=torch.Generator().manual_seed(0))


def test_a_head_is_scaled_dot_product_attention(x):
    head, causal = SelfAttention(C, 6), CausalHead(C, 6)
    causal.load_state_dict(head.state_dict())
    q, k, v = head.query(x), head.key(x), head.value(x)
    torch.testing.assert_close(head(x), F.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(causal(x), F.scaled_dot_product_attention(q, k, v, is_causal=True))


def test_the_first_token_of_a_causal_head_sees_only_itself(x):
    head = CausalHead(C, 6)
    torch.testing.assert_close(head(x)[:, 0], head.value(x)[:, 0])


def test_scores_of_ten_thousand_give_no_nan():
    q = torch.tensor([[[100.0]], [[-100.0]]]).repeat(1, 3, 1)
    assert torch.isfinite(attend(q, q, q, causal_mask(3))).all()


def test_multi_head_equals_torchs_multihead_attention(x):
    ours, theirs = MultiHeadAttention(C, H), nn.MultiheadAttention(C, H, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.c_attn.weight,
            "in_proj_bias": ours.c_attn.bias,
            "out_proj.weight": ours.c_proj.weight,
            "out_proj.bias": ours.c_proj.bias,
        }
    )
    expected, _ = theirs(x, x, x, attn_mask=~causal_mask(T), need_weights=False)
    torch.testing.assert_close(ours(x), expected)


def test_grouped_query_with_a_key_head_for_each_query_head_is_plain(x):
    plain, grouped = MultiHeadAttention(C, H), GroupedQueryAttention(C, H, H)
    grouped.load_state_dict(plain.state_dict())
    torch.testing.assert_close(grouped(x), plain(x))


def test_grouped_query_equals_plain_with_the_key_heads_repeated(x):
    plain, grouped = MultiHeadAttention(C, H, bias=False), GroupedQueryAttention(C, H, 2, bias=False)
    q, k, v = grouped.c_attn.weight.split([C, C // 2, C // 2])
    k, v = (w.unflatten(0, (2, -1)).repeat_interleave(2, 0).flatten(0, 1) for w in (k, v))  # 2 heads -> 4
    plain.load_state_dict({"c_attn.weight": torch.cat([q, k, v]), "c_proj.weight": grouped.c_proj.weight})
    torch.testing.assert_close(grouped(x), plain(x))


@pytest.mark.parametrize("window", [1, 3, T, 2 * T])
def test_a_window_sees_so_many_tokens_and_no_more(window):
    seen = causal_mask(T, window)
    for q in range(T):
        assert seen[q].nonzero().flatten().tolist() == list(range(max(0, q - window + 1), q + 1))


@pytest.mark.parametrize("window", [None, 3])
def test_the_gpts_attention_is_the_last_lesson(x, attention, window):
    lesson = GroupedQueryAttention(C, H, 2, window)
    config = GPTConfig(n_embd=C, n_head=H, n_kv_head=2, window=window, attention=attention)
    ours = CausalSelfAttention(config)
    ours.load_state_dict(lesson.state_dict())
    torch.testing.assert_close(ours(x), lesson(x))
