"""A small GPT of any variant, and the list of variants that every promise is checked on."""

import pytest
import torch

from model import GPT, GPTConfig

VARIANTS = {
    "gpt2": {},
    "modern": {"norm": "rmsnorm", "positions": "rotary", "mlp": "swiglu", "bias": False},
    "first transformer": {"norm_place": "post", "positions": "sinusoidal", "tied_head": False},
    "grouped queries": {"n_kv_head": 2, "positions": "rotary"},
    "one key head, no positions": {"n_kv_head": 1, "positions": "none", "mlp": "silu"},
    "window": {"window": 5},
    "window, grouped, post": {"window": 3, "n_kv_head": 2, "norm": "rmsnorm", "norm_place": "post"},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def variant(request):
    """The fields in which one variant differs from a GPT-2."""
    return request.param


@pytest.fixture(params=["torch", "sdpa", "fused"])
def attention(request):
    """Who computes: written out, torch's ops, our kernels (or what stands in for them where they are not built)."""
    return request.param


@pytest.fixture
def tiny():
    """Makes a GPT of 61 ids, 32 tokens, 2 layers, 4 heads, 32 wide, always with the same weights."""

    def make(**changes):
        torch.manual_seed(0)
        sizes = {"vocab_size": 61, "block_size": 32, "n_layer": 2, "n_head": 4, "n_embd": 32}
        return GPT(GPTConfig(**{**sizes, **changes}))

    return make


@pytest.fixture
def batch():
    """idx and targets, each (3, 32)."""
    return torch.randint(61, (2, 3, 32), generator=torch.Generator().manual_seed(1)).unbind()
