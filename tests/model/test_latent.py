"""Latent attention: what it caches, and its two forms, which are equal."""

import pytest
import torch

from model import GPTConfig
from model.cache import KVCache
from model.latent import LatentAttention
from model.layers import position_angles


def test_the_absorbed_form_equals_the_plain_one_in_float64():
    config = GPTConfig(n_embd=32, n_head=4, positions="rotary", kv_lora_rank=12, rope_dim=6)
    attention = LatentAttention(config).double()
    q, key = torch.randn(2, 9, 4, 14, dtype=torch.float64), torch.randn(2, 9, 1, 6, dtype=torch.float64)
    latent = torch.randn(2, 9, 12, dtype=torch.float64)
    cached = torch.cat([latent[:, :, None], key], dim=-1).transpose(1, 2)
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    found = attention.absorbed(q, cached, mask)
    torch.testing.assert_close(found, attention.plain(q, latent, key), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("heads", [4, 8])
def test_a_token_takes_the_latent_and_one_rotary_key_whatever_the_heads(tiny, heads):
    gpt = tiny(positions="rotary", kv_lora_rank=12, rope_dim=2, n_head=heads)
    layer = KVCache(gpt, rows=3, length=32).layers[0]
    assert layer.keys.numel() + layer.values.numel() == 3 * 32 * (12 + 2)


def test_rotary_parts_see_distances_only():
    config = GPTConfig(n_embd=32, n_head=4, positions="rotary", kv_lora_rank=12)
    attention, x = LatentAttention(config), torch.randn(2, 9, 32)
    first, later = (attention(x, position_angles(torch.arange(9) + start, 4)) for start in (0, 100))
    torch.testing.assert_close(first, later, rtol=1e-4, atol=1e-5)
