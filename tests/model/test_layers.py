"""The parts, each against torch's own op, a formula in float64, or complex numbers."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kernels.reference import rotate
from model.layers import MLP, LayerNorm, RMSNorm, SinusoidalPositions, SwiGLU, position_angles


def rms_norm(x):
    return (x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt()).to(x.dtype)


NORMS = {
    "layernorm": (LayerNorm(24), lambda x: F.layer_norm(x, (24,))),
    "rmsnorm": (RMSNorm(24), rms_norm),
}


@pytest.mark.parametrize("part", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_equal_torchs_or_the_formula_forward_and_backward(part, dtype, chosen):
    module, theirs = NORMS[part]
    module = copy.deepcopy(module).to(dtype)
    x = (torch.randn(5, 7, 24) * 3 + 1).to(dtype).requires_grad_()
    y, again = x.detach().clone().requires_grad_(), torch.randn(5, 7, 24).to(dtype)
    module(x).backward(again)
    theirs(y).backward(again)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(module(x), theirs(y), **tolerance)
    torch.testing.assert_close(x.grad, y.grad, **tolerance)


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm])
def test_add_gives_the_norm_of_the_sum_and_the_sum(norm, chosen):
    x, residual = torch.randn(2, 4, 6, 24)
    module = norm(24)
    normed, total = module.add(x, residual)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(normed, module(x + residual))


def test_layernorm_survives_a_mean_far_from_zero(chosen):
    x = torch.randn(4, 64) + 1e4
    exact = F.layer_norm(x.double(), (64,)).float()
    torch.testing.assert_close(LayerNorm(64)(x), exact, rtol=1e-3, atol=1e-3)


def test_sinusoidal_positions_follow_the_formula():
    width, positions = 12, np.arange(50)[:, None]
    column = np.arange(width)[None]
    angle = positions / 10000 ** (2 * (column // 2) / width)
    expected = np.where(column % 2 == 0, np.sin(angle), np.cos(angle))
    ours = SinusoidalPositions(width)(torch.arange(50))
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)


def test_rotary_positions_are_a_product_of_complex_numbers():
    x = torch.randn(2, 9, 3, 8, dtype=torch.float64)
    frequency = 10000.0 ** -(torch.arange(4, dtype=torch.float64) / 4)
    turns = torch.polar(torch.ones(9, 4, dtype=torch.float64), torch.arange(9)[:, None] * frequency)
    expected = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 2))) * turns[:, None]).flatten(-2)
    ours = rotate(x.float(), position_angles(torch.arange(9), 8))
    torch.testing.assert_close(ours, expected.float(), rtol=1e-5, atol=1e-5)


def test_a_rotated_dot_product_knows_only_the_distance():
    q, k = torch.randn(2, 1, 1, 1, 16)

    def score(i, j):
        at = position_angles(torch.tensor([[i], [j]]), 16)
        return (rotate(q, at[:1]) * rotate(k, at[1:])).sum()

    torch.testing.assert_close(score(3, 1), score(103, 101), rtol=1e-4, atol=1e-4)
    assert (score(3, 1) - score(5, 1)).abs() > 1e-3


def test_mlps_equal_the_same_arithmetic_on_their_weights():
    x = torch.randn(3, 8)
    mlp, swiglu = MLP(8, 20, nn.ReLU()), SwiGLU(8, 20, bias=False)
    expected = F.relu(x @ mlp.c_fc.weight.T + mlp.c_fc.bias) @ mlp.c_proj.weight.T + mlp.c_proj.bias
    torch.testing.assert_close(mlp(x), expected)
    gated = F.silu(x @ swiglu.c_gate.weight.T) * (x @ swiglu.c_fc.weight.T)
    torch.testing.assert_close(swiglu(x), gated @ swiglu.c_proj.weight.T)
