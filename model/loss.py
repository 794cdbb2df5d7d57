"""Cross-entropy from logits with its gradient, in chunks so that a large vocabulary fits.

Grown from cross_entropy in basics/train.py. The loss of one position is -log softmax(logits)[target]; its gradient for
the logits is softmax(logits) minus the one-hot target, known as soon as the logits are. So the head's gradients are
formed in the forward pass, chunk by chunk, and never more than `logits_budget` bytes of logits (and as many of their
gradient) exist at a time.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
FLOAT16_ROWS = 1024  # positions that are summed in float16: no overflow if activations are below 64


def logits_budget(device: str) -> int:
    """Return the bytes of float32 logits in one chunk: 128 MiB on a CPU, 1 GiB on a GPU ("cuda", …).

    Every chunk adds its part to the whole gradient of the weight, 154 MB for GPT-2. On a GPU 50 chunks would take half
    as long over that as over their products, and too few rows leave its SMs idle.
    """
    return (128 if device == "cpu" else 1024) * 2**20


@torch.no_grad()
def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of each position in nats, (N,), and the gradient of their sum, (N, V); both float32.

    logits (N, V) of float32, bfloat16 or float16, targets (N,) int64. A target of -100 is ignored: loss and
    gradient are 0. The row's largest logit is subtracted before exp, which therefore cannot overflow even for logits of
    10,000.

    >>> losses, gradient = cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    >>> round(losses.item(), 4), gradient.tolist()
    (0.6931, [[0.5, -0.5]])
    """
    keep = (targets != IGNORED)[:, None]  # (N, 1)
    target = targets[:, None].where(keep, 0)  # (N, 1)
    shifted = logits - logits.amax(-1, keepdim=True).float()  # (N, V), float32 whatever the logits are
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


def softcap(logits: Tensor, cap: float) -> Tensor:
    """Return cap · tanh(logits / cap): nearly the same where small, and never beyond the cap (Gemma 2).

    >>> [round(z, 2) for z in softcap(torch.tensor([0.1, 30.0]), cap=15.0).tolist()]
    [0.1, 14.46]
    """
    return cap * torch.tanh(logits / cap)


def head_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, budget: int | None = None, cap: float | None = None
) -> tuple[Tensor | None, Tensor]:
    """Return logits hidden @ weight.T, and their mean cross-entropy over the targets that are not -100 (0 if none is).

    hidden (N, C), weight (V, C), targets (N,). The logits (N, V) are for looking at: they carry no gradient,
    and are None if they would take more than `budget` bytes in float32 (None: logits_budget), because then they never
    exist at once. All chunks but the last have the same size. With `cap` the logits are soft-capped.
    """
    budget = logits_budget(hidden.device.type) if budget is None else budget
    most = max(1, budget // (4 * len(weight)))
    chunks = max(1, math.ceil(len(hidden) / most))
    rows = max(1, math.ceil(len(hidden) / chunks))
    train = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    loss, logits = _HeadLoss.apply(hidden, weight, targets, rows, train, cap)
    count = (targets != IGNORED).sum().clamp(min=1)
    return logits, loss / count


def _part_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, train: bool, cap: float | None
) -> tuple[Tensor | None, ...]:
    """Return logits (N, V), their summed loss, and with `train` its gradients for hidden (N, C) and weight (V, C)."""
    logits = F.linear(hidden, weight)  # (N, C) -> (N, V), in autocast's dtype if it is on
    if cap is not None:
        logits = softcap(logits, cap)
    losses, gradient = cross_entropy(logits, targets)
    if cap is not None:  # the slope of tanh is 1 - tanh²
        gradient = gradient * (1 - (logits / cap).square())
    if not train:
        return logits, losses.sum(), None, None
    gradient = gradient.to(logits.dtype)
    return logits, losses.sum(), gradient @ weight, _weight_gradient(gradient, hidden)  # (N, V) @ (V, C)


def _weight_gradient(gradient: Tensor, hidden: Tensor) -> Tensor:
    """Return gradient.mT @ hidden, (V, N) @ (N, C), whose sum over positions could overflow float16 (65,504)."""
    if gradient.dtype != torch.float16:
        return gradient.mT @ hidden
    parts = zip(gradient.split(FLOAT16_ROWS), hidden.split(FLOAT16_ROWS), strict=True)
    return sum((some.mT @ rows).float() for some, rows in parts)


class _HeadLoss(torch.autograd.Function):
    """The summed loss, and the logits if one chunk of `rows` rows holds them all."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        rows: int,
        train: bool,
        cap: float | None,
    ) -> Any:
        loss, weight_grad = torch.zeros(2, device=hidden.device)
        hidden_grads = []
        for part, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = None  # free the logits of the last chunk before the next are made
            logits, part_loss, hidden_grad, update = _part_loss(part, weight, wanted, train, cap)
            loss = loss + part_loss
            if train:
                hidden_grads.append(hidden_grad)
                weight_grad = weight_grad + update.float()  # 16 bits could not hold the sum
        if train:
            ctx.save_for_backward(torch.cat(hidden_grads).to(hidden.dtype), weight_grad.to(weight.dtype))
        if len(hidden) > rows:
            return loss, None
        ctx.set_materialize_grads(False)  # else torch would allocate zeros as large as the logits
        ctx.mark_non_differentiable(logits)
        return loss, logits

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Any) -> Any:
        hidden_grad, weight_grad = ctx.saved_tensors
        return hidden_grad * scale, weight_grad * scale, None, None, None, None
