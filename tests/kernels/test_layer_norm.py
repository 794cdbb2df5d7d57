"""layer_norm and add_layer_norm on every backend, against float64 and beside torch's own error."""

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import reference
from tests.kernels import cases
from tests.kernels.cases import NORM_CASES, by, each_backend, each_dtype

each_case = pytest.mark.parametrize("case", **by(NORM_CASES))


def parameters(case, dtype, device):
    """weight and bias (or None), away from one and zero."""
    channels = case.shape[-1]
    weight = 1 + 0.3 * cases.randn(channels, seed=7)
    bias = cases.randn(channels, seed=8) if case.bias else None
    return [p if p is None else p.to(device, dtype) for p in (weight, bias)]


def run(op, inputs, weight, bias, grads):
    """The outputs of an op and the gradients of all it takes."""
    leaves = cases.require_grad([*inputs, weight, *([] if bias is None else [bias])])
    bias = None if bias is None else leaves[len(inputs) + 1]
    outputs = op(*leaves[: len(inputs)], leaves[len(inputs)], bias)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [*outputs, *cases.gradients(outputs, grads, leaves)]


def torch_layer_norm(x, weight, bias):
    return F.layer_norm(x, weight.shape, weight, bias)


def torch_add_layer_norm(x, residual, weight, bias):
    return torch_layer_norm(x + residual, weight, bias), x + residual


def check(op, torch_op, exact_op, inputs, case, dtype, backend):
    weight, bias = parameters(case, dtype, backend.device)
    grads = [cases.randn(*case.shape, seed=9 + i).to(backend.device, dtype) for i in range(len(inputs))]
    with kernels.use(backend.choice):
        ours = run(op, inputs, weight, bias, grads)
    torchs = run(torch_op, inputs, weight, bias, grads)
    exact = run(
        exact_op,
        *([x.cpu().double() for x in xs] for xs in (inputs,)),
        *_double(weight, bias),
        _double(*grads),
    )
    assert len(ours) == len(exact)
    for i, (our, torch_own, true) in enumerate(zip(ours, torchs, exact, strict=True)):
        cases.assert_as_exact_as(our, torch_own, true, factor=2 if i < len(inputs) else 3)


def _double(*tensors):
    return [None if x is None else x.cpu().double() for x in tensors]


@each_backend
@each_dtype
@each_case
def test_layer_norm_is_as_exact_as_torch(backend, dtype, case):
    x = cases.norm_inputs(case, dtype, backend.device)
    check(kernels.layer_norm, torch_layer_norm, reference.layer_norm, [x], case, dtype, backend)


def check_add_layer_norm(backend, dtype, case):
    inputs = [cases.norm_inputs(case, dtype, backend.device, seed) for seed in (0, 1)]

    def exact(x, residual, weight, bias):
        total = x + residual
        rounding = (total.to(dtype).double() - total).detach()  # the sum is rounded before it is normalized
        return reference.layer_norm(total + rounding, weight, bias), total

    check(kernels.add_layer_norm, torch_add_layer_norm, exact, inputs, case, dtype, backend)


@each_backend
@each_dtype
@each_case
def test_add_layer_norm_is_as_exact_as_torch(backend, dtype, case):
    check_add_layer_norm(backend, dtype, case)


@pytest.mark.parametrize("backend", **by([b for b in cases.BACKENDS if b.choice == "fused"]))
def test_results_larger_than_the_cache_are_whole(backend):
    """A large result is written around the cache where its row is aligned: here, every other row."""
    check_add_layer_norm(backend, torch.float32, cases.NormCase((11000, 392)))
