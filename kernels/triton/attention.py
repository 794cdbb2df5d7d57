"""Causal attention in Triton, forward and backward: FlashAttention-2 (Dao 2023; derived in docs/kernels/attention.md).

Forward and dq: a program owns a tile of queries and walks over the keys that it sees. dk and dv: a program owns a
tile of keys and walks over the queries that see it. So every result has one owner, and no atomics are needed.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 32  # queries, and keys, of a tile


@triton.jit
def _tile(base, first, length, WIDTH: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr):
    """Load rows first … first + TILE - 1 of a head (length, WIDTH) as (TILE, D), zeros beyond its ends."""
    rows, columns = first + tl.arange(0, TILE), tl.arange(0, D)
    inside = (rows < length)[:, None] & (columns < WIDTH)[None, :]
    return tl.load(base + rows[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store_tile(base, values, first, length, WIDTH: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr):
    rows, columns = first + tl.arange(0, TILE), tl.arange(0, D)
    inside = (rows < length)[:, None] & (columns < WIDTH)[None, :]
    at = base + rows[:, None] * WIDTH + columns[None, :]
    tl.store(at, values.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _visible(query, key, length, TILE: tl.constexpr):
    """Return (TILE, TILE), True where a query (row) sees a key (column)."""
    queries, keys = query + tl.arange(0, TILE), key + tl.arange(0, TILE)
    return (queries[:, None] >= keys[None, :]) & (queries < length)[:, None]


@triton.jit
def _forward(q, k, v, out, lse, scale, length, WIDTH: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr):
    first, head = tl.program_id(0) * TILE, tl.program_id(1).to(tl.int64)
    offset = head * length * WIDTH
    queries = _tile(q + offset, first, length, WIDTH, D, TILE)
    largest, total = tl.full((TILE,), -1e30, tl.float32), tl.zeros((TILE,), tl.float32)
    sums = tl.zeros((TILE, D), tl.float32)
    for key in range(0, first + TILE, TILE):
        keys = _tile(k + offset, key, length, WIDTH, D, TILE)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(_visible(first, key, length, TILE), scores, -float("inf"))
        found = tl.maximum(largest, tl.max(scores, 1))
        weights, shrink = tl.exp(scores - found[:, None]), tl.exp(largest - found)
        values = _tile(v + offset, key, length, WIDTH, D, TILE)
        sums = sums * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        total = total * shrink + tl.sum(weights, 1)
        largest = found
    rows = first + tl.arange(0, TILE)
    total = tl.where(rows < length, total, 1.0)
    _store_tile(out + offset, sums / total[:, None], first, length, WIDTH, D, TILE)
    tl.store(lse + head * length + rows, largest + tl.log(total), mask=rows < length)


@triton.jit
def _weights(queries, keys, lse, query, key, scale, length, TILE: tl.constexpr):
    """Return the softmax of a tile of scores, from the log-sum-exp that the forward kept."""
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    rows = query + tl.arange(0, TILE)
    row_lse = tl.load(lse + rows, mask=rows < length, other=0.0)
    return tl.where(_visible(query, key, length, TILE), tl.exp(scores - row_lse[:, None]), 0.0)


@triton.jit
def _backward_q(
    q, k, v, grad, lse, delta, dq, scale, length, WIDTH: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr
):
    first, head = tl.program_id(0) * TILE, tl.program_id(1).to(tl.int64)
    offset, row_offset = head * length * WIDTH, head * length
    queries = _tile(q + offset, first, length, WIDTH, D, TILE)
    grads = _tile(grad + offset, first, length, WIDTH, D, TILE)
    rows = first + tl.arange(0, TILE)
    row_delta = tl.load(delta + row_offset + rows, mask=rows < length, other=0.0)
    sums = tl.zeros((TILE, D), tl.float32)
    for key in range(0, first + TILE, TILE):
        keys = _tile(k + offset, key, length, WIDTH, D, TILE)
        values = _tile(v + offset, key, length, WIDTH, D, TILE)
        weights = _weights(queries, keys, lse + row_offset, first, key, scale, length, TILE)
        grad_weights = tl.dot(grads, tl.trans(values), input_precision="ieee")
        grad_scores = weights * (grad_weights - row_delta[:, None]) * scale
        sums += tl.dot(grad_scores.to(keys.dtype), keys, input_precision="ieee")
    _store_tile(dq + offset, sums, first, length, WIDTH, D, TILE)


@triton.jit
def _backward_kv(
    q, k, v, grad, lse, delta, dk, dv, scale, length, WIDTH: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr
):
    first, head = tl.program_id(0) * TILE, tl.program_id(1).to(tl.int64)
    offset, row_offset = head * length * WIDTH, head * length
    keys = _tile(k + offset, first, length, WIDTH, D, TILE)
    values = _tile(v + offset, first, length, WIDTH, D, TILE)
    k_sums, v_sums = tl.zeros((TILE, D), tl.float32), tl.zeros((TILE, D), tl.float32)
    for query in range(first, length, TILE):
        queries = _tile(q + offset, query, length, WIDTH, D, TILE)
        grads = _tile(grad + offset, query, length, WIDTH, D, TILE)
        rows = query + tl.arange(0, TILE)
        row_delta = tl.load(delta + row_offset + rows, mask=rows < length, other=0.0)
        weights = _weights(queries, keys, lse + row_offset, query, first, scale, length, TILE)
        v_sums += tl.dot(tl.trans(weights).to(grads.dtype), grads, input_precision="ieee")
        grad_weights = tl.dot(grads, tl.trans(values), input_precision="ieee")
        grad_scores = weights * (grad_weights - row_delta[:, None]) * scale
        k_sums += tl.dot(tl.trans(grad_scores).to(queries.dtype), queries, input_precision="ieee")
    _store_tile(dk + offset, k_sums, first, length, WIDTH, D, TILE)
    _store_tile(dv + offset, v_sums, first, length, WIDTH, D, TILE)


def _layout(length: int, width: int) -> tuple[int, dict[str, int]]:
    """Return the number of tiles, and the constants to compile the kernels for; tl.dot wants at least 16 columns."""
    columns = max(16, triton.next_power_of_2(width))
    return triton.cdiv(length, TILE), {"WIDTH": width, "D": columns, "TILE": TILE}


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))  # (B, T, H, D) -> (B, H, T, D)
        batch, heads, length, width = q.shape
        out, lse = torch.empty_like(q), q.new_empty(batch, heads, length, dtype=torch.float32)
        tiles, constants = _layout(length, width)
        if q.numel():
            _forward[(tiles, batch * heads)](q, k, v, out, lse, scale, length, **constants)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale = scale
        return out.transpose(1, 2)  # (B, H, T, D) -> (B, T, H, D)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        batch, heads, length, width = q.shape
        grad = grad_out.transpose(1, 2).contiguous()  # (B, T, H, D) -> (B, H, T, D)
        delta = (grad.float() * out.float()).sum(-1)  # (B, H, T)
        found = [torch.empty_like(q) for _ in range(3)]
        tiles, constants = _layout(length, width)
        if q.numel():
            arguments, grid = (q, k, v, grad, lse, delta), (tiles, batch * heads)
            _backward_q[grid](*arguments, found[0], ctx.scale, length, **constants)
            _backward_kv[grid](*arguments, found[1], found[2], ctx.scale, length, **constants)
        return *(x.transpose(1, 2) for x in found), None


def causal_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """Return softmax(q kᵀ scale) v in which query i sees the keys j <= i; all (B, T, H, D)."""
    return _Attention.apply(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale)
