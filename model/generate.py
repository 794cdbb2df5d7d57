"""Generation: a prompt goes in, ids come out, each drawn by rules that are pure functions of the logits.

    for token in stream(gpt, prompt, 100, temperature=0.8, top_k=50, stop=end_of_text, seed=1): …

Keys and values of past tokens are kept in a preallocated cache, so a step costs one token's arithmetic. When
the context is full, its older half is forgotten and the rest is read again (see `context_start`).
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import GPTConfig
from model.gpt import GPT, check_ids


@dataclass(frozen=True)
class Rules:
    """How the next id is drawn. Temperature 0 is greedy: the likeliest id, whatever the rest says."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}: it must be 0 (greedy) or a number above 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}: it must be at least 1, or None for all")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: it must be above 0 and at most 1, or None for all")

    def choose(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Ids (B,) for logits (B, V), with one number in [0, 1) per row to decide; see `draw`."""
        if self.temperature == 0:
            return logits.argmax(-1)
        logits = logits.float() / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        return draw(logits.softmax(-1), uniform)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (…, V) with all but the k largest of each row at -inf; ties with the k-th stay.

    >>> keep_top_k(torch.tensor([1.0, 3.0, 2.0]), 2).tolist()
    [-inf, 3.0, 2.0]
    """
    smallest = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < smallest, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits (…, V) with all but the smallest set of likeliest ids whose probabilities reach p at -inf.

    Nucleus sampling, Holtzman et al. 2019.

    >>> keep_top_p(torch.tensor([0.5, 0.3, 0.2]).log(), 0.6).exp().round(decimals=1).tolist()
    [0.5, 0.30000001192092896, 0.0]
    """
    ordered, order = logits.sort(-1, descending=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # what stands in front of each id
    return logits.masked_fill((before >= p).gather(-1, order.argsort(-1)), -math.inf)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Ids (B,) from probabilities (B, V): the first whose running sum passes `uniform` (B,) in [0, 1).

    >>> draw(torch.tensor([[0.25, 0.5, 0.25]]).expand(3, 3), torch.tensor([0.2, 0.25, 0.8])).tolist()
    [0, 1, 2]
    """
    running = probabilities.cumsum(-1)
    return torch.searchsorted(running, uniform[:, None] * running[:, -1:], right=True)[:, 0]


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


@dataclass(frozen=True)
class _Place:
    """Where a step's tokens go: rows (B,), positions (B, T), longest context L, mask (B, 1, T, L)."""

    rows: Tensor
    positions: Tensor
    length: int
    mask: Tensor


class KVCache:
    """The caches of all layers, for a batch whose rows stand at positions of their own."""

    def __init__(self, gpt: GPT, rows: int, length: int):
        self.gpt, self.device = gpt, gpt.wte.weight.device
        self.layers = [LayerCache(gpt.config, rows, length, gpt.wte.weight) for _ in gpt.h]

    def read(self, contexts: Sequence[Sequence[int]], starts: Sequence[int], rows: Sequence[int]) -> Tensor:
        """Logits (B, V) after each context, whose tokens stand at start, start + 1, … in `rows`."""
        widest = max(map(len, contexts))
        padded = [
            list(ids) + [0] * (widest - len(ids)) for ids in contexts
        ]  # no earlier token sees the padding
        idx = torch.tensor(padded, device=self.device)  # (B, T)
        offsets = torch.tensor(starts, device=self.device)[:, None]  # (B, 1)
        positions = offsets + torch.arange(widest, device=self.device)  # (B, T)
        length = max(starts) + widest
        place = _Place(
            torch.tensor(rows, device=self.device), positions, length, self._mask(positions, length)
        )
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
        """Forgets all rows but these."""
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


class _Session:
    """A batch being written: what was said in each row, which rows go on, and the cache that holds them."""

    def __init__(self, gpt: GPT, prompts: Sequence[Sequence[int]], max_new_tokens: int):
        self.block_size = gpt.config.block_size
        self.said = [list(prompt) for prompt in prompts]
        self.open = set(range(len(prompts)))
        self.rows = list(self.open)  # cache row i holds self.said[self.rows[i]]
        longest = max(map(len, self.said)) + max_new_tokens
        self.cache = KVCache(gpt, len(prompts), min(self.block_size, longest))

    def prefill(self) -> Tensor:
        """Reads the prompts: logits (B, V)."""
        return self.cache.read(self.said, [0] * len(self.rows), range(len(self.rows)))

    def step(self) -> Tensor:
        """Reads the token said last in each row: logits (B, V)."""
        if 8 * len(self.open) <= 7 * len(self.rows):  # an eighth is done: worth the copy
            kept = [i for i, row in enumerate(self.rows) if row in self.open]
            self.cache.keep(kept)
            self.rows = [self.rows[i] for i in kept]
        sizes = [len(self.said[row]) for row in self.rows]
        starts = [context_start(size, self.block_size) for size in sizes]
        logits = self.cache.read(
            [self.said[row][-1:] for row in self.rows],
            [size - 1 - start for size, start in zip(sizes, starts, strict=True)],
            range(len(self.rows)),
        )
        return self._read_anew(logits, sizes, starts)

    def _read_anew(self, logits: Tensor, sizes: list[int], starts: list[int]) -> Tensor:
        """Where a context has just slid, its tokens have new positions: those rows are read anew."""
        slid = [i for i, size in enumerate(sizes) if starts[i] != context_start(size - 1, self.block_size)]
        if slid:
            contexts = [self.said[self.rows[i]][starts[i] :] for i in slid]
            logits[slid] = self.cache.read(contexts, [0] * len(slid), slid)
        return logits


def stream(
    gpt: GPT,
    ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | Collection[int] = (),
    seed: int | None = None,
) -> Iterator[int]:
    """Yields up to `max_new_tokens` ids that continue `ids`, each as soon as it is drawn.

    Ends before a `stop` id, which is not yielded. The same seed gives the same ids (None: torch's own
    randomness decides). Raises a ValueError at once for an empty prompt, one longer than block_size, or an
    impossible rule.
    """
    session = _prepare(gpt, [ids], max_new_tokens)
    rules = Rules(temperature, top_k, top_p)
    return (
        token for said in _write(gpt, session, max_new_tokens, rules, stop, seed) for token in said.values()
    )


def generate_batch(
    gpt: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | Collection[int] = (),
    seed: int | None = None,
) -> list[list[int]]:
    """Continues every prompt, all in one batch; returns the new ids of each, without prompt and stop id.

    Prompts may differ in length. Row i is what `stream` with seed + i says, whatever the other rows are.
    """
    rules = Rules(temperature, top_k, top_p)
    new: list[list[int]] = [[] for _ in prompts]
    if prompts:
        session = _prepare(gpt, prompts, max_new_tokens)
        for said in _write(gpt, session, max_new_tokens, rules, stop, seed):
            for row, token in said.items():
                new[row].append(token)
    return new


def _prepare(gpt: GPT, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> _Session:
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: it must be 0 or more")
    for prompt in prompts:
        if not 1 <= len(prompt) <= gpt.config.block_size:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens, the model reads 1 to {gpt.config.block_size}: "
                "shorten it, or start from <|endoftext|> where there is none"
            )
        check_ids(torch.tensor(prompt), gpt.config.vocab_size, "the prompt")
    return _Session(gpt, prompts, max_new_tokens)


@torch.inference_mode()
def _write(
    gpt: GPT,
    session: _Session,
    max_new_tokens: int,
    rules: Rules,
    stop: int | Collection[int],
    seed: int | None,
) -> Iterator[dict[int, int]]:
    """Yields, step by step, the id said in each row that is still open."""
    stops = {stop} if isinstance(stop, int) else set(stop or ())
    device = session.cache.device
    uniforms = _uniforms(len(session.said), max_new_tokens, seed).to(device)  # (rows, steps)
    was_training = gpt.training
    gpt.eval()
    try:
        for step in range(max_new_tokens):
            logits = session.step() if step else session.prefill()
            ids = rules.choose(logits, uniforms[session.rows, step]).tolist()
            drawn = {row: token for row, token in zip(session.rows, ids, strict=True) if row in session.open}
            session.open -= {row for row, token in drawn.items() if token in stops}
            for row, token in zip(session.rows, ids, strict=True):
                session.said[row].append(token)
            yield {row: token for row, token in drawn.items() if row in session.open}
            if not session.open:
                return
    finally:
        gpt.train(was_training)


def _uniforms(rows: int, steps: int, seed: int | None) -> Tensor:
    """(rows, steps) numbers in [0, 1), each row from a generator of its own: no row sways another."""
    if seed is None:
        return torch.rand(rows, steps)
    return torch.stack(
        [torch.rand(steps, generator=torch.Generator().manual_seed(seed + i)) for i in range(rows)]
    )
