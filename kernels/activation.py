"""The bend of an MLP with the bias before it, in one pass over memory: GELU and SwiGLU."""

import torch.nn.functional as F
from torch import Tensor

from kernels import checks, dispatch
from kernels.registry import autocast, has_tangent, keep, register


def gelu(x: Tensor, bias: Tensor | None = None, approximate: str = "tanh") -> Tensor:
    """Return GELU(x + bias) (Hendrycks and Gimpel 2016): in GPT-2's "tanh" form, or exactly, by erf ("none").

    x: (..., C) with unit last stride; bias: (C); float32, float16, bfloat16 or float64, both alike. The sum is not
    rounded before it is bent. Under autocast the bias takes the dtype of x. ValueError that names the argument for
    anything else.
    """
    x, bias = autocast(x.dtype, x, bias)
    library = dispatch.library(x.device.type)
    if library is None or has_tangent(x, bias):
        checks.check_gelu(x, bias, approximate)
        return F.gelu(x if bias is None else x + bias, approximate=approximate)
    return library.gelu(x, bias, approximate)


def swiglu(gate: Tensor, x: Tensor, gate_bias: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Return silu(gate + gate_bias) * (x + bias) (Shazeer 2020); arguments as for gelu."""
    gate, x, gate_bias, bias = autocast(x.dtype, gate, x, gate_bias, bias)
    library = dispatch.library(x.device.type)
    if library is None or has_tangent(gate, x, gate_bias, bias):
        checks.check_swiglu(gate, x, gate_bias, bias)
        opened = F.silu(gate if gate_bias is None else gate + gate_bias)
        return opened * (x if bias is None else x + bias)
    return library.swiglu(gate, x, gate_bias, bias)


def _fake_gelu(x, bias, approximate):
    checks.check_gelu(x, bias, approximate)
    return x.new_empty(x.shape)


def _fake_gelu_backward(grad_out, x, bias, approximate):
    return x.new_empty(x.shape), x.new_empty(x.shape[-1:])


def _fake_swiglu(gate, x, gate_bias, bias):
    checks.check_swiglu(gate, x, gate_bias, bias)
    return x.new_empty(x.shape)


def _fake_swiglu_backward(grad_out, gate, x, gate_bias, bias):
    return tuple(x.new_empty(shape) for shape in (x.shape, x.shape, x.shape[-1:], x.shape[-1:]))


def _save_gelu(ctx, inputs, output):
    keep(ctx, *inputs[:2])
    ctx.approximate = inputs[2]


def _gelu_gradients(library, ctx, grad_out):
    if grad_out is None:
        return None, None, None
    x, bias = ctx.saved_tensors
    grad_x, grad_bias = library.gelu_backward(grad_out, x, bias, ctx.approximate)
    return grad_x, None if bias is None else grad_bias, None


def _save_swiglu(ctx, inputs, output):
    keep(ctx, *inputs)


def _swiglu_gradients(library, ctx, grad_out):
    inputs = ctx.saved_tensors
    if grad_out is None:
        return (None,) * 4
    found = library.swiglu_backward(grad_out, *inputs)
    return tuple(None if x is None else grad for x, grad in zip(inputs, found, strict=True))


register("gelu", _fake_gelu, _save_gelu, _gelu_gradients)
register("gelu_backward", _fake_gelu_backward)
register("swiglu", _fake_swiglu, _save_swiglu, _swiglu_gradients)
register("swiglu_backward", _fake_swiglu_backward)
