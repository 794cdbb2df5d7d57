"""Causal self-attention, grown from one head to the module that the GPT uses."""

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import GPTConfig
from model.layers import rotate


class Cache(Protocol):
    """Where a layer keeps the keys and values of the tokens before."""

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Stores k and v (B, T, KV, D); returns all keys and values (B, L, KV, D) and the mask or None."""


def weighted_values(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Attention written out: softmax(q kᵀ / sqrt(D)) v, over the keys that the mask allows.

    q (…, T, D), k and v (…, L, D), mask (…, T, L) of bool, True where a query may look.
    """
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # (…, T, D) @ (…, D, L) -> (…, T, L)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = scores.float().softmax(-1).to(v.dtype)
    return F.dropout(weights, dropout) @ v  # (…, T, L) @ (…, L, D) -> (…, T, D)


def causal_mask(length: int, window: int | None = None, device: torch.device | None = None) -> Tensor:
    """(T, T) of bool: row q may see column k where k <= q and, with a window, q - k < window.

    >>> causal_mask(4, window=2).int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    """
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return seen if window is None else seen.triu(1 - window)


class CausalSelfAttention(nn.Module):
    """The GPT's attention: many heads, one fused projection, grouped keys and values, an optional window.

    (B, T, C) -> (B, T, C). c_attn yields all queries, then all keys, then all values, as GPT-2's does.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.n_head, config.kv_heads, config.head_dim
        self.c_attn = nn.Linear(config.n_embd, (self.heads + 2 * self.kv_heads) * self.head_dim, config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.dropout, self.window, self.backend = config.dropout, config.window, config.attention

    def forward(self, x: Tensor, angles: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """x (B, T, C); angles (T, D/2) turn queries and keys; a cache adds the tokens before x."""
        heads = self.heads, self.kv_heads, self.kv_heads
        qkv = self.c_attn(x).unflatten(-1, (-1, self.head_dim))  # (B, T, (H + 2 KV) D) -> (B, T, H + 2 KV, D)
        q, k, v = qkv.split(heads, dim=2)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        y = self._cached(q, k, v, cache) if cache is not None else self._causal(q, k, v)
        return self.resid_dropout(self.c_proj(y.flatten(2)))  # (B, T, H, D) -> (B, T, C)

    def _causal(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, T, H, D), k and v (B, T, KV, D) -> (B, T, H, D)."""
        if self.backend == "fused":
            from kernels import causal_attention

            dropout = self.dropout if self.training else 0.0
            return causal_attention(q, k, v, dropout_p=dropout, window=self.window)
        if self.backend == "sdpa" and self.window is None:
            return self._heads_first(q, k, v, None, causal=True)
        return self._heads_first(q, k, v, causal_mask(q.shape[1], self.window, q.device))

    def _cached(self, q: Tensor, k: Tensor, v: Tensor, cache: Cache) -> Tensor:
        """As above for queries that follow the L - T tokens in the cache."""
        keys, values, mask = cache.extend(k, v)
        return self._heads_first(q, keys, values, mask)

    def _heads_first(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False
    ) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (B, T, H, D) -> (B, H, T, D)
        dropout = self.dropout if self.training else 0.0
        if self.backend == "torch":
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))  # KV -> H
            return weighted_values(q, k, v, mask, dropout).transpose(1, 2)
        grouped = self.heads != self.kv_heads
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal, enable_gqa=grouped)
        return y.transpose(1, 2)  # (B, H, T, D) -> (B, T, H, D)
