"""The public ops, with what torch needs of them: the shapes of their results and their derivatives.

Every op has a schema in csrc/ops.cpp and is in torch.ops.slm (torch.ops.slm_emulated holds the same ops on
the emulator). Here each gets a fake implementation, so that torch.compile can trace it, and a formula for
autograd. The ops can be differentiated once; a second derivative is refused. Forward-mode derivatives
(torch.func.jvp) are those of the formulas in reference.py, which run in place of the kernels there.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels import checks, dispatch, eager, reference
from kernels.registry import has_tangent

_Context = Any  # torch's autograd context


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) * weight + bias over the last dimension (Ba et al. 2016).

    x: (..., C) with unit last stride; weight, bias: (C); float32, float16, bfloat16 or float64, all alike.
    Statistics are float32 or better. Under autocast weight and bias take the dtype of x: torch's own on a GPU
    would turn x into float32, and move twice the bytes for the same statistics. Returns (..., C). ValueError
    that names the argument for anything else.
    """
    checks.check_tensors(x=x, weight=weight)
    checks.check_number("eps", eps)
    x, weight, bias = _autocast(x.dtype, x, weight, bias)
    library = dispatch.library(x.device.type)
    if library is None or has_tangent(x, weight, bias):
        checks.check_layer_norm(x, None, weight, bias, eps)
        return eager.layer_norm(x, weight, bias, eps)
    return library.layer_norm(x, weight, bias, eps)[0]


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Return layer_norm(x + residual) and x + residual, in one pass over memory; arguments as for layer_norm.

    The sum is rounded to the dtype of x before it is normalized, as if the two were separate ops. Under
    autocast all but float64 take the dtype of the residual.
    """
    checks.check_tensors(x=x, residual=residual, weight=weight)
    checks.check_number("eps", eps)
    x, residual, weight, bias = _autocast(residual.dtype, x, residual, weight, bias)
    library = dispatch.library(x.device.type)
    if library is None or has_tangent(x, residual, weight, bias):
        checks.check_layer_norm(x, residual, weight, bias, eps)
        return eager.add_layer_norm(x, residual, weight, bias, eps)
    return library.add_layer_norm(x, residual, weight, bias, eps)[:2]


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    window: int | None = None,
    deterministic: bool = True,
) -> Tensor:
    """Return softmax(q kᵀ scale) v, query i seeing the keys j <= i, without a T x T matrix (Dao et al. 2022).

    q: (B, T, H, D), k and v: (B, T, Hkv, D), any strides with unit last stride, D in 1..128, Hkv a divisor of
    H; float32, float16, bfloat16 or float64, all alike; autocast casts to its own dtype. scale defaults to 1
    / sqrt(D). With a window, query i sees only i - window < j <= i. Dropout zeroes each weight with
    probability dropout_p (rounded to 1/65536) and divides the others by exactly the probability of staying;
    its mask depends on seed, batch, head, row and column alone. Without a seed one is drawn from torch's
    generator of the device; a seed that is a tensor, one int64 on the device of q, is read by the kernel
    itself, so that a CUDA graph can change it. deterministic=False lets the backward on a GPU add up the gradient
    of q atomically where that is faster: more than 128 tokens in 16 bits; its last bits then vary from run to run.

    Returns (B, T, H, D). ValueError that names the argument for anything else.
    """
    checks.check_tensors(q=q, k=k, v=v)
    scale = _scale(q, scale)
    checks.check_attention_options(scale, window, dropout_p)
    q, k, v = _autocast(None, q, k, v)
    seed = _seed(seed, dropout_p, q.device)
    library = dispatch.library(q.device.type)
    tangents = has_tangent(q, k, v)
    if library is None or tangents:
        checks.check_attention(q, k, v, scale, window, dropout_p)
        formula = reference.causal_attention if tangents else eager.causal_attention
        return formula(q, k, v, scale=scale, window=window, dropout_p=dropout_p, seed=seed)
    return library.causal_attention(q, k, v, scale, window, dropout_p, seed, deterministic)[0]


def causal_attention_qkvpacked(
    qkv: Tensor,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    window: int | None = None,
    deterministic: bool = True,
) -> Tensor:
    """Return causal_attention of q, k, v = qkv.unbind(2), with one packed gradient; qkv: (B, T, 3, H, D).

    Everything else is as there. Returns (B, T, H, D).
    """
    checks.check_tensors(qkv=qkv)
    library = dispatch.library(qkv.device.type)
    if library is None or has_tangent(qkv):
        checks.check_packed(qkv)
        options = {"scale": scale, "window": window, "dropout_p": dropout_p, "seed": seed}
        return causal_attention(*qkv.unbind(2), **options, deterministic=deterministic)
    scale = _scale(qkv, scale)
    checks.check_attention_options(scale, window, dropout_p)
    (qkv,) = _autocast(None, qkv)
    seed = _seed(seed, dropout_p, qkv.device)
    return library.causal_attention_qkvpacked(qkv, scale, window, dropout_p, seed, deterministic)[0]


def _scale(q: Tensor, scale: float | None) -> float:
    return (max(1, q.shape[-1]) if q.dim() else 1) ** -0.5 if scale is None else scale


def _seed(seed: int | Tensor | None, dropout_p: float, device: torch.device) -> Tensor | None:
    """Return one int64 on the device if there is dropout, else None. ValueError for another tensor."""
    if not dropout_p:
        return None
    if seed is None:
        return _drawn_seed(device)
    if not isinstance(seed, Tensor):
        checks.check_integer("seed", seed)
        checks.check(-(2**63) <= seed < 2**63, "seed is {}: it must fit into 64 bits", seed)
        return torch.tensor(seed, dtype=torch.int64, device=device)
    checks.check_seed(seed, device)
    return seed


@torch.library.custom_op("slm_random::seed", mutates_args=(), schema="(Device device) -> Tensor")
def _drawn_seed(device: torch.device) -> Tensor:
    """One int64 from torch's generator of the device."""
    return torch.randint(2**63 - 1, (), device=device)


@_drawn_seed.register_fake
def _(device: torch.device) -> Tensor:
    checks.check(
        torch._functorch.config.activation_memory_budget == 1,
        "dropout_p > 0 without a seed: with an activation_memory_budget below 1 torch.compile draws random numbers"
        " again for the backward, which would drop other weights than the forward: pass a seed",
    )
    return torch.empty((), dtype=torch.int64, device=device)


def _autocast(dtype: torch.dtype | None, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the tensors in `dtype` (None: autocast's own) if autocast is on; float64 stays, as in torch."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = dtype or torch.get_autocast_dtype(device)
    return tuple(x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def _fake_layer_norm(x, weight, bias, eps):
    checks.check_layer_norm(x, None, weight, bias, eps)
    return x.new_empty(x.shape), *_fake_moments(x)


def _fake_add_layer_norm(x, residual, weight, bias, eps):
    checks.check_layer_norm(x, residual, weight, bias, eps)
    return x.new_empty(x.shape), x.new_empty(x.shape), *_fake_moments(x)


def _fake_moments(x):
    rows = x.numel() // x.shape[-1]
    return tuple(x.new_empty(rows, dtype=_statistics(x)) for _ in range(2))


def _statistics(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _fake_layer_norm_backward(grad_out, x, weight, mean, rstd, grad_residual):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _fake_causal_attention(q, k, v, scale, window, dropout_p, seed, deterministic=True):
    checks.check_attention(q, k, v, scale, window, dropout_p)
    batch, length, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, length), dtype=_statistics(q))


def _fake_causal_attention_backward(
    grad_out, q, k, v, out, lse, scale, window, dropout_p, seed, deterministic=True
):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _fake_causal_attention_qkvpacked(qkv, scale, window, dropout_p, seed, deterministic=True):
    checks.check_packed(qkv)
    return _fake_causal_attention(*qkv.unbind(2), scale, window, dropout_p, seed)


def _fake_causal_attention_qkvpacked_backward(
    grad_out, qkv, out, lse, scale, window, dropout_p, seed, deterministic=True
):
    return qkv.new_empty(qkv.shape)


def _save_layer_norm(ctx: _Context, inputs: tuple, output: tuple) -> None:
    x, weight, bias, _ = inputs
    _keep(ctx, (x, weight, *output[-2:]), output[1:])
    ctx.has_bias = bias is not None


def _save_add_layer_norm(ctx: _Context, inputs: tuple, output: tuple) -> None:
    _, _, weight, bias, _ = inputs
    _keep(ctx, (output[1], weight, *output[-2:]), output[2:])
    ctx.has_bias = bias is not None


def _save_attention(ctx: _Context, inputs: tuple, output: tuple) -> None:
    *tensors, scale, window, dropout_p, seed, deterministic = inputs
    _keep(ctx, (*tensors, *output, seed), output[1:])
    ctx.options, ctx.deterministic = (scale, window, dropout_p), deterministic


def _keep(ctx: _Context, tensors: tuple, statistics: tuple) -> None:
    ctx.save_for_backward(*tensors)
    ctx.mark_non_differentiable(*statistics)
    ctx.set_materialize_grads(False)


def _layer_norm_gradients(library, ctx: _Context, grad_out: Tensor | None, grad_residual: Tensor | None):
    """Return the gradients of x, weight and bias; grad_residual is that of add_layer_norm's sum."""
    if grad_out is None:
        return grad_residual, None, None
    grads = library.layer_norm_backward(grad_out, *ctx.saved_tensors, grad_residual)
    return grads if ctx.has_bias else (*grads[:2], None)


def _formulas(library) -> dict[str, tuple[Callable, Callable]]:
    """Return, for each op with a derivative, the functions that save tensors and compute gradients."""

    def layer_norm_grad(ctx, grad_out, *_):
        return *_layer_norm_gradients(library, ctx, grad_out, None), None

    def add_layer_norm_grad(ctx, grad_out, grad_sum, *_):
        grad_x, grad_weight, grad_bias = _layer_norm_gradients(library, ctx, grad_out, grad_sum)
        return grad_x, grad_x, grad_weight, grad_bias, None

    def attention_grad(backward, inputs):
        def grads(ctx, grad_out, *_):
            if grad_out is None:
                return (None,) * (inputs + 5)
            *tensors, seed = ctx.saved_tensors
            found = backward(grad_out, *tensors, *ctx.options, seed, ctx.deterministic)
            return *((found,) if inputs == 1 else found), *(None,) * 5

        return grads

    return {
        "layer_norm": (_save_layer_norm, layer_norm_grad),
        "add_layer_norm": (_save_add_layer_norm, add_layer_norm_grad),
        "causal_attention": (_save_attention, attention_grad(library.causal_attention_backward, 3)),
        "causal_attention_qkvpacked": (
            _save_attention,
            attention_grad(library.causal_attention_qkvpacked_backward, 1),
        ),
    }


_FAKES = {
    "layer_norm": _fake_layer_norm,
    "add_layer_norm": _fake_add_layer_norm,
    "layer_norm_backward": _fake_layer_norm_backward,
    "causal_attention": _fake_causal_attention,
    "causal_attention_backward": _fake_causal_attention_backward,
    "causal_attention_qkvpacked": _fake_causal_attention_qkvpacked,
    "causal_attention_qkvpacked_backward": _fake_causal_attention_qkvpacked_backward,
}


def _register(name: str) -> None:
    for op, fake in _FAKES.items():
        torch.library.register_fake(f"{name}::{op}", fake)
    for op, (save, gradients) in _formulas(getattr(torch.ops, name)).items():
        torch.library.register_autograd(f"{name}::{op}", gradients, setup_context=save)


for _name in dispatch.libraries():
    _register(_name)
