"""The KV cache: keys and values of past tokens, allocated once, so that a step costs one token's arithmetic.

When the context is full, its older half is forgotten and the rest is read again (see `context_start`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import GPTConfig
from model.gpt import GPT


@dataclass(frozen=True)
class _Place:
    """Where a step's tokens go: rows (B,), positions (B, T), longest context L, mask (B, 1, T, L).

    The mask is None where every query may see all L keys.
    """

    rows: Tensor
    positions: Tensor
    length: int
    mask: Tensor | None


class LayerCache:
    """Keys and values of one layer, (rows, KV, length, D), allocated once."""

    def __init__(self, config: GPTConfig, rows: int, length: int, like: Tensor):
        shape = rows, config.kv_heads, length, config.head_dim
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.place: _Place | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Stores k, v (B, T, KV, D); returns all keys and values (B, KV, L, D) and who sees whom."""
        rows, length = self.place.rows, self.place.length
        at = rows[:, None], slice(None), self.place.positions  # selects (B, T, KV, D)
        self.keys[at], self.values[at] = k.to(self.keys.dtype), v.to(self.values.dtype)
        stored = [t if len(rows) == len(t) else t[rows] for t in (self.keys, self.values)]
        keys, values = (t[:, :, :length] for t in stored)  # (B, KV, L, D)
        return keys, values, self.place.mask


class KVCache:
    """The caches of all layers, for a batch whose rows stand at positions of their own."""

    def __init__(self, gpt: GPT, rows: int, length: int):
        self.gpt, self.device = gpt, gpt.wte.weight.device
        self.layers = [LayerCache(gpt.config, rows, length, gpt.wte.weight) for _ in gpt.h]

    def read(self, contexts: Sequence[Sequence[int]], starts: Sequence[int], rows: Sequence[int]) -> Tensor:
        """Logits (B, V) after each context, whose tokens stand at start, start + 1, … in `rows`."""
        widest = max(map(len, contexts))
        # Padding stands behind a row's own tokens, and none of them looks there.
        padded = [list(ids) + [0] * (widest - len(ids)) for ids in contexts]
        idx, first, into = (torch.tensor(t, device=self.device) for t in (padded, list(starts), list(rows)))
        positions = first[:, None] + torch.arange(widest, device=self.device)  # (B, T)
        in_step = widest == 1 and len(set(starts)) == 1 and self.gpt.config.window is None
        length = max(starts) + widest
        place = _Place(into, positions, length, None if in_step else self._mask(positions, length))
        for layer in self.layers:
            layer.place = place
        hidden = self.gpt.hidden(idx, positions, self.layers)  # (B, T, C)
        last = torch.tensor([len(ids) - 1 for ids in contexts], device=self.device)
        return self.gpt.lm_head(hidden[torch.arange(len(idx), device=self.device), last])

    def _mask(self, positions: Tensor, length: int) -> Tensor:
        """Which of `length` keys a query at `positions` (B, T) may see: (B, 1, T, L), alike in all heads."""
        columns, queries = torch.arange(length, device=self.device), positions[:, None, :, None]
        mask = columns <= queries
        window = self.gpt.config.window
        return mask if window is None else mask & (columns > queries - window)

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps these rows only, in this order; a row may be named twice."""
        chosen = torch.tensor(rows, device=self.device)
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[chosen], layer.values[chosen]


def context_start(tokens: int, block_size: int) -> int:
    """The first token that the model still sees when `tokens` have been said: the rule for sliding.

    Positions are part of what the cache holds, so it cannot slide by one; instead the older half is dropped
    whenever the context is full, and the rest read anew.

    >>> [context_start(n, block_size=8) for n in (7, 8, 9, 12, 13)]
    [0, 0, 4, 4, 8]
    """
    half = max(1, block_size // 2)
    return max(0, -(-(tokens - block_size) // half) * half)
