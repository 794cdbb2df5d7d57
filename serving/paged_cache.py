"""The KV cache in pages: a request holds as many pages as its text is long, wherever they are in memory.

`model.cache` reserves a whole context for each text of a batch. Here the memory of all texts is one pool of pages of
PAGE tokens each; a text lists its pages in order (its block table), and two texts that begin alike may list the same
ones. Kwon et al. 2023 (PagedAttention) took this from an operating system's virtual memory.

    pool.take(), pool.share(page), pool.give_back(page)    who holds which page
    cache.read(segments)                                   logits after new tokens, whose keys and values are stored
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import decode
from kernels.reference import visible
from model.config import GPTConfig
from model.gpt import GPT
from model.step import integers

PAGE = 16  # tokens: larger pages waste half of one for each text, smaller ones make longer tables


class PagePool:
    """Which pages are free, and how many holders each of the others has.

    >>> pool = PagePool(2)
    >>> page = pool.take()
    >>> pool.share(page); pool.give_back(page); pool.holders[page], pool.free_count
    (1, 1)
    """

    def __init__(self, count: int):
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self.holders = [0] * count

    @property
    def free_count(self) -> int:
        """Return the number of free pages."""
        return len(self._free)

    def take(self) -> int | None:
        """Return a free page, which the caller then holds; None if there is none."""
        if not self._free:
            return None
        page = self._free.pop()
        self.holders[page] = 1
        return page

    def share(self, page: int) -> None:
        """Add a holder to a page."""
        self.holders[page] += 1

    def give_back(self, page: int) -> None:
        """Remove a holder; the last one frees the page."""
        self.holders[page] -= 1
        if not self.holders[page]:
            self._free.append(page)


@dataclass(frozen=True)
class Segment:
    """New tokens of texts that all have as many of them in this step.

    `ids` and `positions` (b, t) of int64; `pages` (b, n) of int64 are the block tables, padded with any page.
    """

    ids: Tensor
    positions: Tensor
    pages: Tensor

    @classmethod
    def of(
        cls, ids: Sequence[Sequence[int]], starts: Sequence[int], pages: Sequence[Sequence[int]]
    ) -> "Segment":
        """Make a segment of b texts from their new ids, the position of the first, and their pages."""
        widest = max(map(len, pages))
        table: list[int] = []
        for row in pages:
            table += row
            table += [0] * (widest - len(row))
        positions = integers(starts)[:, None]  # (b, 1)
        if len(ids[0]) > 1:
            positions = positions + torch.arange(len(ids[0]))  # (b, t)
        flat = integers(itertools.chain.from_iterable(ids))
        return cls(flat.view(len(ids), -1), positions, integers(table).view(len(pages), widest))


class PagedLayer:
    """Keys and values of one layer, (pages, KV, PAGE, D); the `Cache` that model.attention reads and writes."""

    def __init__(self, config: GPTConfig, pages: int, like: Tensor, fused: bool):
        heads, widths = config.kv_heads, [config.head_dim, config.head_dim]
        if config.kv_lora_rank:  # latent attention keeps these alone, as the key of one head (model.cache)
            heads, widths = 1, [config.kv_lora_rank + config.rotary_dim, 0]
        self.keys, self.values = (like.new_zeros(pages, heads, PAGE, width) for width in widths)
        self.segments: list[Segment] = []
        self.mask: Tensor | None = None
        self.fused = fused

    def attend(self, qkv: Tensor, angles: Tensor | None, window: int | None) -> Tensor:
        """Store k and v and attend, qkv (1, N, H + 2 KV, D) -> (1, N, H, D), for all segments one after the other."""
        if len(self.segments) == 1:
            return self._attend(qkv, angles, window, self.segments[0])
        outs, first = [], 0
        for segment in self.segments:
            rows = slice(first, first + segment.ids.numel())
            turns = None if angles is None else angles[:, rows]
            outs.append(self._attend(qkv[:, rows], turns, window, segment))
            first = rows.stop
        return torch.cat(outs, 1)

    def _attend(self, qkv: Tensor, angles: Tensor | None, window: int | None, segment: Segment) -> Tensor:
        """Do the same for the tokens of one segment: (1, b t, …) -> (1, b t, H, D)."""
        shape = segment.ids.shape
        qkv = qkv.float().view(*shape, *qkv.shape[2:])  # (1, b t, …) -> (b, t, …)
        if angles is not None:
            angles = angles.view(*shape, -1)  # (1, b t, D/2) -> (b, t, D/2)
        out = decode.cached_attention(
            qkv, self.keys, self.values, segment.positions, None, angles, window, segment.pages
        )
        return out.flatten(0, 1)[None]  # (b, t, H, D) -> (1, b t, H, D)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store k and v (b, t, KV, D); return all keys and values (b, KV, n PAGE, D) and the mask (b, 1, t, n PAGE)."""
        (segment,) = self.segments
        return self._stored(self.keys, k, segment), self._stored(self.values, v, segment), self.mask

    @staticmethod
    def _stored(pool: Tensor, new: Tensor, segment: Segment) -> Tensor:
        """Put new (b, t, KV, D) into pool (pages, KV, PAGE, D); return what the tables list, side by side."""
        into = segment.pages.gather(1, segment.positions // PAGE)  # (b, t)
        pool[into, :, segment.positions % PAGE] = new.to(pool.dtype)
        rows = pool[segment.pages]  # (b, n, KV, PAGE, D)
        return rows.transpose(1, 2).flatten(2, 3)  # -> (b, KV, n PAGE, D)


class PagedCache:
    """The pages of all layers, and the passes of the model over new tokens."""

    def __init__(self, gpt: GPT, pages: int):
        """Allocate `pages` pages. ValueError for layers whose memory of a text is no list of tokens."""
        if "m" in gpt.config.pattern:
            raise ValueError(
                "a state-space layer keeps one state a text, not keys and values that pages could hold: serve a model "
                "of attention layers, or use sample.py"
            )
        like = gpt.wte.weight
        self.gpt, self.device = gpt, like.device
        plain = like.dtype == torch.float32 and gpt.config.kv_lora_rank is None
        self.fused = plain and decode.available(like.device.type)
        self.layers = [PagedLayer(gpt.config, pages, like, self.fused) for _ in gpt.config.pattern]

    @torch.inference_mode()
    def read(self, segments: Sequence[Segment], wanted: Sequence[int] | None = None) -> Tensor:
        """Store all new tokens, and return the logits (rows, V) after those that are `wanted`, or after each.

        The tokens are numbered through all segments. With the fused kernels they go through the model together, so that
        its weights are read once: a row's result does not depend on the others. Without, a segment at a time.
        """
        if self.fused and self.gpt.fused_step is not None:
            return self._read_at_once(segments, wanted)
        if self.fused:
            hidden = self._hidden(segments)
        else:
            hidden = torch.cat([self._hidden([self._moved(segment)]) for segment in segments])
        if wanted is not None and len(wanted) < len(hidden):
            hidden = hidden[torch.tensor(wanted, device=self.device)]  # (N, C) -> (rows, C)
        return self.gpt.logits(hidden)

    def _read_at_once(self, segments: Sequence[Segment], wanted: Sequence[int] | None) -> Tensor:
        """Do the same by the model's fused step."""
        ids, positions, pages = (
            [getattr(each, name) for each in segments] for name in ("ids", "positions", "pages")
        )
        are_all = wanted is None or len(wanted) == sum(each.numel() for each in ids)
        rows = None if are_all else integers(wanted)
        return self.gpt.fused_step(ids, positions, pages, self.layers, rows)

    def _hidden(self, segments: Sequence[Segment]) -> Tensor:
        """Return what the head reads for every token of the segments, (N, C)."""
        mask = None
        if len(segments) == 1:
            ids, positions = segments[0].ids, segments[0].positions
            if self.fused:
                ids, positions = ids.view(1, -1), positions.view(1, -1)  # (b, t) -> (1, b t)
            else:
                mask = self._mask(segments[0])
        else:
            ids, positions = (
                torch.cat([getattr(segment, name).flatten() for segment in segments])[None]
                for name in ("ids", "positions")
            )  # (1, N)
        for layer in self.layers:
            layer.segments, layer.mask = segments, mask
        return self.gpt.hidden(ids, positions, self.layers).flatten(0, 1)

    def _mask(self, segment: Segment) -> Tensor:
        """Return (b, 1, t, n PAGE): which places of its pages each new token sees."""
        keys = torch.arange(segment.pages.shape[1] * PAGE, device=self.device)
        return visible(segment.positions, keys, self.gpt.config.window)[:, None]

    def _moved(self, segment: Segment) -> Segment:
        return Segment(*(getattr(segment, name).to(self.device) for name in ("ids", "positions", "pages")))

    @torch.inference_mode()
    def copy(self, page: int, into: int) -> None:
        """Copy the keys and values of one page into another."""
        for layer in self.layers:
            layer.keys[into] = layer.keys[page]
            layer.values[into] = layer.values[page]


def page_bytes(gpt: GPT) -> int:
    """Return the bytes of one page in all layers.

    >>> page_bytes(GPT(GPTConfig(vocab_size=8, block_size=8, n_layer=2, n_head=1, n_embd=4)))
    1024
    """
    config = gpt.config
    width = 2 * config.kv_heads * config.head_dim
    if config.kv_lora_rank:
        width = config.kv_lora_rank + config.rotary_dim
    return config.n_layer * PAGE * width * gpt.wte.weight.element_size()


def pages_of(tokens: int) -> int:
    """Return how many pages hold `tokens` tokens.

    >>> pages_of(0), pages_of(16), pages_of(17)
    (0, 1, 2)
    """
    return -(-tokens // PAGE)
