"""RMSNorm, alone and after a residual addition: layer norm without the mean (Zhang and Sennrich 2019)."""

import torch.nn.functional as F
from torch import Tensor

from kernels import checks, dispatch
from kernels.registry import autocast, has_tangent, keep, register, statistics


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Return x / sqrt(mean(x²) + eps) * weight over the last dimension.

    x: (..., C) with unit last stride; weight: (C); float32, float16, bfloat16 or float64, both alike. Statistics
    are float32 or better. Under autocast the weight takes the dtype of x. ValueError that names the argument for
    anything else.
    """
    x, weight = autocast(x.dtype, x, weight)
    library = dispatch.library(x.device.type)
    if library is None or has_tangent(x, weight):
        checks.check_layer_norm(x, None, weight, None, eps)
        return F.rms_norm(x, weight.shape, weight, eps)
    return library.rms_norm(x, weight, eps)[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Return rms_norm(x + residual) and x + residual, in one pass over memory; arguments as for rms_norm.

    The sum is rounded to the dtype of x before it is normalized, as if the two were separate ops. Under autocast
    all but float64 take the dtype of the residual.
    """
    x, residual, weight = autocast(residual.dtype, x, residual, weight)
    library = dispatch.library(x.device.type)
    if library is None or has_tangent(x, residual, weight):
        checks.check_layer_norm(x, residual, weight, None, eps)
        total = x + residual
        return F.rms_norm(total, weight.shape, weight, eps), total
    return library.add_rms_norm(x, residual, weight, eps)[:2]


def _fake(x, weight, eps):
    checks.check_layer_norm(x, None, weight, None, eps)
    return x.new_empty(x.shape), _fake_rstd(x)


def _fake_add(x, residual, weight, eps):
    checks.check_layer_norm(x, residual, weight, None, eps)
    return x.new_empty(x.shape), x.new_empty(x.shape), _fake_rstd(x)


def _fake_rstd(x):
    return x.new_empty(x.numel() // x.shape[-1], dtype=statistics(x.dtype))


def _fake_backward(grad_out, x, weight, rstd, grad_residual):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _save(ctx, inputs, output):
    x, weight, _ = inputs
    keep(ctx, x, weight, output[-1], without_gradient=output[1:])


def _save_add(ctx, inputs, output):
    keep(ctx, output[1], inputs[2], output[-1], without_gradient=output[2:])


def _gradients(library, ctx, grad_out, *_):
    if grad_out is None:
        return None, None, None
    return *library.rms_norm_backward(grad_out, *ctx.saved_tensors, None), None


def _add_gradients(library, ctx, grad_out, grad_sum, *_):
    if grad_out is None:
        return grad_sum, grad_sum, None, None
    grad_x, grad_weight = library.rms_norm_backward(grad_out, *ctx.saved_tensors, grad_sum)
    return grad_x, grad_x, grad_weight, None


register("rms_norm", _fake, _save, _gradients)
register("add_rms_norm", _fake_add, _save_add, _add_gradients)
register("rms_norm_backward", _fake_backward)
