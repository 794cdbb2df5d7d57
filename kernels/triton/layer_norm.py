"""LayerNorm in Triton, forward and backward (Ba et al. 2016; derived in docs/kernels/layer_norm.md)."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 64  # at most, in the backward: each keeps one line of partial sums


@triton.jit
def _forward(x, weight, bias, out, mean, rstd, size, eps, BLOCK: tl.constexpr):
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = columns < size
    values = tl.load(x + row * size + columns, mask=inside, other=0.0).to(tl.float32)
    average = tl.sum(values) / size
    centred = tl.where(inside, values - average, 0.0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred) / size + eps)
    gamma = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    beta = tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    normed = centred * scale * gamma + beta
    tl.store(out + row * size + columns, normed.to(out.dtype.element_ty), mask=inside)
    tl.store(mean + row, average)
    tl.store(rstd + row, scale)


@triton.jit
def _backward(grad_out, x, weight, mean, rstd, grad_x, partials, rows, size, BLOCK: tl.constexpr):
    first, columns = tl.program_id(0), tl.arange(0, BLOCK)
    inside = columns < size
    gamma = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    grad_weight, grad_bias = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for row in range(first, rows, tl.num_programs(0)):
        at = tl.cast(row, tl.int64) * size + columns
        grad = tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32)
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(rstd + row)
        normed = tl.where(inside, (values - tl.load(mean + row)) * scale, 0.0)
        weighted = grad * gamma
        offset, slope = tl.sum(weighted) / size, tl.sum(weighted * normed) / size
        found = scale * (weighted - offset - normed * slope)
        tl.store(grad_x + at, found.to(grad_x.dtype.element_ty), mask=inside)
        grad_weight += grad * normed
        grad_bias += grad
    line = partials + 2 * first * size + columns  # (programs, 2, C)
    tl.store(line, grad_weight, mask=inside)
    tl.store(line + size, grad_bias, mask=inside)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()  # (…, C) -> (rows, C)
        count, size = rows.shape
        out, (mean, rstd) = torch.empty_like(rows), rows.new_empty(2, count, dtype=torch.float32)
        if count:
            _forward[(count,)](rows, weight, bias, out, mean, rstd, size, eps, triton.next_power_of_2(size))
        ctx.save_for_backward(rows, weight, mean, rstd)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        (rows, size), programs = x.shape, min(PROGRAMS, len(x))
        grad_x, partials = torch.empty_like(x), x.new_zeros(programs, 2, size, dtype=torch.float32)
        grad = grad_out.reshape(rows, size).contiguous()
        if rows:
            block = triton.next_power_of_2(size)
            _backward[(programs,)](grad, x, weight, mean, rstd, grad_x, partials, rows, size, block)
        grad_weight, grad_bias = partials.sum(0).to(weight.dtype)  # (programs, 2, C) -> two of (C,)
        return grad_x.view(grad_out.shape), grad_weight, grad_bias, None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) * weight + bias over the last dimension; x (..., C), weight, bias (C)."""
    return _LayerNorm.apply(x, weight, bias, eps)
