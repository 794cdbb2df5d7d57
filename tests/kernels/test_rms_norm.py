"""rms_norm and add_rms_norm on every backend, against float64 and beside torch's own error."""

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import reference
from tests.kernels import cases
from tests.kernels.cases import NORM_CASES, NormCase, by, each_backend, each_dtype

each_case = pytest.mark.parametrize("case", **by([case for case in NORM_CASES if case.bias]))


def run(op, inputs, weight, grads):
    """The outputs of an op and the gradients of all it takes."""
    leaves = cases.require_grad([*inputs, weight])
    outputs = op(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [*outputs, *cases.gradients(outputs, grads, leaves)]


def torch_rms_norm(x, weight):
    return F.rms_norm(x, weight.shape, weight, 1e-5)


def torch_add_rms_norm(x, residual, weight):
    return torch_rms_norm(x + residual, weight), x + residual


def check(op, torch_op, exact_op, inputs, case, dtype, backend):
    weight = (1 + 0.3 * cases.randn(case.shape[-1], seed=7)).to(backend.device, dtype)
    grads = [cases.randn(*case.shape, seed=9 + i).to(backend.device, dtype) for i in range(len(inputs))]
    with kernels.use(backend.choice):
        ours = run(op, inputs, weight, grads)
    torchs = run(torch_op, inputs, weight, grads)
    exact = run(
        exact_op, [x.cpu().double() for x in inputs], weight.cpu().double(), [g.cpu().double() for g in grads]
    )
    for i, (our, torch_own, true) in enumerate(zip(ours, torchs, exact, strict=True)):
        cases.assert_as_exact_as(our, torch_own, true, factor=2 if i < len(inputs) else 3)


@each_backend
@each_dtype
@each_case
def test_rms_norm_is_as_exact_as_torch(backend, dtype, case):
    x = cases.norm_inputs(case, dtype, backend.device)
    check(kernels.rms_norm, torch_rms_norm, reference.rms_norm, [x], case, dtype, backend)


@each_backend
@each_dtype
@each_case
def test_add_rms_norm_is_as_exact_as_torch(backend, dtype, case):
    inputs = [cases.norm_inputs(case, dtype, backend.device, seed) for seed in (0, 1)]

    def exact(x, residual, weight):
        total = x + residual
        rounding = (total.to(dtype).double() - total).detach()  # the sum is rounded before it is normalized
        return reference.rms_norm(total + rounding, weight), total

    check(kernels.add_rms_norm, torch_add_rms_norm, exact, inputs, case, dtype, backend)


@pytest.mark.parametrize("backend", **by([b for b in cases.BACKENDS if b.choice == "fused"]))
def test_results_larger_than_the_cache_are_whole(backend):
    """A large result is written around the cache where its row is aligned: here, every other row."""
    x = cases.norm_inputs(NormCase((11000, 392)), torch.float32, backend.device)
    weight = cases.randn(392, dtype=torch.float32, device=backend.device)
    with kernels.use(backend.choice):
        torch.testing.assert_close(kernels.rms_norm(x, weight), torch_rms_norm(x, weight))


@each_backend
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(backend, bad):
    x, weight = cases.randn(3, 37, dtype=torch.float32), torch.ones(37)
    x[1, 5] = bad
    leaf, exact = (x.to(backend.device).requires_grad_() for _ in range(2))
    with kernels.use(backend.choice):
        out = kernels.rms_norm(leaf, weight.to(backend.device))
        out.sum().backward()
    expected = torch_rms_norm(exact, weight.to(backend.device))
    expected.sum().backward()
    torch.testing.assert_close(out, expected, equal_nan=True)
    assert torch.equal(leaf.grad.isfinite().all(-1).cpu(), torch.tensor([True, False, True]))


def test_the_reference_is_torchs_and_its_backward_autograds():
    x, weight = (cases.randn(*shape).requires_grad_() for shape in ((4, 3, 19), (19,)))
    torch.testing.assert_close(reference.rms_norm(x, weight), torch_rms_norm(x, weight))
    grad = cases.randn(4, 3, 19, seed=3)
    expected = torch.autograd.grad(torch_rms_norm(x, weight), (x, weight), grad)
    torch.testing.assert_close(reference.rms_norm_backward(grad, x, weight), expected)
