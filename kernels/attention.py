"""Causal attention, of separate or packed q, k and v and inside packed documents, and rotary positions.

Built as ops.py is: what a user calls comes first, what torch needs of each op after it.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import checks, dispatch, reference
from kernels.dispatch import autocast, has_tangent, keep, register, statistics

_LEAST_SCALE = 2.0**-126  # that is not 0 in float32, however PyTorch computes


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
    q, k, v = autocast(None, q, k, v)
    seed = _seed(seed, dropout_p, q.device)
    library = dispatch.library(q.device.type)
    tangents = has_tangent(q, k, v)
    if library is None or tangents:
        checks.check_attention(q, k, v, scale, window, dropout_p)
        formula = reference.causal_attention if tangents else torch_causal_attention
        return formula(q, k, v, scale=scale, window=window, dropout_p=dropout_p, seed=seed)
    return library.causal_attention(q, k, v, scale, window, dropout_p, seed, deterministic)[0]


def torch_causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    window: int | None,
    dropout_p: float,
    seed: Tensor | None,
) -> Tensor:
    """Do as causal_attention with PyTorch's op, without checks and for heads of any width.

    With a seed the reference runs, so that dropout drops what the kernels drop.
    """
    if dropout_p and seed is not None:
        return reference.causal_attention(q, k, v, scale=scale, dropout_p=dropout_p, seed=seed, window=window)
    if scale is not None and -_LEAST_SCALE < scale < _LEAST_SCALE:
        q, scale = q * scale, 1.0  # PyTorch would multiply the -inf of hidden scores by 0
    mask = None if window is None else reference.seen(q.shape[1], window, q.device)
    out = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)),  # (B, T, H, D) -> (B, H, T, D)
        attn_mask=mask,
        dropout_p=dropout_p,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)  # (B, H, T, D) -> (B, T, H, D)


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
    (qkv,) = autocast(None, qkv)
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


def document_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ends: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Return causal attention in which a token sees its own document only.

    q: (N, H, D), k and v: (N, Hkv, D): the tokens of all documents, without padding. ends: (documents + 1) int64 on the
    CPU, the cumulative lengths, from 0 to N; a document may be empty. scale and window as for causal_attention, which
    runs once for each document: work and memory grow with the sum of the squares of the lengths, not with N². Returns
    (N, H, D). ValueError that names the argument for anything else.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        checks.check(x.dim() == 3, f"{name} has shape {list(x.shape)}: it must be (N, H, D)")
    checks.check(
        ends.device.type == "cpu" and ends.dtype == torch.int64 and ends.dim() == 1 and len(ends) >= 1,
        f"ends has shape {list(ends.shape)}, {ends.dtype} on {ends.device}: it must be (documents + 1) int64 on the "
        "CPU",
    )
    cut = ends.tolist()
    lengths = [after - before for before, after in itertools.pairwise(cut)]
    checks.check(
        cut[0] == 0 and cut[-1] == len(q) and min(lengths, default=0) >= 0,
        f"ends goes from {cut[0]} to {cut[-1]}: it must rise from 0 to the {len(q)} tokens of q",
    )
    checks.check(
        len(k) == len(v) == len(q),
        f"q, k and v have {len(q)}, {len(k)} and {len(v)} tokens: these must be equal",
    )
    parts = zip(
        *(x.split(lengths) for x in (q, k, v)), strict=True
    )  # of each document three of (length, H, D)
    found = [causal_attention(*(x[None] for x in part), scale=scale, window=window)[0] for part in parts]
    return torch.cat(found) if found else torch.empty_like(q)


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


# What torch needs of each op: the shapes of its results (_fake), what its backward reads (_save), its derivative.


@torch.library.custom_op("slm_random::seed", mutates_args=(), schema="(Device device) -> Tensor")
def _drawn_seed(device: torch.device) -> Tensor:
    """Return one int64 from torch's generator of the device."""
    return torch.randint(2**63 - 1, (), device=device)


@_drawn_seed.register_fake
def _(device: torch.device) -> Tensor:
    checks.check(
        torch._functorch.config.activation_memory_budget == 1,
        "dropout_p > 0 without a seed: with an activation_memory_budget below 1 torch.compile draws random numbers"
        " again for the backward, which would drop other weights than the forward: pass a seed",
    )
    return torch.empty((), dtype=torch.int64, device=device)


def _fake_causal_attention(q, k, v, scale, window, dropout_p, seed, deterministic=True):
    checks.check_attention(q, k, v, scale, window, dropout_p)
    batch, length, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, length), dtype=statistics(q.dtype))


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


def _save_attention(ctx, inputs, output):
    *tensors, scale, window, dropout_p, seed, deterministic = inputs
    keep(ctx, *tensors, *output, seed, without_gradient=output[1:])
    ctx.options, ctx.deterministic = (scale, window, dropout_p), deterministic


def _attention_gradients(library, ctx, grad_out, *_):
    if grad_out is None:
        return (None,) * 8
    *tensors, seed = ctx.saved_tensors
    found = library.causal_attention_backward(grad_out, *tensors, *ctx.options, seed, ctx.deterministic)
    return *found, *(None,) * 5


def _qkvpacked_gradients(library, ctx, grad_out, *_):
    if grad_out is None:
        return (None,) * 6
    *tensors, seed = ctx.saved_tensors
    backward = library.causal_attention_qkvpacked_backward
    return backward(grad_out, *tensors, *ctx.options, seed, ctx.deterministic), *(None,) * 5


register("causal_attention", _fake_causal_attention, _save_attention, _attention_gradients)
register("causal_attention_backward", _fake_causal_attention_backward)
register(
    "causal_attention_qkvpacked", _fake_causal_attention_qkvpacked, _save_attention, _qkvpacked_gradients
)
register("causal_attention_qkvpacked_backward", _fake_causal_attention_qkvpacked_backward)


def _fake_rotary(x, cos, sin, back):
    return x.new_empty(x.shape)


def _save_rotary(ctx, inputs, output):
    keep(ctx, *inputs[1:3])
    ctx.back = inputs[3]


def _rotary_gradients(library, ctx, grad_out):
    if grad_out is None:
        return (None,) * 4
    grad_out = grad_out if grad_out.stride(-1) == 1 else grad_out.contiguous()
    return library.rotary(grad_out, *ctx.saved_tensors, not ctx.back), None, None, None


register("rotary", _fake_rotary, _save_rotary, _rotary_gradients)
