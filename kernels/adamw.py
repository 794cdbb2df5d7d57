"""One step of AdamW for all parameters in one call (Loshchilov and Hutter 2017, algorithm 2)."""

from collections.abc import Sequence

from torch import Tensor

from kernels import checks, dispatch, reference
from kernels.registry import register


def adamw_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    averages: Sequence[Tensor],
    squares: Sequence[Tensor],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    gradient_scale: float = 1.0,
) -> None:
    """Move the parameters, and their averages of the gradient and of its square, in place.

    Four lists in one order; in each place contiguous float32 tensors of one shape. step counts from 1. The gradients
    are read times `gradient_scale`, so that clipping costs no pass of its own. ValueError for anything else.
    """
    lists = [list(each) for each in (parameters, gradients, averages, squares)]
    library = dispatch.library(parameters[0].device.type) if lists[0] else None
    options = step, lr, *betas, eps, weight_decay, gradient_scale
    if library is None:
        checks.check_adamw(*lists, step)
        reference.adamw_(*lists, *options)
    else:
        library.adamw_(*lists, *options)


def _fake(parameters, gradients, averages, squares, *_):
    return None


register("adamw_", _fake)
