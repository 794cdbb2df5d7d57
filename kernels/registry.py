"""How an op becomes known to torch: its fake implementation for tracing, and its derivative."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from kernels import dispatch

Context = Any  # torch's autograd context
# (library, context, gradients of the results) -> gradients of the inputs
Gradients = Callable[..., tuple[Tensor | None, ...]]


def register(
    op: str, fake: Callable, save: Callable | None = None, gradients: Gradients | None = None
) -> None:
    """Registers an op of every library that is loaded; `save` and `gradients` only if it has a derivative.

    `save(ctx, inputs, output)` keeps what `gradients(library, ctx, *grads)` needs.
    """
    for name in dispatch.libraries():
        torch.library.register_fake(f"{name}::{op}", fake)
        if gradients is not None:
            torch.library.register_autograd(
                f"{name}::{op}", _bound(gradients, getattr(torch.ops, name)), setup_context=save
            )


def _bound(gradients: Gradients, library: Any) -> Callable:
    return lambda ctx, *grads: gradients(library, ctx, *grads)


def keep(ctx: Context, *tensors: Tensor | None, without_gradient: tuple[Tensor, ...] = ()) -> None:
    """Saves tensors for the backward pass; missing gradients then arrive as None, not as zeros."""
    ctx.save_for_backward(*tensors)
    ctx.mark_non_differentiable(*without_gradient)
    ctx.set_materialize_grads(False)


def autocast(dtype: torch.dtype, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in `dtype` where autocast is on; float64 stays, as in torch."""
    if not torch.is_autocast_enabled(tensors[0].device.type):
        return tensors
    return tuple(x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def statistics(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and statistics: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def has_tangent(*tensors: Tensor | None) -> bool:
    """True if a forward-mode derivative with respect to any of them is being taken."""
    if forward_ad._current_level < 0:
        return False
    return any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors)
