"""Infinities and NaN in the inputs: the results are those of float64 over the visible keys, and over these only."""

import contextlib
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from kernels import decode, reference
from kernels.workbench.trials import attend_to_visible
from tests.kernels import cases
from tests.kernels.cases import AttentionCase, by, each_backend, each_fused

VALUES = (math.nan, math.inf, -math.inf)
CASES = [
    AttentionCase(1, 7, 1, 8),
    AttentionCase(1, 70, 2, 16, kv_heads=1, window=5),
    AttentionCase(1, 21, 1, 8, dropout_p=0.3),
    AttentionCase(1, 131, 1, 8, window=9),
]


def run(op, tensors: list[Tensor], options: dict) -> list[Tensor]:
    """The result for q, k, v and the gradients of these for the last tensor, the gradient of the result."""
    *inputs, grad = tensors
    leaves = cases.require_grad(inputs)
    out = op(*leaves, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def assert_same(found: Tensor, exact: Tensor, kinds: bool = True) -> None:
    """About the exact value where that is finite; elsewhere not finite either: the same one of NaN and infinities.

    Without `kinds` any of them will do: for gradients, in which dP - delta is an infinity or NaN according to how the
    sum delta is formed.
    """
    tolerance = 8 * torch.finfo(found.dtype).eps
    found = found.double().cpu()
    if not kinds:
        found, exact = (x.nan_to_num(math.nan, math.nan, math.nan) for x in (found, exact))
    torch.testing.assert_close(found, exact, rtol=tolerance, atol=tolerance * 4, equal_nan=True)


def poisoned(case: AttentionCase, dtype, device):
    """q, k, v and a gradient, each in turn with a value that is not finite, for an early and a late token."""
    for which, token in itertools.product(range(4), (2, case.length - 2)):
        tensors = cases.attention_inputs(case, dtype, device)
        tensors.append(cases.randn(*tensors[0].shape, seed=5, dtype=dtype, device=device))
        tensors[which] = tensors[which].clone()
        tensors[which][0, token, 0, 3] = VALUES[(which + token) % 3]
        yield f"{'qkvg'[which]}[{token}]", tensors


@each_fused
@pytest.mark.parametrize("dtype", **by([torch.float32, torch.bfloat16]))
@pytest.mark.parametrize("case", **by(CASES))
def test_attention_to_what_is_not_finite(backend, dtype, case):
    for name, tensors in poisoned(case, dtype, backend.device):
        exact = run(attend_to_visible, [x.double().cpu() for x in tensors], case.options)
        for deterministic in (True, False) if case.length > 128 else (True,):
            with kernels.use(backend.choice):
                found = run(
                    kernels.causal_attention, tensors, case.options | {"deterministic": deterministic}
                )
            for part, ours, true in zip(("out", "dq", "dk", "dv"), found, exact, strict=True):
                with naming(f"{part} with {name}"):
                    assert_same(ours, true, kinds=part == "out")


@contextlib.contextmanager
def naming(what: str):
    """Say what was compared where an assertion inside fails."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from None


def test_the_softmax_of_an_infinite_score_is_nan_and_nothing_before_it_changes():
    """The case of a public report: k = 1, inf, 1."""
    q, k, v = (
        torch.tensor(row).view(1, 3, 1, 1) for row in ([1.0] * 3, [1.0, math.inf, 1.0], [0.5, 0.25, 0.125])
    )
    torch.testing.assert_close(
        kernels.causal_attention(q, k, v).flatten(), torch.tensor([0.5, math.nan, math.nan]), equal_nan=True
    )


@pytest.mark.parametrize("op", ["attention", "dropout"])
def test_torchs_own_ops_show_nan_where_it_is_due_but_also_before(op):
    """The documented difference: PyTorch multiplies hidden values by weights of zero."""
    case = AttentionCase(1, 12, 1, 8, dropout_p=0.3 if op == "dropout" else 0.0)
    for name, tensors in poisoned(case, torch.float32, "cpu"):
        exact = run(attend_to_visible, [x.double() for x in tensors], case.options)
        with kernels.use("torch"):
            found = run(kernels.causal_attention, tensors, case.options)
        for part, ours, true in zip(("out", "dq", "dk", "dv"), found, exact, strict=True):
            assert not (ours.isfinite() & ~true.isfinite()).any(), f"{part} with {name}"


@each_backend
@pytest.mark.parametrize("value", VALUES)
def test_layer_norm_of_a_row_that_is_not_finite(backend, value):
    """That row is lost, with the gradient of the weight; the others are as they were."""
    x, residual, weight, bias = (
        cases.randn(*shape, seed=i) for i, shape in enumerate(((5, 48),) * 2 + ((48,),) * 2)
    )
    x[2, 17] = value
    grad = cases.randn(5, 48, seed=9)

    def two_ops(x, residual, weight, bias):
        return F.layer_norm(x + residual, (48,), weight, bias)

    exact = run(two_ops, [x, residual, weight, bias, grad], {})
    with kernels.use(backend.choice):
        found = run(
            lambda *inputs: kernels.add_layer_norm(*inputs)[0],
            [t.float().to(backend.device) for t in (x, residual, weight, bias, grad)],
            {},
        )
    for ours, true in zip(found, exact, strict=True):
        assert_same(ours, true)


@pytest.mark.skipif(not decode.available(), reason="the CPU kernels are not built")
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("activation", ["none", "gelu", "silu"])
@pytest.mark.parametrize("norm", ["none", "layernorm", "rmsnorm"])
def test_packed_linear_of_a_row_that_is_not_finite(value, activation, norm):
    x, weight = cases.randn(3, 20, seed=1), cases.randn(70, 20, seed=2)
    x[1, 3] = value
    kind, options = norm != "none", {"norm": norm, "activation": activation}
    exact = reference.packed_linear(
        x, decode.pack_weight(weight), 70, norm_weight=torch.ones(20).double() if kind else None, **options
    )
    found = decode.packed_linear(
        x.float(),
        decode.pack_weight(weight.float()),
        70,
        norm_weight=torch.ones(20) if kind else None,
        **options,
    )
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.skipif(not decode.available(), reason="the CPU kernels are not built")
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("part", range(3))
def test_cached_attention_to_what_is_not_finite(part, value):
    """A cache whose unused places hold NaN, and a new token with a value that is not finite."""
    heads, length, width = 2, 23, 8
    qkv = [cases.randn(1, length, heads, width, seed=i, dtype=torch.float32) for i in range(3)]
    qkv[part][0, 17, 0, 3] = value
    options = {"scale": None, "window": None, "dropout_p": 0.0, "seed": None}
    exact = attend_to_visible(*(x.double() for x in qkv), **options)
    keys, values = (torch.full((1, heads, 40, width), math.nan) for _ in range(2))
    found = decode.cached_attention(torch.cat(qkv, 2), keys, values, torch.arange(length)[None])
    assert_same(found, exact)
