"""Generation: prompts go in, ids come out, step by step, each drawn by `Rules` from the logits of the last token.

    for token in stream(gpt, prompt, 100, temperature=0.8, top_k=50, stop=end_of_text, seed=1): …

Grown from basics/sample.py. `stream` continues one prompt, `generate_batch` many at once, and `Generation` is what both
are made of: its caller may close a row at any step. `Rules` applies in this order: repetition penalty, temperature,
top-k, top-p, min-p, draw; each is a pure function of the logits. The cache is in model.cache, beam search in
model.beam.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels import decode
from model.cache import KVCache, context_start
from model.gpt import GPT, check_ids, evaluating

Seed = int | Sequence[int] | None
AHEAD = 256  # steps whose random numbers are drawn at once
COLDEST = 1e-6  # colder is greedy in all but name, and far below float32 overflows
NOT_NUMBERS = "the model's logits are not numbers: its weights are damaged, or training diverged"


@dataclass(frozen=True)
class Rules:
    """How the next id is drawn. Temperature 0 or top_k 1 is greedy: the likeliest id, of equals the first."""

    temperature: float = 1.0
    """Divides the logits; 0, or at least COLDEST."""
    top_k: int | None = None
    """Keep the k likeliest ids."""
    top_p: float | None = None
    """Keep the smallest set of likeliest ids that holds this share of the probability."""
    min_p: float | None = None
    """Keep the ids at least this many times as likely as the likeliest one."""
    repetition_penalty: float = 1.0
    """Above 1, ids that are in the text already become less likely."""

    def __post_init__(self) -> None:
        if self.temperature != 0 and not COLDEST <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}: choose 0 (greedy) or {COLDEST} and more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}: it must be at least 1, or None for all")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} is {value}: it must be above 0 and at most 1, or None for all")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}: it must be above 0, and 1 for none"
            )

    def choose(self, logits: Tensor, uniform: Tensor, present: Tensor | None = None) -> Tensor:
        """Return ids (B,) for logits (B, V), with one number in [0, 1) per row to decide; see `draw`.

        A row that holds a NaN has no likeliest id: it gets V, which is outside the vocabulary. present (B, V) of bool
        marks the ids in each row's text, for the repetition penalty.
        """
        return self.choose_from(logits, uniform, present)[0]

    def choose_from(
        self, logits: Tensor, uniform: Tensor, present: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the ids that `choose` returns, and the probabilities (B, V) they were drawn from; None if greedy."""
        if present is not None and self.repetition_penalty != 1:
            logits = penalize_repetition(logits, present, self.repetition_penalty)
        if self.greedy:
            return decode.likeliest(logits), None
        probabilities = self.probabilities(logits)
        return draw(probabilities, uniform), probabilities

    @property
    def greedy(self) -> bool:
        """True if the likeliest id is always taken."""
        return self.temperature == 0 or self.top_k == 1

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities (…, V) from which the id is drawn; temperature 0 has none."""
        logits = logits.float() / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        return logits.softmax(-1)


def stream(
    gpt: GPT,
    ids: Sequence[int],
    max_new_tokens: int,
    *,
    stop: int | Collection[int] = (),
    seed: int | None = None,
    **rules: Any,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` ids that continue `ids`, each as soon as it is drawn.

    Ends before a `stop` id, which is not yielded. The same seed gives the same ids (None: torch's global generator
    decides). `rules` are the fields of Rules: temperature, top_k, top_p, min_p, repetition_penalty. Raises a ValueError
    at once for an empty prompt, one longer than block_size, or an impossible rule.
    """
    generation = Generation(gpt, [ids], max_new_tokens, rules=Rules(**rules), stop=stop, seed=seed)
    return (token for drawn in generation for token in drawn.values())


def generate_batch(
    gpt: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    stop: int | Collection[int] = (),
    seed: Seed = None,
    **rules: Any,
) -> list[list[int]]:
    """Continue every prompt, all in one batch; return the new ids of each, without prompt and stop id.

    Prompts may differ in length. Row i is what `stream` gives with seed + i, or with the i-th of several
    seeds, whatever the other rows are.
    """
    generation = Generation(gpt, prompts, max_new_tokens, rules=Rules(**rules), stop=stop, seed=seed)
    new: list[list[int]] = [[] for _ in prompts]
    for drawn in generation:
        for row, token in drawn.items():
            new[row].append(token)
    return new


class Generation:
    """A batch that is being continued. Iterating gives, step by step, the new id of each row that is still open."""

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
        record: bool = False,
    ):
        """Take the arguments of `generate_batch`; `step` is that of model.cache.compile_step, for compiled decoding.

        With `record`, `log_probabilities` tells how likely each id was.
        """
        check_prompts(gpt, prompts, max_new_tokens)
        self.gpt, self.rules, self.steps = gpt, rules or Rules(), max_new_tokens
        self.block_size, self.step = gpt.config.block_size, step
        self.stops = stop_ids(stop)
        self.ids = [list(prompt) for prompt in prompts]  # and what was drawn
        self.open = set(range(len(prompts)))
        self.rows = list(self.open)  # that are continued
        self.places = list(self.open)  # row self.places[i] of the cache holds self.ids[self.rows[i]]
        self.uniforms = _uniforms(_generators(len(prompts), seed), gpt.wte.weight.device)
        self.marks = self._marks() if self.rules.repetition_penalty != 1 else None
        self._recorded: list[tuple[list[int], Tensor]] | None = [] if record else None

    def close(self, row: int) -> None:
        """Draw no more ids for this row."""
        self.open.discard(row)

    @torch.inference_mode()
    def __iter__(self) -> Iterator[dict[int, int]]:
        """Yield {row: id}, step by step, until every row is closed or has its tokens."""
        with evaluating(self.gpt):
            for step in range(self.steps if self.open else 0):
                logits = self._read_last() if step else self._read_prompts()
                drawn = self._choose(logits, next(self.uniforms))
                yield {row: token for row, token in drawn.items() if row in self.open}
                if not self.open:
                    return

    def _choose(self, logits: Tensor, uniform: Tensor) -> dict[int, int]:
        """Draw an id for each row of the cache from logits (B, V) and close the rows that are at a stop.

        uniform (rows,) decides; it has a number for closed rows too.
        """
        marks = None if self.marks is None else self.marks[self.rows]
        uniform = uniform if len(self.rows) == len(uniform) else uniform[self.rows]  # (B,)
        ids, probabilities = self.rules.choose_from(logits, uniform, marks)  # (B,), (B, V)
        tokens = ids.tolist()
        if max(tokens) >= logits.shape[-1]:
            raise ValueError(NOT_NUMBERS)
        if self._recorded is not None:
            self._recorded.append((self.rows, _log_probability(probabilities, ids)))
        if self.marks is not None:
            self.marks[self.rows, ids] = True
        drawn = dict(zip(self.rows, tokens, strict=True))
        for row, token in drawn.items():
            self.ids[row].append(token)
            if token in self.stops:
                self.close(row)
        return drawn

    def log_probabilities(self) -> Tensor:
        """Return the logarithms (rows, steps) of the probabilities with which ids were drawn, also those of stop ids.

        Only with `record`. What comes after the end of a row means nothing.
        """
        found = torch.zeros(len(self.ids), len(self._recorded), device=self.gpt.wte.weight.device)
        for step, (rows, chosen) in enumerate(self._recorded):
            found[rows, step] = chosen
        return found

    def _read_prompts(self) -> Tensor:
        """Return logits (B, V) after the prompts; those that are equal are read once."""
        longest = min(self.block_size, max(map(len, self.ids)) + self.steps)
        # A compiled step has one shape: it keeps all rows.
        prompts = self.ids if self.step else list(dict.fromkeys(map(tuple, self.ids)))
        self.cache = KVCache(self.gpt, len(prompts), longest, self.step)
        logits = self.cache.read(prompts, [0] * len(prompts), range(len(prompts)))
        if len(prompts) == len(self.rows):
            return logits
        place = {prompt: number for number, prompt in enumerate(prompts)}
        chosen = [place[tuple(ids)] for ids in self.ids]
        self.cache.keep(chosen)
        return logits[chosen]

    def _read_last(self) -> Tensor:
        """Return logits (B, V) after the last token of each row."""
        kept = [i for i, row in enumerate(self.rows) if row in self.open]
        an_eighth_is_closed = 8 * len(kept) <= 7 * len(self.rows)
        # A copy of the cache is worth it for an eighth, and another shape for a compiled step never is.
        if self.cache.at_once or (an_eighth_is_closed and self.step is None):
            self.rows, self.places = ([each[i] for i in kept] for each in (self.rows, self.places))
            if not self.cache.at_once:
                self.cache.keep(self.places)
                self.places = list(range(len(kept)))
        sizes = [len(self.ids[row]) for row in self.rows]
        starts = [context_start(size, self.block_size) for size in sizes]
        logits = self.cache.read(
            [self.ids[row][-1:] for row in self.rows],
            [size - 1 - start for size, start in zip(sizes, starts, strict=True)],
            self.places,
        )
        return self._reread(logits, sizes, starts)

    def _reread(self, logits: Tensor, sizes: list[int], starts: list[int]) -> Tensor:
        """Return the logits after reading again the rows whose context has just slid: its tokens have new positions."""
        slid = [i for i, size in enumerate(sizes) if starts[i] != context_start(size - 1, self.block_size)]
        if slid:
            contexts = [self.ids[self.rows[i]][starts[i] :] for i in slid]
            logits[slid] = self.cache.read(contexts, [0] * len(slid), [self.places[i] for i in slid])
        return logits

    def _marks(self) -> Tensor:
        """Return (rows, V) of bool: True for the ids in each prompt."""
        shape = len(self.ids), self.gpt.config.vocab_size
        marks = torch.zeros(shape, dtype=torch.bool, device=self.gpt.wte.weight.device)
        for row, ids in enumerate(self.ids):
            marks[row, ids] = True
        return marks


def _log_probability(probabilities: Tensor | None, ids: Tensor) -> Tensor:
    """Return log P(id) (B,) for ids (B,) drawn from probabilities (B, V), or that of greedy ones, 0."""
    if probabilities is None:
        return torch.zeros(len(ids), device=ids.device)
    return probabilities.gather(-1, ids[:, None])[:, 0].log()


def stop_ids(stop: int | Collection[int]) -> set[int]:
    """Return the ids at which a text ends, given one or several."""
    return {stop} if isinstance(stop, int) else set(stop)


def check_prompts(gpt: GPT, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Raise a ValueError for a prompt that the model cannot read."""
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: it must be 0 or more")
    for prompt in prompts:
        if not 1 <= len(prompt) <= gpt.config.block_size:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens, the model reads 1 to {gpt.config.block_size}: "
                "shorten it, or start from <|endoftext|> if there is none"
            )
        check_ids(torch.tensor(prompt), gpt.config.vocab_size, "the prompt")


def _generators(rows: int, seed: Seed) -> list[torch.Generator | None]:
    """Return a generator for each row, so that no row changes another; None is torch's global one."""
    if seed is None:
        return [None] * rows
    seeds = range(seed, seed + rows) if isinstance(seed, int) else seed
    if len(seeds) != rows:
        raise ValueError(
            f"there are {len(seeds)} seeds for {rows} prompts: give one for each, or one for all"
        )
    return [torch.Generator().manual_seed(s) for s in seeds]


def _uniforms(generators: Sequence[torch.Generator | None], device: torch.device) -> Iterator[Tensor]:
    """Yield for each step, without end, numbers (rows,) in [0, 1)."""
    while True:
        drawn = [torch.rand(AHEAD, generator=generator) for generator in generators]
        yield from torch.stack(drawn).to(device).unbind(1)  # (rows, AHEAD) -> AHEAD times (rows,)


def penalize_repetition(logits: Tensor, present: Tensor, penalty: float) -> Tensor:
    """Return logits (…, V) with those marked by `present` (…, V) of bool divided, if negative multiplied, by penalty.

    CTRL, Keskar et al. 2019, section 4.1; the case of negative logits as in transformers.

    >>> penalize_repetition(torch.tensor([2.0, -2.0, 2.0]), torch.tensor([True, True, False]), 2.0).tolist()
    [1.0, -4.0, 2.0]
    """
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(present, penalized, logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Return logits (…, V) with all but the k largest of each row at -inf; ties with the k-th stay.

    >>> keep_top_k(torch.tensor([1.0, 3.0, 2.0]), 2).tolist()
    [-inf, 3.0, 2.0]
    """
    smallest = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < smallest, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Return logits (…, V) with all but the smallest set of likeliest ids whose probabilities reach p at -inf.

    Nucleus sampling, Holtzman et al. 2019.

    >>> keep_top_p(torch.tensor([0.5, 0.3, 0.2]).log(), 0.6).exp().round(decimals=1).tolist()
    [0.5, 0.30000001192092896, 0.0]
    """
    if p == 1:
        return logits  # rounded sums can reach 1 before the last id
    ordered, order = logits.sort(-1, descending=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # of all likelier ids
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, order, before >= p)
    return logits.masked_fill(dropped, -math.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Return logits (…, V) with every id less likely than p times the likeliest one at -inf.

    Nguyen et al. 2024. The quotient of two probabilities is the exponential of the logits' difference.

    >>> keep_min_p(torch.tensor([0.5, 0.3, 0.2]).log(), 0.5).exp().round(decimals=1).tolist()
    [0.5, 0.30000001192092896, 0.0]
    """
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), -math.inf)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return ids (B,) from probabilities (B, V): the first whose running sum passes `uniform` (B,) in [0, 1).

    >>> draw(torch.tensor([[0.25, 0.5, 0.25]]).expand(3, 3), torch.tensor([0.2, 0.25, 0.8])).tolist()
    [0, 1, 2]
    """
    running = probabilities.cumsum(-1)
    return torch.searchsorted(running, uniform[:, None] * running[:, -1:], right=True)[:, 0]
