"""RMSNorm in Triton, forward and backward (Zhang and Sennrich 2019; derived in docs/kernels/rms_norm.md)."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 64  # at most, in the backward: each keeps one line of partial sums


@triton.jit
def _forward(x, weight, out, rstd, size, eps, BLOCK: tl.constexpr):
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = columns < size
    values = tl.load(x + row * size + columns, mask=inside, other=0.0).to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(values * values) / size + eps)
    gamma = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + columns, (values * scale * gamma).to(out.dtype.element_ty), mask=inside)
    tl.store(rstd + row, scale)


@triton.jit
def _backward(grad_out, x, weight, rstd, grad_x, partials, rows, size, BLOCK: tl.constexpr):
    first, columns = tl.program_id(0), tl.arange(0, BLOCK)
    inside = columns < size
    gamma = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    grad_weight = tl.zeros((BLOCK,), tl.float32)
    for row in range(first, rows, tl.num_programs(0)):
        at = tl.cast(row, tl.int64) * size + columns
        grad = tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(rstd + row)
        normed = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * scale
        weighted = grad * gamma
        found = scale * (weighted - normed * (tl.sum(weighted * normed) / size))
        tl.store(grad_x + at, found.to(grad_x.dtype.element_ty), mask=inside)
        grad_weight += grad * normed
    tl.store(partials + first * size + columns, grad_weight, mask=inside)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()  # (…, C) -> (rows, C)
        count, size = rows.shape
        out, rstd = torch.empty_like(rows), rows.new_empty(count, dtype=torch.float32)
        if count:
            _forward[(count,)](rows, weight, out, rstd, size, eps, triton.next_power_of_2(size))
        ctx.save_for_backward(rows, weight, rstd)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        (rows, size), programs = x.shape, min(PROGRAMS, len(x))
        grad_x, partials = torch.empty_like(x), x.new_zeros(programs, size, dtype=torch.float32)
        grad = grad_out.reshape(rows, size).contiguous()
        if rows:
            block = triton.next_power_of_2(size)
            _backward[(programs,)](grad, x, weight, rstd, grad_x, partials, rows, size, block)
        return grad_x.view(grad_out.shape), partials.sum(0).to(weight.dtype), None


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Return x / sqrt(mean(x²) + eps) * weight over the last dimension; x (..., C), weight (C)."""
    return _RMSNorm.apply(x, weight, eps)
