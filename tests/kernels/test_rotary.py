"""rotary on every backend, against float64, and what makes it useful: only distances count."""

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import reference
from model.layers import position_angles
from tests.kernels import cases
from tests.kernels.cases import by, each_backend, each_dtype

SHAPES = [(1, 1, 1, 2), (2, 17, 3, 6), (1, 97, 2, 64), (3, 5, 4, 30), (0, 8, 2, 16), (2, 0, 2, 16)]


@each_backend
@each_dtype
@pytest.mark.parametrize("shape", **by(SHAPES))
@pytest.mark.parametrize("per_row", [False, True])
def test_rotary_is_as_exact_as_torch(backend, dtype, shape, per_row):
    batch, length, _, width = shape
    positions = torch.arange(length) + 3 * torch.arange(batch)[:, None] if per_row else torch.arange(length)
    angles = position_angles(positions, width).to(backend.device)
    x = cases.randn(*shape).to(backend.device, dtype)
    grad = cases.randn(*shape, seed=1).to(backend.device, dtype)
    found = []
    with kernels.use(backend.choice):
        for op, leaf, table in (
            (kernels.rotary, x, angles),
            (reference.rotate, x, angles),
            (reference.rotate, x.cpu().double(), angles.cpu().double()),
        ):
            leaf = leaf.detach().requires_grad_()
            out = op(leaf, table)
            found.append((out, *torch.autograd.grad(out, leaf, grad.to(out.dtype).to(out.device))))
    for ours, torchs, exact in zip(*found, strict=True):
        cases.assert_as_exact_as(ours, torchs, exact, factor=2)


@each_backend
def test_any_strides_will_do(backend):
    qkv = cases.randn(2, 9, 6, 16, dtype=torch.float32, device=backend.device)
    angles = position_angles(torch.arange(9), 16).to(backend.device)
    with kernels.use(backend.choice):
        for x in (qkv[:, :, 1:4], qkv.transpose(1, 2)[:, :, :6].transpose(1, 2)[:, :9]):
            table = angles[: x.shape[1]]
            torch.testing.assert_close(kernels.rotary(x, table), reference.rotate(x, table))


@each_backend
def test_a_product_depends_on_the_distance_alone(backend):
    q, k = (cases.randn(1, 1, 1, 32, seed=i, device=backend.device).expand(1, 50, 1, 32) for i in range(2))
    angles = position_angles(torch.arange(50), 32).to(backend.device)
    with kernels.use(backend.choice):
        q, k = kernels.rotary(q, angles), kernels.rotary(k, angles)
    products = (q[0, :, 0] @ k[0, :, 0].T).cpu()  # (T, T)
    for distance in (0, 1, 20):
        diagonal = products.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)


@each_backend
@each_dtype
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("width", [6, 64])
def test_attention_turns_q_and_k_as_exactly_as_torch_does_before_it(backend, dtype, packed, width):
    angles = position_angles(torch.arange(70), width).to(backend.device)
    qkv = cases.randn(2, 70, 3, 2, width, dtype=dtype, device=backend.device)
    grad = cases.randn(2, 70, 2, width, seed=1, dtype=dtype, device=backend.device)

    def in_one(qkv):
        if packed:
            return kernels.causal_attention_qkvpacked(qkv, angles=angles)
        return kernels.causal_attention(*qkv.unbind(2), angles=angles)

    def before_it(qkv, angles=angles):
        q, k, v = qkv.unbind(2)
        q, k = reference.rotate(q, angles), reference.rotate(k, angles)
        return F.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q, k, v)), is_causal=True
        ).transpose(1, 2)

    found = []
    with kernels.use(backend.choice):
        for op, leaf in ((in_one, qkv), (before_it, qkv), (before_it, qkv.cpu().double())):
            leaf = leaf.detach().requires_grad_()
            out = op(leaf)
            found.append((out, *torch.autograd.grad(out, leaf, grad.to(leaf.device, leaf.dtype))))
    for i, (ours, torchs, exact) in enumerate(zip(*found, strict=True)):
        cases.assert_as_exact_as(ours, torchs, exact, factor=3 if i else 2)


@each_backend
def test_attention_refuses_angles_that_do_not_fit(backend):
    q = torch.ones(1, 9, 2, 8, device=backend.device)
    with kernels.use(backend.choice), pytest.raises(ValueError, match="angles has shape"):
        kernels.causal_attention(q, q, q, angles=torch.ones(8, 4, device=backend.device))
