"""The ops of a decode step, on the CPU: a linear layer for few rows, and attention of new tokens to a KV cache.

A step of one token does little arithmetic, so its time depends on the bytes that it reads and the calls that it makes:
with these two ops a block is five calls. They have no derivative: a backward through them is refused. If the C++
kernels are not built the reference runs, which is slow and checks nothing: ask `available` first.
"""

import contextlib
import mmap
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import dispatch, reference
from kernels.checks import check

PANEL = 64  # consecutive outputs in a packed weight
ALIGNMENT = 64  # bytes of a cache line


def available(device_type: str = "cpu") -> bool:
    """True if the C++ kernels run on this type of device."""
    return device_type == "cpu" and dispatch.runs_on("cpu") == "fused"


HAS_STEP = dispatch.has_op("decode_step")


def pack_weight(weight: Tensor) -> Tensor:
    """Return weight (out, in) of any dtype as (panels, in, 64), the order in which packed_linear reads it.

    >>> pack_weight(torch.tensor([[1, 2], [3, 4]])).shape, pack_weight(torch.tensor([[1, 2], [3, 4]]))[0, 1, :3]
    (torch.Size([1, 2, 64]), tensor([2, 4, 0]))
    """
    padded = F.pad(weight, (0, 0, 0, -len(weight) % PANEL))  # (panels 64, in)
    panels = padded.unflatten(0, (-1, PANEL))  # -> (panels, 64, in)
    return panels.transpose(1, 2).contiguous()  # -> (panels, in, 64)


def side_by_side(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return copies of weights in one block of memory, which Linux is asked to back by huge pages.

    A step reads all weights from end to end. Where a page is 4 KB, finding 60 MB of them takes as long as reading
    them; a huge page is 2 MB. Elsewhere the weights are returned as they are.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return [*weights]
    sizes = [-(-weight.nbytes // ALIGNMENT) * ALIGNMENT for weight in weights]
    memory = mmap.mmap(-1, sum(sizes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    copies, first = [], 0
    for weight, size in zip(weights, sizes, strict=True):
        flat = torch.frombuffer(memory, dtype=weight.dtype, count=weight.numel(), offset=first)
        copies.append(flat.view(weight.shape).copy_(weight))
        first += size
    return copies


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


def step(
    ids: list[Tensor],
    positions: list[Tensor],
    pages: list[Tensor],
    wanted: Tensor | None,
    keys: list[Tensor],
    values: list[Tensor],
    weights: list[Tensor | None],
    norm: str,
    eps: float,
    activation: str,
    window: int | None = None,
) -> Tensor:
    """Return logits (rows, V) after new tokens that go through a whole packed model, in one call of the C++ kernels.

    The tokens come in segments of b texts with t each: ids and positions (b, t), and pages (b, n) as for
    cached_attention, into keys and values (pages, Hkv, L, D), one of each a block. wanted (rows,) are the tokens,
    counted through all segments, whose logits are returned (None: all). weights: csrc/ops.h tells their order. The rest
    is as for packed_linear; the activation is the gate's where there is one. There is no reference: the op is
    packed_linear and cached_attention in turn, as model.pack calls them one by one. ValueError that names the argument
    for a mistake.
    """
    return torch.ops.slm.decode_step.default(
        ids, positions, pages, wanted, keys, values, weights, norm, eps, activation, window
    )


def likeliest(logits: Tensor) -> Tensor:
    """Return the id of the largest of each row, (B, V) -> (B,), of equals the first; V for a row that holds a NaN.

    >>> likeliest(torch.tensor([[1.0, 3.0, 3.0], [2.0, float("nan"), 1.0]])).tolist()
    [1, 3]
    """
    if (
        HAS_STEP
        and logits.dtype == torch.float32
        and logits.is_contiguous()
        and available(logits.device.type)
    ):
        return torch.ops.slm.likeliest.default(logits)
    largest = logits.max(-1)
    return largest.indices.masked_fill(largest.values.isnan(), logits.shape[-1])


def _fake_packed_linear(x, weight, outputs, *_):
    check(x.shape[-1] == weight.shape[1], "weight has shape {}, x {}", list(weight.shape), list(x.shape))
    return x.new_empty((*x.shape[:-1], outputs))


def _fake_cached_attention(qkv, keys, values, positions, rows, angles, window, pages=None):
    batch, length, heads, width = qkv.shape
    return qkv.new_empty((batch, length, heads - 2 * keys.shape[1], width))


def _fake_step(ids, positions, pages, wanted, keys, values, weights, *_):
    rows = sum(each.numel() for each in ids) if wanted is None else len(wanted)
    return weights[0].new_empty((rows, len(weights[0])))


dispatch.register("decode_step", _fake_step)
dispatch.register("likeliest", lambda logits: logits.new_empty(len(logits), dtype=torch.int64))
dispatch.register("packed_linear", _fake_packed_linear)
dispatch.register("cached_attention", _fake_cached_attention)
