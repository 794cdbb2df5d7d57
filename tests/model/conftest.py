"""A small GPT of any variant, and the list of variants that every promise is checked on."""

import pytest
import torch

import kernels
from basics import gpt
from kernels import reference
from model import GPT, GPTConfig

VARIANTS = {
    "gpt2": {},
    "modern": {"norm": "rmsnorm", "positions": "rotary", "mlp": "swiglu", "bias": False},
    "first transformer": {"norm_place": "post", "positions": "sinusoidal", "tied_head": False},
    "grouped queries": {"n_kv_head": 2, "positions": "rotary"},
    "one key head, no positions": {"n_kv_head": 1, "positions": "none", "mlp": "silu"},
    "window": {"window": 5},
    "modded": {
        "norm": "rmsnorm",
        "positions": "rotary",
        "mlp": "relu2",
        "bias": False,
        "n_kv_head": 2,
        "qk_norm": True,
        "value_embedding": True,
        "residual_scalars": True,
        "logit_softcap": 15.0,
        "tied_head": False,
    },
    "maximal update": {"mup_width": 16, "positions": "rotary", "n_kv_head": 2},
    "window, grouped, post": {"window": 3, "n_kv_head": 2, "norm": "rmsnorm", "norm_place": "post"},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def variant(request):
    """Return the fields in which one variant differs from a GPT-2."""
    return request.param


def in_use(name):
    """Compute with the kernels of this name until the test ends: the body of a fixture."""
    if name == "fused" and kernels.backends()["cpu"] != "available":
        pytest.skip("the CPU kernels are not built")
    if name == "emulated" and kernels.backends()["emulated"] != "available":
        pytest.skip("the emulated kernels are not built")
    with kernels.use(name):
        yield name


@pytest.fixture(params=["torch", "fused"])
def chosen(request):
    """Return the kernels that compute in the test."""
    yield from in_use(request.param)


@pytest.fixture(params=["torch", "fused", "emulated"])
def each_kernel(request):
    """Run with torch and with our kernels, also with our CUDA on the CPU, which is slow."""
    yield from in_use(request.param)


@pytest.fixture
def written_out(monkeypatch):
    """Call a function with every formula of the model written out, in place of kernels and of torch's fused ops."""

    def call(function):
        with monkeypatch.context() as patch, kernels.use("torch"):
            patch.setattr("kernels.ops.torch_layer_norm", reference.layer_norm)
            patch.setattr("kernels.ops.torch_add_layer_norm", reference.add_layer_norm)
            patch.setattr("model.attention.torch_causal_attention", attention)
            patch.setattr("torch.nn.functional.rms_norm", rms_norm)
            patch.setattr("torch.nn.functional.silu", lambda x, inplace=False: x * torch.sigmoid(x))
            patch.setattr("torch.nn.functional.gelu", lambda x, approximate: gpt.gelu(x))
            return function()

    return call


def attention(q, k, v, scale, window, dropout_p, seed):
    return reference.causal_attention(q, k, v, scale=scale, window=window)


def rms_norm(x, shape, weight, eps):
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


@pytest.fixture
def tiny():
    """Make a GPT of 61 ids, 32 tokens, 2 layers, 4 heads, 32 wide, always with the same weights."""

    def make(**changes):
        torch.manual_seed(0)
        sizes = {"vocab_size": 61, "block_size": 32, "n_layer": 2, "n_head": 4, "n_embd": 32}
        return GPT(GPTConfig(**{**sizes, **changes}))

    return make


@pytest.fixture
def batch():
    """idx and targets, each (3, 32)."""
    return torch.randint(61, (2, 3, 32), generator=torch.Generator().manual_seed(1)).unbind()
