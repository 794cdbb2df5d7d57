"""Older and smaller GPUs, on the emulator: which kernels run there, and that their shared memory suffices."""

import ctypes

import pytest
import torch

import kernels
from kernels import dispatch, reference
from tests.kernels import cases
from tests.kernels.cases import AttentionCase, by
from tests.kernels.test_attention import run

pytestmark = pytest.mark.skipif(
    kernels.backends()["emulated"] != "available", reason="the emulated kernels are not built"
)
SMALLEST_MEMORY = (75, 86, 90)  # 64, 99 and 227 KiB for a block


@pytest.fixture
def gpu():
    """Makes the emulated GPU one of another architecture."""
    library = ctypes.CDLL(dispatch.modules()["kernels._emulated"][0].__file__)

    def become(architecture: int) -> None:
        seed, workers, count, traced_block = 0, 0, 0, -1
        library.emulator_configure(
            ctypes.c_ulonglong(seed), workers, architecture, count, ctypes.c_longlong(traced_block)
        )

    with kernels.use("emulated"):
        yield become
    become(80)


def attend(case, dtype, **options):
    """The result and the gradients of a case."""
    inputs = cases.attention_inputs(case, dtype, "cpu")
    grad = cases.randn(*inputs[0].shape, seed=5, dtype=dtype)
    return run(kernels.causal_attention, inputs, grad, case.options | options)


@pytest.mark.parametrize("architecture", SMALLEST_MEMORY)
@pytest.mark.parametrize("dtype", **by([torch.float64, torch.float32, torch.bfloat16]))
@pytest.mark.parametrize("case", **by([AttentionCase(1, 128, 1, 128), AttentionCase(1, 140, 1, 96)]))
def test_the_widest_heads_fit_into_the_shared_memory_of_each(gpu, architecture, dtype, case):
    gpu(architecture)
    ours = attend(case, dtype, deterministic=False)
    inputs = cases.to_exact(cases.attention_inputs(case, dtype, "cpu"))
    grad = cases.randn(*inputs[0].shape, seed=5, dtype=dtype).double()
    exact = run(reference.causal_attention, inputs, grad, case.options)
    roundings = 2 if dtype == torch.bfloat16 else 10  # bfloat16 rounds sums of float32 only at their end
    tolerance = roundings * torch.finfo(dtype).eps
    for our, true in zip(ours, exact, strict=True):
        torch.testing.assert_close(
            our.double(), true, rtol=tolerance, atol=tolerance * true.abs().max().item()
        )


@pytest.mark.parametrize("length", [64, 140])
def test_below_sm_80_runs_what_needs_no_tensor_cores(gpu, length):
    """With -q for q and a negative scale the scores are the same, but only kernels without tensor cores take it."""
    q, k, v = cases.attention_inputs(AttentionCase(1, length, 2, 64), torch.bfloat16, "cpu")
    simple = kernels.causal_attention(-q, k, v, scale=-0.125)
    on_80 = kernels.causal_attention(q, k, v, scale=0.125)
    gpu(75)
    on_75 = kernels.causal_attention(q, k, v, scale=0.125)
    assert torch.equal(on_75, simple) and not torch.equal(on_80, simple)


@pytest.mark.parametrize("op", ["attention", "norm"])
def test_a_gpu_that_is_too_old_is_named(gpu, op):
    gpu(61)
    x = torch.ones(1, 4, 2, 8)
    with pytest.raises(RuntimeError, match=r"GPU has compute capability 6\.1: .* 7\.0 or newer"):
        kernels.causal_attention(x, x, x) if op == "attention" else kernels.layer_norm(x, torch.ones(8))
