"""Cross-entropy from logits, written out once, and taken in chunks so that a large vocabulary fits.

The loss of one position is -log softmax(logits)[target]; its gradient for the logits is softmax(logits) minus
the one-hot target, known as soon as the logits are. So the head's gradients are formed in the forward pass,
chunk by chunk, and no more than LOGITS_BUDGET bytes of logits (and as much for their gradient) exist at a
time.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
LOGITS_BUDGET = 128 * 2**20


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of each position in nats, (N,), and the probabilities, (N, V), both float32.

    logits (N, V) of any float dtype, targets (N,) int64; a target of -100 is ignored, its loss 0. The row's
    largest logit is subtracted first, so that exp cannot overflow.

    >>> losses, probabilities = cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    >>> round(losses.item(), 4), probabilities.tolist()
    (0.6931, [[0.5, 0.5]])
    """
    logits, keep = logits.float(), targets != IGNORED
    picked = logits.gather(-1, targets.where(keep, 0)[:, None])  # (N, 1)
    peak = logits.amax(-1, keepdim=True)
    powers = (logits - peak).exp()
    total = powers.sum(-1, keepdim=True)
    losses = (peak - picked + total.log())[:, 0] * keep
    return losses, powers / total


def head_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, budget: int = LOGITS_BUDGET
) -> tuple[Tensor | None, Tensor]:
    """Logits hidden @ weight.T and their mean cross-entropy over the targets that are not -100 (0 if none
    is).

    hidden (N, C), weight (V, C), targets (N,). The logits (N, V) are for looking at: they carry no gradient,
    and are None where they would take more than `budget` bytes in float32, because then they never exist at
    once.
    """
    rows = max(1, budget // (4 * len(weight)))
    train = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss, logits = _HeadLoss.apply(hidden, weight, targets, rows, train)
    count = (targets != IGNORED).sum().clamp(min=1)
    return logits, loss / count


class _HeadLoss(torch.autograd.Function):
    """The summed loss, and the logits where one chunk of `rows` rows holds them all."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: int, train: bool) -> Any:
        loss = torch.zeros((), device=hidden.device)
        hidden_grads, weight_grad, logits = [], torch.zeros((), device=hidden.device), None
        for part, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = F.linear(part, weight)  # (rows, C) -> (rows, V), in autocast's dtype where it is on
            losses, probabilities = cross_entropy(logits, wanted)
            loss = loss + losses.sum()
            if train:
                gradient = _logits_gradient(probabilities, wanted).to(logits.dtype)
                hidden_grads.append(gradient @ weight)
                weight_grad = weight_grad + gradient.mT @ part
        if train:
            ctx.save_for_backward(torch.cat(hidden_grads).to(hidden.dtype), weight_grad.to(weight.dtype))
        if len(hidden) > rows:
            return loss, None
        ctx.mark_non_differentiable(logits)
        return loss, logits

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Any) -> Any:
        hidden_grad, weight_grad = ctx.saved_tensors
        return hidden_grad * scale, weight_grad * scale, None, None, None


def _logits_gradient(probabilities: Tensor, targets: Tensor) -> Tensor:
    """softmax - onehot(target), zero in ignored rows; reuses the memory of `probabilities`."""
    keep = (targets != IGNORED)[:, None]  # (N, 1)
    target = targets[:, None].where(keep, 0)
    return probabilities.scatter_add_(-1, target, -torch.ones_like(target, dtype=torch.float32)).mul_(keep)
