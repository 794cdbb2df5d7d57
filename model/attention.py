"""Causal self-attention, grown one idea at a time from a single head to the module that the GPT uses.

SelfAttention          one head, every token sees every token
CausalHead             no token sees a later one
MultiHeadAttention     several heads, one fused projection for queries, keys and values
GroupedQueryAttention  several query heads share one key and value head; a sliding window
CausalSelfAttention    the same, with rotary positions, dropout, a cache and fast backends: what `Block` is
made of
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import GPTConfig
from model.layers import Dropout, rotate


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v: each query's average of the values, weighted by how well the keys fit.

    Scaled dot-product attention, Vaswani et al. 2017, section 3.2.1. q (…, T, D), k and v (…, L, D) -> (…, T, D);
    the softmax is float32. mask (…, T, L) of bool is True where a query may look; `dropout` acts on the weights.
    """
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # (…, T, D) @ (…, D, L) -> (…, T, L)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
    return F.dropout(weights, dropout) @ v  # (…, T, L) @ (…, L, D) -> (…, T, D)


def causal_mask(length: int, window: int | None = None, device: torch.device | None = None) -> Tensor:
    """(T, T) of bool: query q may see key k where k <= q and, with a window, q - k < window.

    >>> causal_mask(4, window=2).int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    """
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return seen if window is None else seen.triu(1 - window)


class SelfAttention(nn.Module):
    """One head: every token asks (query), is asked (key) and answers (value)."""

    def __init__(self, width: int, head_dim: int):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, head_dim, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, D)."""
        return attend(self.query(x), self.key(x), self.value(x))


class CausalHead(SelfAttention):
    """One head that cannot see the future, so that the next token may be its lesson."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, D)."""
        mask = causal_mask(x.shape[1], device=x.device)  # (T, T)
        return attend(self.query(x), self.key(x), self.value(x), mask)


class MultiHeadAttention(nn.Module):
    """H causal heads side by side. One matrix makes all q, k and v; one mixes the answers."""

    def __init__(self, width: int, n_head: int, bias: bool = True):
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(width, 3 * width, bias)
        self.c_proj = nn.Linear(width, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        qkv = self.c_attn(x).unflatten(-1, (3, self.n_head, -1))  # (B, T, 3C) -> (B, T, 3, H, D)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, T, 3, H, D) -> three of (B, H, T, D)
        y = attend(q, k, v, causal_mask(x.shape[1], device=x.device))
        return self.c_proj(y.transpose(1, 2).flatten(2))  # (B, H, T, D) -> (B, T, C)


class GroupedQueryAttention(nn.Module):
    """Each key and value head serves n_head / n_kv_head query heads (Ainslie et al. 2023): a smaller cache.

    With a `window`, a token sees itself and the window - 1 tokens before it (Beltagy et al. 2020).
    """

    def __init__(self, width: int, n_head: int, n_kv_head: int, window: int | None = None, bias: bool = True):
        super().__init__()
        self.heads = [n_head, n_kv_head, n_kv_head]
        self.head_dim, self.window = width // n_head, window
        self.c_attn = nn.Linear(width, sum(self.heads) * self.head_dim, bias)
        self.c_proj = nn.Linear(width, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        qkv = self.c_attn(x).unflatten(-1, (-1, self.head_dim))  # (B, T, …) -> (B, T, H + 2 KV, D)
        q, k, v = (t.transpose(1, 2) for t in qkv.split(self.heads, dim=2))  # (B, H, T, D), (B, KV, T, D)
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        y = attend(q, k, v, causal_mask(x.shape[1], self.window, x.device))
        return self.c_proj(y.transpose(1, 2).flatten(2))  # (B, H, T, D) -> (B, T, C)


def repeat_heads(x: Tensor, n_head: int) -> Tensor:
    """(B, KV, L, D) -> (B, H, L, D): every key and value head as often as there are query heads to serve."""
    return x.repeat_interleave(n_head // x.shape[1], dim=1)


class Cache(Protocol):
    """Where a layer keeps the keys and values of earlier tokens; see model.cache."""

    fused: bool
    """Whether `attend` is to be called, else `extend`."""

    def attend(self, qkv: Tensor, angles: Tensor | None, window: int | None) -> Tensor:
        """Stores the k and v of qkv (B, T, H + 2 KV, D) and attends to all keys, in one call: (B, T, H, D)."""

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Stores k and v (B, T, KV, D); returns all keys and values (B, KV, L, D) and the mask or None."""


class CausalSelfAttention(nn.Module):
    """What the GPT uses: all of the above under GPT-2's parameter names, computed by the config's backend."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.heads = [config.n_head, config.kv_heads, config.kv_heads]
        self.head_dim, self.window = config.head_dim, config.window
        self.backend, self.attn_dropout = config.attention, config.dropout
        plain = config.kv_heads == config.n_head and config.positions != "rotary"
        # q, k and v then stay one tensor, and so do their gradients.
        self.packed = config.attention == "fused" and plain
        self.c_attn = nn.Linear(config.n_embd, sum(self.heads) * self.head_dim, config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, config.bias)
        self.resid_dropout = Dropout(config.dropout, config.attention)

    def forward(self, x: Tensor, angles: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C). Angles (…, T, D/2) turn q and k; a cache adds earlier tokens."""
        return self.resid_dropout(self.c_proj(self.mix(self.c_attn(x), angles, cache)))

    def mix(self, qkv: Tensor, angles: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """What stands between the two projections: (B, T, (H + 2 KV) D) -> (B, T, C)."""
        qkv = qkv.unflatten(-1, (-1, self.head_dim))  # (B, T, …) -> (B, T, H + 2 KV, D)
        if cache is not None and cache.fused:
            y = cache.attend(qkv, angles, self.window)
        elif self.packed and cache is None:
            from kernels import causal_attention_qkvpacked

            qkv = qkv.unflatten(2, (3, -1))  # (B, T, 3 H, D) -> (B, T, 3, H, D)
            y = causal_attention_qkvpacked(qkv, dropout_p=self._dropout(), window=self.window)
        else:
            y = self._unpacked(qkv, angles, cache)
        return y.flatten(2)  # (B, T, H, D) -> (B, T, C)

    def _unpacked(self, qkv: Tensor, angles: Tensor | None, cache: Cache | None) -> Tensor:
        """qkv (B, T, H + 2 KV, D) -> (B, T, H, D)."""
        q, k, v = qkv.split(self.heads, dim=2)  # (B, T, H, D), twice (B, T, KV, D)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if cache is None:
            return self._causal(q, k, v)
        keys, values, mask = cache.extend(k, v)
        return self._masked(q.transpose(1, 2), keys, values, mask)

    def _causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, T, H, D), k and v (B, T, KV, D) -> (B, T, H, D)."""
        if self.backend == "fused":
            from kernels import causal_attention

            return causal_attention(q, k, v, dropout_p=self._dropout(), window=self.window)
        whole = self.backend == "sdpa" and self.window is None
        mask = None if whole else causal_mask(q.shape[1], self.window, q.device)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (B, T, H, D) -> (B, H, T, D)
        return self._masked(q, k, v, mask, is_causal=whole)

    def _masked(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool = False
    ) -> Tensor:
        """q (B, H, T, D), k and v (B, KV, L, D), mask (…, T, L) -> (B, T, H, D)."""
        if self.backend == "torch":
            k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
            return attend(q, k, v, mask, self._dropout()).transpose(1, 2)
        grouped = k.shape[1] != q.shape[1]
        y = F.scaled_dot_product_attention(
            q, k, v, mask, self._dropout(), is_causal=is_causal, enable_gqa=grouped
        )
        return y.transpose(1, 2)  # (B, H, T, D) -> (B, T, H, D)

    def _dropout(self) -> float:
        return self.attn_dropout if self.training else 0.0
