"""The KV cache: keys and values of past tokens, allocated once, so that a step costs one token's arithmetic.

When the context is full, its older half is forgotten and the rest is read again (see `context_start`).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import decode
from kernels.reference import visible
from model import ssm
from model.config import GPTConfig
from model.gpt import GPT
from model.step import integers


@dataclass(frozen=True)
class _Place:
    """Where the tokens (B, T) of a step are stored.

    In `rows` (B,) at `positions` (B, T) each, or, if that is all rows at the same positions (rows is None), from
    `start` on. Queries see keys 0 … length - 1 as the mask (B, 1, T, L) says; None: all of them, or those that the
    fused kernel finds by their positions. Row b has lengths[b] tokens, and then padding, which must not change a state;
    None where no layer has one.
    """

    rows: Tensor | None
    positions: Tensor
    start: int
    length: int
    mask: Tensor | None
    lengths: Tensor | None


class LayerCache:
    """Keys and values of one layer, (rows, KV, length, D), allocated once.

    Latent attention keeps kv_lora_rank + rotary_dim numbers a token as the key of one head, and no values.
    """

    def __init__(self, config: GPTConfig, rows: int, length: int, like: Tensor, fused: bool):
        heads, widths = config.kv_heads, [config.head_dim, config.head_dim]
        if config.kv_lora_rank:
            heads, widths = 1, [config.kv_lora_rank + config.rotary_dim, 0]
        self.keys, self.values = (like.new_zeros(rows, heads, length, width) for width in widths)
        self.place: _Place | None = None
        self.fused = fused

    def attend(self, qkv: Tensor, angles: Tensor | None, window: int | None) -> Tensor:
        """Store k and v and attend by one kernel, qkv (B, T, H + 2 KV, D) -> (B, T, H, D); only if `fused` is True.

        Autocast may have made qkv 16 bits wide; the kernel takes float32.
        """
        place = self.place
        return decode.cached_attention(
            qkv.float(), self.keys, self.values, place.positions, place.rows, angles, window
        )

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store k, v (B, T, KV, D); return all keys and values (B, KV, L, D) and the mask or None."""
        keys, values = self._store(self.keys, k), self._store(self.values, v)
        return keys, values, self.place.mask

    def _store(self, stored: Tensor, new: Tensor) -> Tensor:
        """Put new (B, T, KV, D) into stored (rows, KV, length, D); return what the queries see."""
        place = self.place
        if place.rows is None:
            rows = new.transpose(1, 2)  # (B, T, KV, D) -> (B, KV, T, D)
            stored.narrow(2, place.start, new.shape[1]).copy_(rows)
        else:
            stored[place.rows[:, None], :, place.positions] = new.to(stored.dtype)  # selects (B, T, KV, D)
            if len(place.rows) < len(stored):
                stored = stored[place.rows]  # (B, KV, length, D)
        return stored.narrow(2, 0, place.length)


class LayerState:
    """The states of one state-space layer (rows, H, P, N), and its convolution's last inputs (rows, taps, width)."""

    def __init__(self, config: GPTConfig, rows: int, like: Tensor):
        inner = ssm.EXPAND * config.n_embd
        self.inputs = like.new_zeros(rows, ssm.TAPS - 1, inner + 2 * config.ssm_state)
        self.state = like.new_zeros(rows, inner // config.ssm_head, config.ssm_head, config.ssm_state)
        self.place: _Place | None = None

    def load(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the inputs and states of the step's rows, 0 where a context begins, and which tokens are real."""
        place = self.place
        rows = slice(None) if place.rows is None else place.rows
        going_on = (place.positions[:, 0] > 0).to(self.state.dtype)  # (1,) or (B,)
        real = torch.arange(count, device=place.lengths.device) < place.lengths[:, None]  # (B, T)
        return (
            self.inputs[rows] * going_on[:, None, None],
            self.state[rows] * going_on[:, None, None, None],
            real,
        )

    def store(self, inputs: Tensor, state: Tensor) -> None:
        """Keep the last real ones of inputs (B, taps + T, width), and the states (B, H, P, N)."""
        place = self.place
        rows = torch.arange(len(inputs), device=inputs.device)
        last = place.lengths[:, None] + torch.arange(ssm.TAPS - 1, device=inputs.device)  # (B, taps)
        into = slice(None) if place.rows is None else place.rows
        self.inputs[into] = inputs[rows[:, None], last].to(self.inputs.dtype)
        self.state[into] = state.to(self.state.dtype)


class KVCache:
    """The caches of all layers, for a batch whose rows may be at different positions."""

    def __init__(self, gpt: GPT, rows: int, length: int, step: Callable[..., Tensor] | None = None):
        """Allocate the caches. With `step`, GPT.hidden compiled, every step has the same shapes; see `compile_step`."""
        like = gpt.wte.weight
        self.gpt, self.device, self.rows, self.length = gpt, like.device, rows, length
        plain = like.dtype == torch.float32 and gpt.config.kv_lora_rank is None
        self.fused = plain and decode.available(like.device.type)
        self.layers = [
            LayerCache(gpt.config, rows, length, like, self.fused)
            if kind == "a"
            else LayerState(gpt.config, rows, like)
            for kind in gpt.config.pattern
        ]
        self.step = step
        # A step is then one call, which reads any rows of the cache without a copy.
        self.at_once = gpt.fused_step is not None and self.fused and step is None
        if step is not None:
            for layer in self.layers:
                for tensor in _tensors(layer).values():
                    torch._dynamo.mark_static_address(tensor)  # so that a CUDA graph may write to it

    def read(self, contexts: Sequence[Sequence[int]], starts: Sequence[int], rows: Sequence[int]) -> Tensor:
        """Return logits (B, V) after each context, whose tokens are at start, start + 1, … in `rows`."""
        lengths = [len(ids) for ids in contexts]
        widest = max(lengths)
        # Padding comes after a row's tokens, none of which sees it.
        padded = [[*ids, *[0] * (widest - len(ids))] for ids in contexts]
        if self.at_once:
            return self._read_at_once(padded, lengths, starts, rows)
        step = self.step if widest == 1 and len(rows) == self.rows else None
        place = self._place(starts, lengths, rows, whole=step is not None)
        for layer in self.layers:
            layer.place = place
        idx = torch.tensor(padded, device=self.device)  # (B, T)
        hidden = (step or self.gpt.hidden)(idx, place.positions, self.layers)  # (B, T, C)
        return self.gpt.logits(_last(hidden, [length - 1 for length in lengths]))

    def _read_at_once(
        self, padded: list[list[int]], lengths: list[int], starts: Sequence[int], rows: Sequence[int]
    ) -> Tensor:
        """Do as `read` by the model's fused step, for which a row of the cache is one page."""
        widest, positions, wanted = len(padded[0]), integers(starts)[:, None], None  # (B, 1)
        if widest > 1:
            positions = positions + torch.arange(widest)  # (B, T)
            wanted = integers(row * widest + length - 1 for row, length in enumerate(lengths))
        ids = integers(itertools.chain.from_iterable(padded)).view(len(padded), widest)
        return self.gpt.fused_step([ids], [positions], [integers(rows)[:, None]], self.layers, wanted)

    def _place(
        self, starts: Sequence[int], lengths: Sequence[int], rows: Sequence[int], whole: bool
    ) -> _Place:
        """Return the place of a step: in each of `rows` as many tokens as `lengths` says, from its start on.

        With `whole` nothing but the values of its tensors differs from step to step, as compiled code needs.
        """
        count = max(lengths)
        together = len(set(starts)) == 1 and list(rows) == list(range(self.rows)) and not whole
        length = self.length if whole else max(starts) + count
        if together:  # positions (1, T) do for all rows
            positions = torch.arange(starts[0], length, device=self.device)[None]
        else:
            first = torch.tensor(list(starts), device=self.device)
            positions = first[:, None] + torch.arange(count, device=self.device)  # (B, T)
        sees_all = together and count == 1 and self.gpt.config.window is None
        mask = None if sees_all or self.fused else self._mask(positions, length)
        into = None if together else torch.tensor(list(rows), device=self.device)
        real = torch.tensor(lengths, device=self.device) if "m" in self.gpt.config.pattern else None
        return _Place(into, positions, starts[0] if together else 0, length, mask, real)

    def _mask(self, positions: Tensor, length: int) -> Tensor:
        """Return (B, 1, T, L): which of `length` keys a query at `positions` (B, T) sees, the same in all heads."""
        keys = torch.arange(length, device=self.device)
        return visible(positions, keys, self.gpt.config.window)[:, None]  # (B, T, L) -> (B, 1, T, L)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order; a row may be named twice."""
        chosen, self.rows = torch.tensor(rows, device=self.device), len(rows)
        for layer in self.layers:
            for name, tensor in _tensors(layer).items():
                setattr(layer, name, tensor[chosen])


def _tensors(layer: LayerCache | LayerState) -> dict[str, Tensor]:
    """Return the layer's tensors by name, each with a row for each row of the batch."""
    return {name: value for name, value in vars(layer).items() if isinstance(value, Tensor)}


def compile_step(gpt: GPT) -> Callable[..., Tensor]:
    """Compile GPT.hidden for steps of one token: one CUDA graph on a GPU; a CPU needs a C++ compiler for it."""
    mode = "reduce-overhead" if gpt.wte.weight.is_cuda else None
    return torch.compile(gpt.hidden, mode=mode, dynamic=False)


def _last(hidden: Tensor, places: Sequence[int]) -> Tensor:
    """Return the vector at each row's place: hidden (B, T, C) -> (B, C)."""
    if len(set(places)) == 1:
        return hidden[:, places[0]].contiguous()
    rows = torch.arange(len(places), device=hidden.device)
    return hidden[rows, torch.tensor(places, device=hidden.device)]


def context_start(tokens: int, block_size: int) -> int:
    """Return the index of the first of `tokens` tokens that the model still sees.

    Positions are part of what the cache holds, so it cannot slide by one; instead the older half is dropped
    whenever the context is full, and the rest is read again.

    >>> [context_start(n, block_size=8) for n in (7, 8, 9, 12, 13)]
    [0, 0, 4, 4, 8]
    """
    half = max(1, block_size // 2)
    return max(0, -(-(tokens - block_size) // half) * half)
