"""Rotary positions: each pair of neighbours turned by the angle of its token (Su et al. 2021)."""

from torch import Tensor

from kernels import checks, dispatch, reference
from kernels.registry import has_tangent, keep, register, statistics


def rotary(x: Tensor, angles: Tensor) -> Tensor:
    """Return x with each pair (x[2i], x[2i+1]) of its last dimension turned by angle i of its token.

    x: (B, T, H, D), D even, any strides with unit last stride; float32, float16, bfloat16 or float64. angles:
    (T, D/2) or (B, T, D/2) in float32 or float64, which get no gradient. The dtype of x stays, also under autocast.
    ValueError that names the argument for anything else.
    """
    checks.check_rotary(x, angles)
    library = dispatch.library(x.device.type)
    if library is None or has_tangent(x):
        return reference.rotate(x, angles)
    table = angles.to(statistics(x.dtype))
    table = table[None] if table.dim() == 2 else table  # (T, D/2) -> (1, T, D/2)
    return library.rotary(x, table.cos().contiguous(), table.sin().contiguous(), False)


def _fake(x, cos, sin, back):
    return x.new_empty(x.shape)


def _save(ctx, inputs, output):
    keep(ctx, *inputs[1:3])
    ctx.back = inputs[3]


def _gradients(library, ctx, grad_out):
    if grad_out is None:
        return (None,) * 4
    grad_out = grad_out if grad_out.stride(-1) == 1 else grad_out.contiguous()
    return library.rotary(grad_out, *ctx.saved_tensors, not ctx.back), None, None, None


register("rotary", _fake, _save, _gradients)
