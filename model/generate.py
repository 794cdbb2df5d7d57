"""Generation: prompts go in, ids come out, step by step, each drawn by model.rules from a cache's logits.

    for token in stream(gpt, prompt, 100, temperature=0.8, top_k=50, stop=end_of_text, seed=1): …

`stream` continues one prompt, `generate_batch` many at once, and `Generation` is what both are made of: it lets
its reader end a row whenever the reader likes. The cache is in model.cache, beam search in model.beam.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from model.cache import KVCache, context_start
from model.gpt import GPT, check_ids, evaluating
from model.rules import Rules

Seed = int | Sequence[int] | None
AHEAD = 256  # steps whose random numbers are drawn at once
NOT_NUMBERS = "the model's logits are not numbers: its weights are damaged, or training diverged"


def stream(
    gpt: GPT,
    ids: Sequence[int],
    max_new_tokens: int,
    *,
    stop: int | Collection[int] = (),
    seed: int | None = None,
    **rules: Any,
) -> Iterator[int]:
    """Yields up to `max_new_tokens` ids that continue `ids`, each as soon as it is drawn.

    Ends before a `stop` id, which is not yielded. The same seed gives the same ids (None: torch's own
    randomness decides). `rules` are the fields of model.rules.Rules: temperature, top_k, top_p, min_p,
    repetition_penalty. Raises a ValueError at once for an empty prompt, one longer than block_size, or an
    impossible rule.
    """
    generation = Generation(gpt, [ids], max_new_tokens, rules=Rules(**rules), stop=stop, seed=seed)
    return (token for said in generation for token in said.values())


def generate_batch(
    gpt: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    stop: int | Collection[int] = (),
    seed: Seed = None,
    **rules: Any,
) -> list[list[int]]:
    """Continues every prompt, all in one batch; returns the new ids of each, without prompt and stop id.

    Prompts may differ in length. Row i is what `stream` says with seed + i, or with the i-th of several
    seeds, whatever the other rows are.
    """
    generation = Generation(gpt, prompts, max_new_tokens, rules=Rules(**rules), stop=stop, seed=seed)
    new: list[list[int]] = [[] for _ in prompts]
    for said in generation:
        for row, token in said.items():
            new[row].append(token)
    return new


class Generation:
    """A batch being written. Iterating gives, step by step, the id said in each row that is still open."""

    def __init__(
        self,
        gpt: GPT,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        rules: Rules | None = None,
        stop: int | Collection[int] = (),
        seed: Seed = None,
        step: Callable[..., Tensor] | None = None,
    ):
        """As `generate_batch`; `step` from model.cache.compile_step, for decoding with compiled code."""
        check_prompts(gpt, prompts, max_new_tokens)
        self.gpt, self.rules, self.steps = gpt, rules or Rules(), max_new_tokens
        self.block_size, self.step = gpt.config.block_size, step
        self.stops = stop_ids(stop)
        self.said = [list(prompt) for prompt in prompts]
        self.open = set(range(len(prompts)))
        self.rows = list(self.open)  # cache row i holds self.said[self.rows[i]]
        self.uniforms = _uniforms(_generators(len(prompts), seed), gpt.wte.weight.device)
        self.marks = self._marks() if self.rules.repetition_penalty != 1 else None

    def close(self, row: int) -> None:
        """Says no more in this row."""
        self.open.discard(row)

    @torch.inference_mode()
    def __iter__(self) -> Iterator[dict[int, int]]:
        """Yields {row: id}, from the prompts on, until every row is closed or has its tokens."""
        with evaluating(self.gpt):
            for step in range(self.steps if self.open else 0):
                logits = self._read_last() if step else self._read_prompts()
                drawn = self._choose(logits, next(self.uniforms))
                yield {row: token for row, token in drawn.items() if row in self.open}
                if not self.open:
                    return

    def _choose(self, logits: Tensor, uniform: Tensor) -> dict[int, int]:
        """Draws an id for each row of the cache from logits (B, V) and closes the rows that are at a stop.

        uniform (rows,) decides, for each of all the rows there were.
        """
        marks = None if self.marks is None else self.marks[self.rows]
        uniform = uniform if len(self.rows) == len(uniform) else uniform[self.rows]  # (B,)
        ids = self.rules.choose(logits, uniform, marks)  # (B,)
        tokens = ids.tolist()
        if max(tokens) >= logits.shape[-1]:
            raise ValueError(NOT_NUMBERS)
        if self.marks is not None:
            self.marks[self.rows, ids] = True
        drawn = dict(zip(self.rows, tokens, strict=True))
        for row, token in drawn.items():
            self.said[row].append(token)
            if token in self.stops:
                self.close(row)
        return drawn

    def _read_prompts(self) -> Tensor:
        """Logits (B, V) after the prompts."""
        longest = min(self.block_size, max(map(len, self.said)) + self.steps)
        self.cache = KVCache(self.gpt, len(self.rows), longest, self.step)
        return self.cache.read(self.said, [0] * len(self.rows), range(len(self.rows)))

    def _read_last(self) -> Tensor:
        """Logits (B, V) after the token said last in each row."""
        an_eighth_is_done = 8 * len(self.open) <= 7 * len(self.rows)
        if an_eighth_is_done and self.step is None:  # worth the copy, but not worth compiling another shape
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

    def _marks(self) -> Tensor:
        """(rows, V) of bool: which ids the prompts hold."""
        shape = len(self.said), self.gpt.config.vocab_size
        marks = torch.zeros(shape, dtype=torch.bool, device=self.gpt.wte.weight.device)
        for row, ids in enumerate(self.said):
            marks[row, ids] = True
        return marks


def stop_ids(stop: int | Collection[int]) -> set[int]:
    """The ids at which a text ends, given one or several."""
    return {stop} if isinstance(stop, int) else set(stop)


def check_prompts(gpt: GPT, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raises a ValueError for a prompt that the model cannot read."""
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: it must be 0 or more")
    for prompt in prompts:
        if not 1 <= len(prompt) <= gpt.config.block_size:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens, the model reads 1 to {gpt.config.block_size}: "
                "shorten it, or start from <|endoftext|> where there is none"
            )
        check_ids(torch.tensor(prompt), gpt.config.vocab_size, "the prompt")


def _generators(rows: int, seed: Seed) -> list[torch.Generator | None]:
    """A generator for each row, so that no row sways another; None is torch's own."""
    if seed is None:
        return [None] * rows
    seeds = range(seed, seed + rows) if isinstance(seed, int) else seed
    if len(seeds) != rows:
        raise ValueError(
            f"there are {len(seeds)} seeds for {rows} prompts: give one for each, or one for all"
        )
    return [torch.Generator().manual_seed(s) for s in seeds]


def _uniforms(generators: Sequence[torch.Generator | None], device: torch.device) -> Iterator[Tensor]:
    """Without end, for each step (rows,) numbers in [0, 1)."""
    while True:
        drawn = [torch.rand(AHEAD, generator=generator) for generator in generators]
        yield from torch.stack(drawn).to(device).unbind(1)  # (rows, AHEAD) -> AHEAD times (rows,)
