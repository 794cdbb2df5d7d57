"""Causal attention, of separate or packed q, k and v and inside packed documents, and rotary positions.

Built as ops.py is: what a user calls comes first, what torch needs of each op after it.
"""

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
    angles: Tensor | None = None,
) -> Tensor:
    """Return softmax(q kᵀ scale) v, query i seeing the keys j <= i, without a T x T matrix (Dao et al. 2022).

    q: (B, T, H, D), k and v: (B, T, Hkv, D), any strides with unit last stride, D in 1..128, Hkv a divisor of
    H; all of one dtype: float32, float16, bfloat16 or float64; autocast casts to its own dtype. scale defaults to
    1 / sqrt(D). With a window, query i sees only i - window < j <= i. Dropout zeroes each weight with
    probability dropout_p (rounded to 1/65536) and divides the others by exactly the probability of staying;
    its mask depends on seed, batch, head, row and column alone. Without a seed one is drawn from torch's
    generator of the device; a seed that is a tensor, one int64 on the device of q, is read by the kernel
    itself, so that a CUDA graph can change it. deterministic=False lets the backward on a GPU add up the gradient
    of q atomically where that is faster: more than 128 tokens in 16 bits; its last bits then vary from run to run.
    With angles, as for `rotary`, q and k are turned first; on a CPU as they are loaded, without a pass over memory.

    Returns (B, T, H, D). ValueError that names the argument for anything else.
    """
    return _attend(q, k, v, None, angles, scale, window, dropout_p, seed, deterministic)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ends: Tensor | None,
    angles: Tensor | None,
    scale: float | None,
    window: int | None,
    dropout_p: float,
    seed: int | Tensor | None,
    deterministic: bool,
) -> Tensor:
    """Do as causal_attention; with `ends`, inside documents, for a batch of one."""
    checks.check_tensors(q=q, k=k, v=v)
    scale = _scale(q, scale)
    checks.check_attention_options(scale, window, dropout_p)
    q, k, v = autocast(None, q, k, v)
    seed = _seed(seed, dropout_p, q.device)
    library = dispatch.library(q.device.type)
    tangents = has_tangent(q, k, v)
    if angles is not None:
        checks.check_rotary(q, angles)
    if library is None or tangents:
        checks.check_attention(q, k, v, scale, window, dropout_p)
        formula = reference.causal_attention if tangents else torch_causal_attention
        if angles is not None:
            q, k = reference.rotate(q, angles), reference.rotate(k, angles)
        options = {"scale": scale, "window": window, "dropout_p": dropout_p, "seed": seed}
        if ends is not None:
            return reference.by_document(formula, q, k, v, ends, **options)
        return formula(q, k, v, **options)
    table = _table(angles, q.dtype)
    return library.causal_attention(q, k, v, scale, window, dropout_p, seed, deterministic, ends, *table)[0]


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
    angles: Tensor | None = None,
) -> Tensor:
    """Return causal_attention of q, k, v = qkv.unbind(2), with one packed gradient; qkv: (B, T, 3, H, D).

    Everything else is as there. Returns (B, T, H, D).
    """
    checks.check_tensors(qkv=qkv)
    library = dispatch.library(qkv.device.type)
    if library is None or has_tangent(qkv):
        checks.check_packed(qkv)
        return _attend(*qkv.unbind(2), None, angles, scale, window, dropout_p, seed, deterministic)
    scale = _scale(qkv, scale)
    checks.check_attention_options(scale, window, dropout_p)
    (qkv,) = autocast(None, qkv)
    seed = _seed(seed, dropout_p, qkv.device)
    if angles is not None:
        checks.check_rotary(qkv.flatten(2, 3), angles)
    table = _table(angles, qkv.dtype)
    return library.causal_attention_qkvpacked(qkv, scale, window, dropout_p, seed, deterministic, *table)[0]


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
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
    window: int | None = None,
    deterministic: bool = True,
    angles: Tensor | None = None,
) -> Tensor:
    """Return causal attention in which a token sees its own document only: all documents in one launch.

    q: (N, H, D), k and v: (N, Hkv, D): the tokens of all documents, without padding. ends: (documents + 1) int64 on the
    CPU, the cumulative lengths, from 0 to N; a document may be empty. Work grows with the sum of the squares of the
    lengths, not with N². The rest as for causal_attention: dropout counts documents as the batch, and angles, (N, D/2),
    are those of each token. Returns (N, H, D). ValueError that names the argument for anything else.
    """
    checks.check_tensors(q=q, k=k, v=v, ends=ends)
    checks.check_documents(q, k, v, ends)
    q, k, v = (x[None] for x in (q, k, v))
    return _attend(q, k, v, ends, angles, scale, window, dropout_p, seed, deterministic)[0]


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
    return library.rotary(x, *_table(angles, x.dtype), False)


def _table(angles: Tensor | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Return cosines and sines, (1 or B, T, D/2) each, of angles (T, D/2) or (B, T, D/2) for tensors of the dtype."""
    if angles is None:
        return None, None
    angles = angles.to(statistics(dtype))
    angles = angles[None] if angles.dim() == 2 else angles  # (T, D/2) -> (1, T, D/2)
    return angles.cos().contiguous(), angles.sin().contiguous()


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


def _fake_causal_attention(q, k, v, scale, window, dropout_p, *_):
    checks.check_attention(q, k, v, scale, window, dropout_p)
    batch, length, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, length), dtype=statistics(q.dtype))


def _fake_causal_attention_backward(grad_out, q, k, v, *_):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _fake_causal_attention_qkvpacked(qkv, scale, window, dropout_p, *_):
    checks.check_packed(qkv)
    return _fake_causal_attention(*qkv.unbind(2), scale, window, dropout_p)


def _fake_causal_attention_qkvpacked_backward(grad_out, qkv, *_):
    return qkv.new_empty(qkv.shape)


def _save_attention(ctx, inputs, output):
    _save(ctx, inputs[:3], inputs[3:], output)


def _save_qkvpacked(ctx, inputs, output):
    _save(ctx, inputs[:1], inputs[1:], output)


def _save(ctx, tensors, rest, output):
    """Keep the inputs, the results, and of the rest what is a tensor: the seed, and the last ones."""
    scale, window, dropout_p, seed, deterministic, *others = rest
    keep(ctx, *tensors, *output, seed, *others, without_gradient=output[1:])
    ctx.options, ctx.deterministic = (scale, window, dropout_p), deterministic


def _attention_gradients(library, ctx, grad_out, *_):
    if grad_out is None:
        return (None,) * 11
    *tensors, seed, ends, cos, sin = ctx.saved_tensors
    backward = library.causal_attention_backward
    found = backward(grad_out, *tensors, *ctx.options, seed, ctx.deterministic, ends, cos, sin)
    return *found, *(None,) * 8


def _qkvpacked_gradients(library, ctx, grad_out, *_):
    if grad_out is None:
        return (None,) * 8
    *tensors, seed, cos, sin = ctx.saved_tensors
    backward = library.causal_attention_qkvpacked_backward
    return backward(grad_out, *tensors, *ctx.options, seed, ctx.deterministic, cos, sin), *(None,) * 7


register("causal_attention", _fake_causal_attention, _save_attention, _attention_gradients)
register("causal_attention_backward", _fake_causal_attention_backward)
register(
    "causal_attention_qkvpacked", _fake_causal_attention_qkvpacked, _save_qkvpacked, _qkvpacked_gradients
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
