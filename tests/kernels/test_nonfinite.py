"""Infinities and NaN in the inputs: the results are those of float64 over the visible keys, and over these only."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from kernels import decode, reference
from tests.kernels import cases
from tests.kernels.cases import AttentionCase, by, each_backend, each_dtype, each_fused

VALUES = (math.nan, math.inf, -math.inf)
CASES = [
    AttentionCase(1, 7, 1, 8),
    AttentionCase(1, 70, 2, 16),
    AttentionCase(1, 70, 2, 16, kv_heads=1, window=5),
    AttentionCase(1, 135, 1, 64, window=70),
    AttentionCase(1, 41, 1, 8, dropout_p=0.3),
]


def attend_to_visible(q, k, v, *, scale, window, dropout_p, seed) -> Tensor:
    """Attention one query at a time, over the keys that it sees: (B, T, H, D), in the dtype of q."""
    heads = q.shape[2]
    k, v = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in (k, v))
    factors = reference.dropout_factors(q, dropout_p, seed) if dropout_p else torch.ones(())
    rows = []
    for i in range(q.shape[1]):
        first = 0 if window is None else max(0, i - window + 1)
        scores = torch.einsum("bhd,bjhd->bhj", q[:, i], k[:, first : i + 1]) * (scale or q.shape[3] ** -0.5)
        weights = scores.softmax(-1) * (factors[:, :, i, first : i + 1] if dropout_p else 1)
        rows.append(torch.einsum("bhj,bjhd->bhd", weights, v[:, first : i + 1]))
    return torch.stack(rows, 1)


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
    """q, k, v and a gradient with one value that is not finite, for each of them and for early and late tokens."""
    for which in range(4):
        for number, token in enumerate((0, 2, case.length // 2, case.length - 2)):
            tensors = cases.attention_inputs(case, dtype, device)
            tensors.append(cases.randn(*tensors[0].shape, seed=5, dtype=dtype, device=device))
            tensors[which] = tensors[which].clone()
            tensors[which][0, token, 0, 3] = VALUES[(which + number) % 3]
            yield f"{'qkvg'[which]}[{token}]", tensors


@each_fused
@each_dtype
@pytest.mark.parametrize("case", **by(CASES))
def test_attention_to_what_is_not_finite(backend, dtype, case):
    for name, tensors in poisoned(case, dtype, backend.device):
        exact = run(attend_to_visible, [x.double().cpu() for x in tensors], case.options)
        with kernels.use(backend.choice):
            found = run(kernels.causal_attention, tensors, case.options)
        for part, ours, true in zip(("out", "dq", "dk", "dv"), found, exact, strict=True):
            try:
                assert_same(ours, true, kinds=part == "out")
            except AssertionError as error:
                raise AssertionError(f"{part} with {name}: {error}") from None
