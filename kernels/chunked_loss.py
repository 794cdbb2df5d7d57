"""linear_cross_entropy in PyTorch's own ops, in chunks so that a large vocabulary fits.

What runs where no kernels do, and for soft-capped logits, which they do not take. Grown from cross_entropy in
basics/train.py. The loss of one position is -log softmax(logits)[target]; its gradient for the logits is
softmax(logits) minus the one-hot target, known as soon as the logits are. So the head's gradients are formed in the
forward pass, chunk by chunk, and never more than `budget` bytes of logits (and as many of their gradient) exist at a
time.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kernels.dispatch import statistics
from kernels.reference import softcap

IGNORED = -100  # the target that counts for no loss
# Rows of a chunk: products of single rows are slow, and some libraries sum them one number after another.
LEAST_ROWS = 8
FLOAT16_ROWS = 1024  # positions that are summed in float16: no overflow if activations are below 64


def default_budget(device: str) -> int:
    """Return the bytes of float32 logits in one chunk: 128 MiB on a CPU, 1 GiB on a GPU ("cuda", …).

    Every chunk adds its part to the whole gradient of the weight, 154 MB for GPT-2. On a GPU 50 chunks would take half
    as long over that as over their products, and too few rows leave its SMs idle.
    """
    return (128 if device == "cpu" else 1024) * 2**20


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, budget: int | None = None, cap: float | None = None
) -> Tensor:
    """Do as kernels.linear_cross_entropy, without checks. All chunks but the last have the same size."""
    budget = default_budget(hidden.device.type) if budget is None else budget
    most = max(LEAST_ROWS, budget // (4 * len(weight)))
    chunks = max(1, math.ceil(len(hidden) / most))
    rows = max(1, math.ceil(len(hidden) / chunks))
    train = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss = _SummedLoss.apply(hidden, weight, targets, rows, train, cap)
    return loss / (targets != IGNORED).sum().clamp(min=1)


@torch.no_grad()
def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of each position in nats, (N,), and the gradient of their sum, (N, V); float32 or better.

    logits (N, V) of any floating dtype, targets (N,) int64. A target of -100 is ignored: loss and gradient are 0. The
    row's largest logit is subtracted before exp, which therefore cannot overflow even for logits of 10,000.

    >>> losses, gradient = cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    >>> round(losses.item(), 4), gradient.tolist()
    (0.6931, [[0.5, -0.5]])
    """
    keep = (targets != IGNORED)[:, None]  # (N, 1)
    target = targets[:, None].where(keep, 0)  # (N, 1)
    shifted = logits - logits.amax(-1, keepdim=True).to(statistics(logits.dtype))  # (N, V), never 16 bits
    true = shifted.gather(-1, target)  # (N, 1)
    powers = shifted.exp_()
    total = powers.sum(-1, keepdim=True)
    losses = (total.log() - true) * keep
    # softmax, in the memory of the powers; divided by infinity, the row of an ignored target becomes 0
    gradient = powers.div_(total.where(keep, math.inf))
    if torch.compiler.is_compiling():  # it fuses a comparison into the loops around it, but no scatter
        hit = torch.arange(logits.shape[-1], device=logits.device) == target  # (V,), (N, 1) -> (N, V)
        gradient = gradient - (hit & keep).to(gradient.dtype)
    else:
        gradient.scatter_add_(-1, target, -keep.to(gradient.dtype))
    return losses[:, 0], gradient


def _part_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, train: bool, cap: float | None
) -> tuple[Tensor | None, ...]:
    """Return the summed loss, and with `train` its gradients for hidden (N, C) and weight (V, C)."""
    logits = F.linear(hidden, weight)  # (N, C) -> (N, V), in autocast's dtype if it is on
    if cap is not None:
        logits = softcap(logits, cap)
    losses, gradient = cross_entropy(logits, targets)
    if cap is not None:  # the slope of tanh is 1 - tanh²
        gradient = gradient * (1 - (logits / cap).square())
    if not train:
        return losses.sum(), None, None
    gradient = gradient.to(logits.dtype)
    return losses.sum(), gradient @ weight, _weight_gradient(gradient, hidden)  # (N, V) @ (V, C)


def _weight_gradient(gradient: Tensor, hidden: Tensor) -> Tensor:
    """Return gradient.mT @ hidden, (V, N) @ (N, C), whose sum over positions could overflow float16 (65,504)."""
    if gradient.dtype != torch.float16:
        return gradient.mT @ hidden
    parts = zip(gradient.split(FLOAT16_ROWS), hidden.split(FLOAT16_ROWS), strict=True)
    return sum((some.mT @ rows).float() for some, rows in parts)


class _SummedLoss(torch.autograd.Function):
    """The loss of all positions, formed from `rows` of them at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        rows: int,
        train: bool,
        cap: float | None,
    ) -> Tensor:
        loss, weight_grad = torch.zeros(2, device=hidden.device, dtype=statistics(hidden.dtype))
        hidden_grads = []
        for part, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
            part_loss, hidden_grad, update = _part_loss(part, weight, wanted, train, cap)
            loss = loss + part_loss
            if train:
                hidden_grads.append(hidden_grad)
                weight_grad = weight_grad + update.to(weight_grad.dtype)  # 16 bits could not hold the sum
        if train:
            ctx.save_for_backward(torch.cat(hidden_grads).to(hidden.dtype), weight_grad.to(weight.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> Any:
        hidden_grad, weight_grad = (x * scale.to(x.dtype) for x in ctx.saved_tensors)
        return hidden_grad, weight_grad, None, None, None, None
