"""Cross-entropy of logits in Triton, loss and gradient (derived in docs/kernels/cross_entropy.md).

The gradient is formed in the forward pass, in a copy of the logits that is then all that is kept.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

IGNORED = -100
BLOCK = 1024  # logits that a program holds at once


@triton.jit
def _losses(logits, targets, losses, scale, size, IGNORED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    target, line = tl.load(targets + row), logits + row * size
    if target == IGNORED:
        tl.store(losses + row, 0.0)
        for start in range(0, size, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            tl.store(line + columns, tl.zeros((BLOCK,), logits.dtype.element_ty), mask=columns < size)
        return
    # the maximum and the sum of the powers together (Milakov and Gimelshein 2018)
    largest, total = tl.full((), -float("inf"), tl.float32), tl.zeros((), tl.float32)
    for start in range(0, size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(line + columns, mask=columns < size, other=-float("inf")).to(tl.float32)
        found = tl.maximum(largest, tl.max(values))
        total = total * tl.exp(largest - found) + tl.sum(tl.exp(values - found))
        largest = found
    true_logit = tl.load(line + target).to(tl.float32)
    tl.store(losses + row, tl.log(total) + largest - true_logit)
    factor = tl.load(scale)
    for start in range(0, size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(line + columns, mask=columns < size, other=-float("inf")).to(tl.float32)
        gradient = tl.exp(values - largest) / total - tl.where(columns == target, 1.0, 0.0)
        tl.store(line + columns, (gradient * factor).to(logits.dtype.element_ty), mask=columns < size)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        rows, size = logits.shape
        losses = logits.new_zeros(rows, dtype=torch.float32)
        scale = 1 / (targets != IGNORED).sum().clamp(min=1).float()
        gradient = logits.clone(memory_format=torch.contiguous_format)
        if rows:
            _losses[(rows,)](gradient, targets, losses, scale, size, IGNORED, BLOCK)
        ctx.save_for_backward(gradient)
        return losses.sum() * scale

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss.to(gradient.dtype), None


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss in nats over the targets that are not -100 (0 if none is); logits (N, V), targets (N)."""
    return _CrossEntropy.apply(logits, targets)
