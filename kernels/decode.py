"""The ops of a decode step, on the CPU: a linear layer for few rows, and attention of new tokens to a KV cache.

A step of one token does little arithmetic, so its time depends on the bytes that it reads and the calls that it makes:
with these two ops a block is five calls. They have no derivative: a backward through them is refused. If the C++
kernels are not built the reference runs, which is slow and checks nothing: ask `available` first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import dispatch, reference
from kernels.checks import check

PANEL = 64  # consecutive outputs in a packed weight


def available(device_type: str = "cpu") -> bool:
    """True if the C++ kernels run on this type of device."""
    return device_type == "cpu" and dispatch.runs_on("cpu") == "fused"


def pack_weight(weight: Tensor) -> Tensor:
    """Return weight (out, in) of any dtype as (panels, in, 64), the order in which packed_linear reads it.

    >>> pack_weight(torch.tensor([[1, 2], [3, 4]])).shape, pack_weight(torch.tensor([[1, 2], [3, 4]]))[0, 1, :3]
    (torch.Size([1, 2, 64]), tensor([2, 4, 0]))
    """
    padded = F.pad(weight, (0, 0, 0, -len(weight) % PANEL))  # (panels 64, in)
    panels = padded.unflatten(0, (-1, PANEL))  # -> (panels, 64, in)
    return panels.transpose(1, 2).contiguous()  # -> (panels, in, 64)


def packed_linear(
    x: Tensor,
    weight: Tensor,
    outputs: int,
    scales: Tensor | None = None,
    bias: Tensor | None = None,
    norm: str = "none",
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """Return activation(norm(x) weightᵀ scales + bias) + residual, in one pass over the weight.

    x (..., in) and residual (..., out): contiguous float32. weight: (panels, in, 64) from pack_weight, float32,
    bfloat16 or int8; scales, bias: (out,). norm: "none", "layernorm" or "rmsnorm", with norm_weight and norm_bias
    (in,) and eps. activation: "none", "gelu" (tanh form) or "silu". Everything but the weight is float32, and so
    are all sums; a row's result does not depend on the other rows. Returns (..., out). ValueError that names the
    argument for anything else.
    """
    arguments = x, weight, outputs, scales, bias, norm, norm_weight, norm_bias, eps, activation, residual
    if available(x.device.type):
        return torch.ops.slm.packed_linear.default(*arguments)
    return reference.packed_linear(*arguments)


def cached_attention(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    rows: Tensor | None = None,
    angles: Tensor | None = None,
    window: int | None = None,
    pages: Tensor | None = None,
) -> Tensor:
    """Store the keys and values of new tokens in a cache, and attend to all that each of them sees.

    qkv: (B, T, H + 2 Hkv, D), the heads of q, k and v; keys, values: (rows, Hkv, L, D), written to; all contiguous
    float32. Token t of row b has positions[b, t] (1 or B, T), rising along T, in cache row rows[b], or b without
    `rows`; rows must differ. It sees the positions up to its own, or the last `window` of them. angles (1 or
    B, T, D / 2) rotate neighbouring pairs of q and k (rotary positions, Su et al. 2021). With `pages` (B, n)
    of int64 in place of `rows`, a row of keys and values is a page: position p of row b is in page pages[b, p // L], at
    p % L (Kwon et al. 2023); pages that rows share are read, not written. Returns (B, T, H, D), the same bits either
    way. ValueError that names the argument for anything else.
    """
    paged = () if pages is None else (pages,)
    arguments = qkv, keys, values, positions, rows, angles, window, *paged
    if available(qkv.device.type):
        return torch.ops.slm.cached_attention.default(*arguments)
    return reference.cached_attention(*arguments)


def _fake_packed_linear(x, weight, outputs, *_):
    check(x.shape[-1] == weight.shape[1], "weight has shape {}, x {}", list(weight.shape), list(x.shape))
    return x.new_empty((*x.shape[:-1], outputs))


def _fake_cached_attention(qkv, keys, values, positions, rows, angles, window, pages=None):
    batch, length, heads, width = qkv.shape
    return qkv.new_empty((batch, length, heads - 2 * keys.shape[1], width))


dispatch.register("packed_linear", _fake_packed_linear)
dispatch.register("cached_attention", _fake_cached_attention)
