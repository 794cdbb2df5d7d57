"""Cross-entropy of a language model's head, from the hidden states, without the logits of all tokens at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import checks, dispatch
from kernels.registry import has_tangent, keep, register, statistics

IGNORED = -100
# Bytes of logits in one chunk. On a CPU a chunk of few rows would read and write the whole gradient of the weight for
# little work; on a GPU it would leave multiprocessors idle.
BUDGET = {"cpu": 32 * 2**20, "cuda": 2**30}
FLOAT16_ROWS = 1024  # that a product sums in float16: no overflow where activations are below 64


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, budget: int | None = None
) -> Tensor:
    """Return the mean cross-entropy, in nats, of the logits hidden @ weight.T; 0 if every target is ignored.

    hidden: (N, C); weight: (V, C); targets: (N) int64 in 0..V-1, or -100 to be ignored. float32, float16, bfloat16
    or float64; under autocast the products are in its dtype, and losses and sums always in float32 or better. No
    more than `budget` bytes of logits (None: BUDGET), or one row of them, exist at once. The gradients are formed
    in the forward pass, when autograd is on. Returns a scalar. ValueError that names the argument for anything
    else; on a GPU, where looking would stop its queue, a wrong target makes the loss NaN.
    """
    checks.check_linear_cross_entropy(hidden, weight, targets)
    device = hidden.device.type
    dtype = _product_dtype(hidden, weight)
    library = dispatch.library(device)
    if library is None or has_tangent(hidden, weight):
        checks.check_targets(targets, len(weight), IGNORED)
        return _plain(hidden, weight, targets)
    budget = BUDGET.get(device, BUDGET["cuda"]) if budget is None else budget
    most = max(1, budget // (dtype.itemsize * weight.shape[0]))
    most = min(most, FLOAT16_ROWS) if dtype == torch.float16 else most
    chunks = max(1, -(-hidden.shape[0] // most))
    rows = max(1, -(-hidden.shape[0] // chunks))  # of equal size but for the last
    gradients = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return library.linear_cross_entropy(hidden, weight, targets, dtype, rows, gradients)[0]


def _product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Autocast's dtype, where that is on, as for any product of matrices; float64 stays."""
    device = hidden.device.type
    if hidden.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    checks.check(
        hidden.dtype == weight.dtype,
        f"weight has dtype {weight.dtype} but hidden has {hidden.dtype}: convert one with .to(dtype)",
    )
    return hidden.dtype


def _plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, weight)  # (N, C) -> (N, V)
    logits = logits.to(statistics(logits.dtype))
    total = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)


def _fake(hidden, weight, targets, dtype, rows, gradients):
    checks.check_linear_cross_entropy(hidden, weight, targets)
    loss = hidden.new_empty((), dtype=statistics(dtype))
    if not gradients:
        return loss, hidden.new_empty((0, 0)), weight.new_empty((0, 0))
    return loss, hidden.new_empty(hidden.shape), weight.new_empty(weight.shape)


def _save(ctx, inputs, output):
    keep(ctx, *inputs[:2], *output[1:], without_gradient=output[1:])
    ctx.has_gradients = inputs[-1]


def _gradients(library, ctx, grad_loss, *_):
    if grad_loss is None:
        return (None,) * 6
    if not ctx.has_gradients:
        raise RuntimeError("linear_cross_entropy was called with gradients=False: it has no backward pass")
    hidden, weight, *gradients = ctx.saved_tensors
    if not _is_one(grad_loss):
        gradients = library.linear_cross_entropy_backward(grad_loss, hidden, weight, *gradients)
    return *gradients, None, None, None, None


def _is_one(factor: Tensor) -> bool:
    """True if no pass over the gradients is needed: the factor is known to be 1, and nothing more is derived."""
    known = type(factor) is Tensor and factor.device.type == "cpu" and not torch.compiler.is_compiling()
    return known and not torch.is_grad_enabled() and factor.item() == 1


register("linear_cross_entropy", _fake, _save, _gradients)
