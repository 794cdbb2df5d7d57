"""The reference against torch, and its two derived backward passes against autograd."""

import pytest
import torch
import torch.nn.functional as F

from kernels import reference
from tests.kernels import cases
from tests.kernels.cases import AttentionCase, by

CASES = [c for c in cases.ATTENTION_CASES if c.length and c.batch and not c.dropout_p]


@pytest.mark.parametrize("case", **by(CASES))
def test_attention_is_torchs(case):
    q, k, v = cases.attention_inputs(case, torch.float64, "cpu")
    seen = reference.seen(case.length, case.window)
    expected = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)),
        attn_mask=seen,
        scale=case.scale,
        enable_gqa=True,
    )
    found = reference.causal_attention(q, k, v, scale=case.scale, window=case.window)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", **by([c for c in cases.NORM_CASES if 0 not in c.shape and c.spread]))
def test_layer_norm_is_torchs(case):
    x = cases.norm_inputs(case, torch.float64, "cpu")
    weight, bias = cases.randn(case.shape[-1], seed=1), cases.randn(case.shape[-1], seed=2)
    torch.testing.assert_close(
        reference.layer_norm(x, weight, bias),
        F.layer_norm(x, weight.shape, weight, bias),
        rtol=1e-9,
        atol=1e-9,
    )


def test_the_derived_backward_of_layer_norm_is_autograds():
    x, weight, bias = (cases.randn(*shape).requires_grad_() for shape in ((4, 3, 19), (19,), (19,)))
    grad = cases.randn(4, 3, 19, seed=3)
    expected = torch.autograd.grad(reference.layer_norm(x, weight, bias), (x, weight, bias), grad)
    torch.testing.assert_close(reference.layer_norm_backward(grad, x, weight), expected)


@pytest.mark.parametrize("window", [None, 5])
def test_the_derived_backward_of_attention_is_autograds(window):
    q, k, v = cases.to_exact(cases.attention_inputs(AttentionCase(2, 21, 2, 8), torch.float64, "cpu"))
    grad = cases.randn(*q.shape, seed=3)
    expected = torch.autograd.grad(reference.causal_attention(q, k, v, window=window), (q, k, v), grad)
    torch.testing.assert_close(reference.causal_attention_backward(grad, q, k, v, window=window), expected)
