"""gelu and swiglu with their biases on every backend, against float64 and beside torch's own error."""

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import reference
from tests.kernels import cases
from tests.kernels.cases import by, each_backend, each_dtype, each_fused

SHAPES = [(5, 1), (3, 7), (2, 3, 48), (17, 127), (300, 33), (3, 1023), (0, 16), (2, 0, 8), (97,)]
each_shape = pytest.mark.parametrize("shape", **by(SHAPES))
each_form = pytest.mark.parametrize("approximate", ["tanh", "none"])


def torch_gelu(x, bias, approximate):
    return F.gelu(x if bias is None else x + bias, approximate=approximate)


def torch_swiglu(gate, x, gate_bias, bias):
    return F.silu(gate + gate_bias) * (x + bias)


def run(op, inputs, grad, *options):
    leaves = cases.require_grad(inputs)
    out = op(*leaves, *options)
    return [out, *cases.gradients(out, grad, leaves)]


def check(op, torch_op, exact_op, inputs, backend, *options):
    grad = cases.randn(*inputs[0].shape, seed=9).to(backend.device, inputs[0].dtype)
    with kernels.use(backend.choice):
        ours = run(op, inputs, grad, *options)
    torchs = run(torch_op, inputs, grad, *options)
    exact = run(exact_op, cases.to_exact(inputs), grad.cpu().double(), *options)
    for i, (our, torch_own, true) in enumerate(zip(ours, torchs, exact, strict=True)):
        cases.assert_as_exact_as(our, torch_own, true, factor=2 if i == 0 else 3)


def wide(*shape, seed, dtype, device):
    """From the far tails to where the curve bends."""
    return (cases.randn(*shape, seed=seed) * 3).to(device, dtype)


@each_backend
@each_dtype
@each_form
@each_shape
def test_gelu_is_as_exact_as_torch(backend, dtype, approximate, shape):
    x = wide(*shape, seed=0, dtype=dtype, device=backend.device)
    bias = cases.randn(shape[-1], seed=1).to(backend.device, dtype)
    check(kernels.gelu, torch_gelu, reference.gelu, [x, bias], backend, approximate)


@each_backend
@each_dtype
@each_shape
def test_swiglu_is_as_exact_as_torch(backend, dtype, shape):
    tensors = [wide(*s, seed=i, dtype=dtype, device=backend.device) for i, s in enumerate((shape, shape))]
    biases = [cases.randn(shape[-1], seed=i).to(backend.device, dtype) for i in (2, 3)]
    check(kernels.swiglu, torch_swiglu, reference.swiglu, [*tensors, *biases], backend)


@each_backend
def test_rows_may_be_strided_and_biases_missing(backend):
    x = cases.randn(9, 40, dtype=torch.float32, device=backend.device)[:, 3:36]
    gate = cases.randn(33, 2, 9, dtype=torch.float32, device=backend.device).permute(1, 2, 0)[0].contiguous()
    grad = cases.randn(33, 9, dtype=torch.float32, device=backend.device).T
    with kernels.use(backend.choice):
        ours = run(kernels.gelu, [x], grad)
        gated = run(kernels.swiglu, [gate, x], grad)
    torch.testing.assert_close(ours, run(lambda x: F.gelu(x, approximate="tanh"), [x], grad))
    torch.testing.assert_close(gated, run(lambda gate, x: F.silu(gate) * x, [gate, x], grad))


@each_fused
@each_form
def test_what_is_not_finite_is_as_in_torch(backend, approximate):
    x = torch.tensor([float("nan"), float("inf"), 1.0, 100.0, -100.0, -1e30, 1e30], device=backend.device)
    with kernels.use(backend.choice):
        found = kernels.gelu(x, None, approximate)
        gated = kernels.swiglu(x, torch.ones_like(x))
    # in float64: torch's erf form in float32 turns infinity into NaN on some CPUs
    exact = F.gelu(x.double(), approximate=approximate).float()
    torch.testing.assert_close(found, exact, equal_nan=True)
    torch.testing.assert_close(gated, F.silu(x), equal_nan=True)


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_the_reference_is_torchs_and_its_slope_autograds(approximate):
    x = cases.randn(200).mul(3).requires_grad_()
    torch.testing.assert_close(reference.gelu(x, None, approximate), F.gelu(x, approximate=approximate))
    (expected,) = torch.autograd.grad(F.gelu(x, approximate=approximate).sum(), x)
    torch.testing.assert_close(reference.gelu_slope(x, approximate), expected)
