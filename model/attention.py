"""Causal self-attention with every variant: fewer key and value heads, a sliding window, rotary positions, a cache.

Grown from basics/gpt.py, which writes out one head and then several. Here `kernels.use` decides which kernels compute
the scores, and the T × T matrix of them is never stored.
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import kernels
from kernels.attention import torch_causal_attention
from kernels.reference import rotate
from model.config import GPTConfig
from model.layers import RMSNorm


class Cache(Protocol):
    """Where a layer keeps the keys and values of earlier tokens; see model.cache."""

    fused: bool
    """True if `attend` is to be called, else `extend`."""

    def attend(self, qkv: Tensor, angles: Tensor | None, window: int | None) -> Tensor:
        """Store the k and v of qkv (B, T, H + 2 KV, D) and attend to all keys, in one call: (B, T, H, D)."""

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store k and v (B, T, KV, D); return all keys and values (B, KV, L, D) and the mask or None."""


class CausalSelfAttention(nn.Module):
    """Attention of n_head query heads to kv_heads key and value heads, under GPT-2's parameter names.

    Groups of n_head / kv_heads query heads share one key and value head (Ainslie et al. 2023), which makes the cache
    smaller. With a window, a token sees itself and the window - 1 tokens before it (Beltagy et al. 2020).
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.heads = [config.n_head, config.kv_heads, config.kv_heads]
        self.head_dim, self.window, self.attn_dropout = config.head_dim, config.window, config.dropout
        # q, k and v then stay one tensor, and so do their gradients.
        self.packed = config.kv_heads == config.n_head
        self.c_attn = nn.Linear(config.n_embd, sum(self.heads) * self.head_dim, config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        # µP: scores are divided by the head's width, not by its root, which is what the kernels do.
        self.query_scale = config.width_ratio**-0.5
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm, self.k_norm = (RMSNorm(self.head_dim, config.norm_eps) for _ in range(2))
        if config.value_embedding:
            self.value_scale = nn.Parameter(torch.ones(()))

    @torch.no_grad()
    def imitate(self, scale: float) -> None:
        """Begin as trained attention looks: queries equal keys, the projection is `scale` times the transposed values.

        So a token attends to those like it, its score with itself being about sqrt(D) / 4, and what it writes is near
        what it has read (Trockman & Kolter 2023, section 3, with the sign that they find in language models).
        """
        width, group = self.c_proj.in_features, self.heads[0] // self.heads[1]
        heads = self.c_attn.weight.unflatten(0, (-1, self.head_dim))  # ((H + 2 KV) D, C) -> (H + 2 KV, D, C)
        queries, keys, values = heads.split(self.heads)
        keys.normal_(0.0, 0.5 / math.sqrt(width))
        queries.copy_(keys.repeat_interleave(group, dim=0))  # (KV, D, C) -> (H, D, C)
        read = values.repeat_interleave(group, dim=0).flatten(0, 1)  # (KV, D, C) -> (H D, C)
        self.c_proj.weight.copy_(scale * read.T)

    def forward(
        self,
        x: Tensor,
        angles: Tensor | None = None,
        cache: Cache | None = None,
        values: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> Tensor:
        """Map x (B, T, C) to (B, T, C). Angles (…, T, D/2) turn q and k; a cache adds earlier tokens.

        `values` (B, T, KV D) are rows of the value embedding, which are added to v. `ends` (documents + 1) of int64 on
        the CPU are where documents end in the B T tokens: a token then sees its own document only.
        """
        return self.resid_dropout(self.c_proj(self.mix(self.c_attn(x), angles, cache, values, ends)))

    def mix(
        self,
        qkv: Tensor,
        angles: Tensor | None = None,
        cache: Cache | None = None,
        values: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> Tensor:
        """Return what the second projection reads: (B, T, (H + 2 KV) D) -> (B, T, C)."""
        qkv = qkv.unflatten(-1, (-1, self.head_dim))  # (B, T, …) -> (B, T, H + 2 KV, D)
        if self.qk_norm or values is not None or self.query_scale != 1:
            qkv = self._adjusted(qkv, values)
        if cache is not None and cache.fused:
            return cache.attend(qkv, angles, self.window).flatten(2)  # (B, T, H, D) -> (B, T, C)
        plain = kernels.runs_on(qkv.device.type, self.head_dim) == "torch"
        if cache is None and not plain:
            return self._fused(qkv, angles, ends).flatten(2)  # (B, T, H, D) -> (B, T, C)
        q, k, v = qkv.split(self.heads, dim=2)  # (B, T, H, D), twice (B, T, KV, D)
        if angles is not None:
            turn = rotate if plain else kernels.rotary
            q, k = turn(q, angles), turn(k, angles)
        if ends is not None:
            y = self._documents(q, k, v, ends)
        elif cache is None:
            y = torch_causal_attention(q, k, v, None, self.window, self._dropout(), None)
        else:
            y = self._cached(q, *cache.extend(k, v))
        return y.flatten(2)  # (B, T, H, D) -> (B, T, C)

    def _adjusted(self, qkv: Tensor, values: Tensor | None) -> Tensor:
        """Return qkv (B, T, H + 2 KV, D) with normed q and k, scaled q, and v with the value embedding (B, T, KV D)."""
        q, k, v = qkv.split(self.heads, dim=2)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.query_scale != 1:
            q = q * self.query_scale
        if values is not None:
            v = v + self.value_scale * values.unflatten(-1, (-1, self.head_dim))  # (B, T, KV, D)
        return torch.cat([q, k, v.to(q.dtype)], dim=2)

    def _fused(self, qkv: Tensor, angles: Tensor | None, ends: Tensor | None) -> Tensor:
        """Attend within qkv (B, T, H + 2 KV, D), whose q and k are turned by the angles: (B, T, H, D)."""
        if ends is not None:
            return self._documents(*qkv.split(self.heads, dim=2), ends, angles)
        options = {"dropout_p": self._dropout(), "window": self.window, "angles": angles}
        if self.packed:
            qkv = qkv.unflatten(2, (3, -1))  # (B, T, 3 H, D) -> (B, T, 3, H, D)
            return kernels.causal_attention_qkvpacked(qkv, **options)
        return kernels.causal_attention(*qkv.split(self.heads, dim=2), **options)

    def _documents(
        self, q: Tensor, k: Tensor, v: Tensor, ends: Tensor, angles: Tensor | None = None
    ) -> Tensor:
        """Attend with q (B, T, H, D) to k and v (B, T, KV, D) within each document: (B, T, H, D)."""
        flat = (x.flatten(0, 1) for x in (q, k, v))  # (B, T, H, D) -> (B T, H, D)
        turns = None if angles is None else angles.flatten(0, 1)  # (B, T, D/2) -> (B T, D/2)
        y = kernels.document_attention(
            *flat, ends, window=self.window, dropout_p=self._dropout(), angles=turns
        )
        return y.unflatten(0, q.shape[:2])  # (B T, H, D) -> (B, T, H, D)

    def _cached(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attend with q (B, T, H, D) to keys and values (B, KV, L, D) under a mask (…, T, L): (B, T, H, D)."""
        grouped = keys.shape[1] != q.shape[2]
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), keys, values, mask, self._dropout(), enable_gqa=grouped
        )
        return y.transpose(1, 2)  # (B, H, T, D) -> (B, T, H, D)

    def _dropout(self) -> float:
        return self.attn_dropout if self.training else 0.0
