"""Who is computed in the next step: continuous batching over the paged cache, on token ids alone.

    scheduler.add(request)         it waits
    scheduler.step()               one pass of the model; returns the tokens drawn
    scheduler.finish(text, …)  a stop string was found, or its client has gone

Every text has `tokens`, the keys and values of the first `computed` of which are stored. A step feeds each running
text some of the rest: of prompts at most `chunk` tokens in all, so that a long one does not stall the others. When the
last token has been fed, the logits after it give the next. So reading a prompt, decoding, and computing again what was
lost are one rule. Yu et al. 2022 (Orca), Agrawal et al. 2023 (Sarathi).

Memory: a waiting request is admitted, first come first served, if the pool has pages for it. If a running one needs a
page and there is none, the tree of known beginnings forgets some; if that is not enough, the text that came last gives
its pages back and waits to be computed again. Nobody starves: the oldest request always goes on.
"""

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from kernels.decode import likeliest
from model.generate import AHEAD, Rules
from model.gpt import GPT
from serving.lookup import guess
from serving.paged_cache import PAGE, PagedCache, PagePool, Segment, page_bytes, pages_of
from serving.prefix_tree import PrefixTree

Reason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Limits:
    """What the scheduler may use."""

    cache_mb: float = 256
    """Memory of the keys and values of all texts, in MB."""
    running: int = 64
    """Sequences computed at the same time; further requests wait."""
    chunk: int = 256
    """Tokens of prompts that a step reads at most, besides one token of each running text."""
    lookup: int = 0
    """Tokens guessed ahead for each text by prompt lookup; 0 guesses none. No text depends on it."""

    def __post_init__(self) -> None:
        for name, least in (("cache_mb", 0), ("running", 1), ("chunk", 1), ("lookup", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {least}")


@dataclass(frozen=True)
class Chance:
    """The log probability of a token in the model's own distribution, and the likeliest tokens with theirs."""

    log_probability: float
    likeliest: list[tuple[int, float]]


@dataclass(eq=False)
class Request:
    """A prompt to continue once for each of `seeds`."""

    prompt: list[int]
    max_new_tokens: int
    rules: Rules = field(default_factory=Rules)
    seeds: Sequence[int] = (0,)
    stop: Collection[int] = ()
    """Ids at which a text ends; they are not part of it."""
    bias: dict[int, float] = field(default_factory=dict)
    """Added to the logits of single ids."""
    top: int | None = None
    """Report how likely each token was, and this many of the likeliest; None reports nothing."""
    score_prompt: bool = False
    """Report the same for the tokens of the prompt, in `prompt_chances`."""
    prompt_chances: list[Chance] = field(default_factory=list)
    """For each token of the prompt after the first, in order."""
    texts: "list[Text]" = field(default_factory=list)
    """Its texts: one until the prompt is read, then one for each seed."""
    arrival: int = 0


class Text:
    """One text of a request as it grows."""

    def __init__(self, request: Request, index: int, tokens: list[int]):
        self.request, self.index, self.tokens = request, index, tokens
        self.computed = 0
        self.drawn = 0
        """How many of the tokens are not of the prompt."""
        self.pages: list[int] = []
        self.reason: Reason | None = None
        self._generator = torch.Generator().manual_seed(request.seeds[index])
        self._uniforms: list[float] = []
        self.rules = request.rules
        penalized = self.rules.repetition_penalty != 1
        self.is_plain = self.rules.greedy and not penalized and not request.bias
        """True if the likeliest token is taken, whatever came before."""
        self.seen = set(tokens) if penalized else None  # for the penalty

    def uniform(self, number: int) -> float:
        """Return the random number in [0, 1) that decides draw `number`; those of model.generate for the same seed."""
        while len(self._uniforms) <= number:
            self._uniforms += torch.rand(AHEAD, generator=self._generator).tolist()
        return self._uniforms[number]


@dataclass(slots=True)
class Feed:
    """What a step feeds of one text: `count` of its tokens, then guesses."""

    text: Text
    count: int
    guesses: Sequence[int]
    draws: bool
    """True if all of its tokens have been read after this, so that the next one is drawn."""
    scores: bool
    """True if the logits after each of its tokens are wanted, as the prompt's own chances are asked for."""

    @property
    def ids(self) -> list[int]:
        """Return the ids that the model reads."""
        first = self.text.computed
        return [*self.text.tokens[first : first + self.count], *self.guesses]


@dataclass(slots=True)
class Draw:
    """Which row of a step's logits decides the next token of a text, and which of its draws that is."""

    text: Text
    row: int
    number: int


@dataclass(slots=True)
class Drawn:
    """A token that a text has got; None if it ended without one."""

    text: Text
    id: int | None
    chance: Chance | None = None
    is_last: bool = True


@dataclass
class Counters:
    """What has happened since the start."""

    steps: int = 0
    prompt_tokens: int = 0
    """Tokens of prompts and of what was computed again."""
    reused_tokens: int = 0
    """Tokens that were found in the tree of known beginnings."""
    drawn_tokens: int = 0
    guessed_tokens: int = 0
    accepted_tokens: int = 0
    """Guesses that were right."""
    preemptions: int = 0


class Scheduler:
    """The requests that wait and run, and the pages that they hold."""

    def __init__(self, gpt: GPT, limits: Limits | None = None):
        """Allocate the cache. ValueError if a whole context does not fit into it."""
        self.gpt, self.limits = gpt, limits or Limits()
        count = int(self.limits.cache_mb * 1e6 / page_bytes(gpt))
        least = pages_of(gpt.config.block_size)
        if count < least:
            raise ValueError(
                f"a cache of {self.limits.cache_mb:g} MB holds no context of {gpt.config.block_size} tokens: give at "
                f"least --cache-mb {-(-least * page_bytes(gpt) // 100_000) / 10}"
            )
        self.pool, self.cache = PagePool(count), PagedCache(gpt, count)
        self.tree = PrefixTree(self.pool)
        self.waiting: list[Text] = []
        self.running: list[Text] = []  # both in the order of arrival
        self.counters, self._arrivals = Counters(), itertools.count(1)
        self.plan: list[Feed] = []
        """What the last step fed."""

    def check(self, request: Request) -> None:
        """Raise ValueError for a request that could never run."""
        room, count = self.gpt.config.block_size, len(request.seeds)
        if not 1 <= len(request.prompt) <= room:
            raise ValueError(f"the prompt has {len(request.prompt)} tokens, the model reads 1 to {room}")
        if not 1 <= count <= self.limits.running:
            raise ValueError(f"n is {count}: at most {self.limits.running} texts of a prompt run at a time")

    def add(self, request: Request) -> None:
        """Let a request wait for its turn. ValueError if it could never run."""
        self.check(request)
        request.arrival = next(self._arrivals)
        request.texts = [Text(request, 0, list(request.prompt))]
        self.waiting += request.texts

    @property
    def is_idle(self) -> bool:
        """True if there is nothing to compute."""
        return not self.running and not self.waiting

    @torch.inference_mode()
    def step(self) -> list[Drawn]:
        """Compute one pass of the model; return the tokens drawn, and the texts that ended without one."""
        self.plan = self._plan()
        if not self.plan:
            return []
        self.counters.steps += 1
        logits, rows = self._read()
        for feed, row in rows:
            if feed.scores:
                self._score_prompt(feed, logits, row)
        draws = list(self._draws(rows))
        return self._keep(rows, *self._choose(logits, draws))

    # ---- who runs

    def _plan(self) -> list[Feed]:
        """Return what to feed, after giving each text the pages that it needs for it."""
        plan, budget = [], self.limits.chunk
        preemptions = self.counters.preemptions
        for text in list(self.running):
            # One that is no longer running has just lost its pages to one before it.
            if self.counters.preemptions == preemptions or text in self.running:
                budget -= self._feed(text, budget, plan)
        while self.waiting and budget > 0 and self._admit(self.waiting[0]):
            text = self.waiting.pop(0)
            self.running.append(text)
            self.running.sort(key=lambda each: each.request.arrival)
            budget -= self._feed(text, budget, plan)
        return plan

    def _feed(self, text: Text, budget: int, plan: list[Feed]) -> int:
        """Add to the plan what to feed of a text, if there are pages for it; return how much of the budget that takes.

        The last token of a text, which gives the next one, is free; more of them count as part of a prompt.
        """
        left = len(text.tokens) - text.computed
        if left > 1 and budget <= 0:
            return 0
        count = 1 if left == 1 else min(left, budget)
        guesses = self._guesses(text) if self.limits.lookup and left == 1 else ()
        if not self._reserve(text, text.computed + count + len(guesses)):
            return 0
        scores = text.request.score_prompt and not text.drawn
        plan.append(Feed(text, count, guesses, count == left, scores))
        return count if left > 1 else 0

    def _guesses(self, text: Text) -> list[int]:
        """Return tokens that may come next, as many as could be kept; none if each draw depends on the one before."""
        request = text.request
        room = min(request.max_new_tokens - text.drawn, self.gpt.config.block_size - len(text.tokens))
        if text.seen is not None or not text.drawn or room <= 1:
            return []
        return guess(text.tokens, min(self.limits.lookup, room - 1))

    def _admit(self, text: Text) -> bool:
        """True if a waiting text may start; it then holds the pages of the beginning that is known.

        A page for each running text stays free, so that what is admitted is not taken away at once.
        """
        request = text.request
        count = 1 if text.drawn else len(request.seeds)
        if len(self.running) + count > self.limits.running and self.running:
            return False
        known = [] if request.score_prompt else self.tree.find(text.tokens)
        needed = pages_of(len(text.tokens) + 1) - len(known) + count - 1 + len(self.running)
        is_short = self.running and self.pool.free_count < needed
        if is_short and self.pool.free_count + self.tree.evictable() < needed:
            for page in known:
                self.pool.give_back(page)
            return False
        text.pages, text.computed = known, len(known) * PAGE
        self.counters.reused_tokens += text.computed
        return True

    def _reserve(self, text: Text, tokens: int) -> bool:
        """Give a text the pages for that many tokens, unshared where it will write; False if it lost its turn."""
        needed, holders = pages_of(tokens), self.pool.holders
        while len(text.pages) < needed:
            page = self._take(text)
            if page is None:
                return False
            text.pages.append(page)
        for number in range(text.computed // PAGE, needed):
            shared = text.pages[number]
            if holders[shared] == 1:
                continue
            page = self._take(text)  # copy on write: texts of one prompt share its last, half full page
            if page is None:
                return False
            self.cache.copy(shared, page)
            self.pool.give_back(shared)
            text.pages[number] = page
        return True

    def _take(self, text: Text) -> int | None:
        """Return a page for a running text, if need be at the cost of whoever came last; None if that is itself."""
        while True:
            if not self.pool.free_count:
                self.tree.evict(max(1, self.pool.count // 16))  # several, so that looking for them is rare
            page = self.pool.take()
            if page is not None:
                return page
            last = self.running[-1]
            self._preempt(last)
            if last is text:
                return None

    def _preempt(self, text: Text) -> None:
        """Take a running text's pages; it waits, before all that came later, to be computed again."""
        self.running.remove(text)
        self._release(text)
        if not text.drawn:
            text.request.prompt_chances.clear()
        self.waiting.append(text)
        self.waiting.sort(key=lambda each: each.request.arrival)
        self.counters.preemptions += 1

    def _release(self, text: Text) -> None:
        """Give a text's pages back; the tree remembers those that are full."""
        for page in self.tree.insert(text.tokens[: text.computed], text.pages):
            self.pool.give_back(page)
        text.pages, text.computed = [], 0

    def finish(self, text: Text, reason: Reason) -> None:
        """End a text, wherever it is; nothing happens if it has ended."""
        if text.reason is not None:
            return
        text.reason = reason
        if text in self.running:
            self.running.remove(text)
            self._release(text)
        else:
            self.waiting.remove(text)

    # ---- what is computed

    def _read(self) -> tuple[Tensor, list[tuple[Feed, int]]]:
        """Return the logits that are wanted, and for each feed the row where its own begin."""
        groups: dict[int, list[Feed]] = {}
        for feed in self.plan:
            groups.setdefault(feed.count + len(feed.guesses), []).append(feed)
        segments, wanted, rows, first = [], [], [], 0
        for width, feeds in groups.items():
            texts = [feed.text for feed in feeds]
            starts, pages = [each.computed for each in texts], [each.pages for each in texts]
            segments.append(Segment.of([feed.ids for feed in feeds], starts, pages))
            for feed in feeds:
                begin = 0 if feed.scores else feed.count - 1 if feed.draws else width
                rows.append((feed, len(wanted)))
                wanted += range(first + begin, first + width)
                first += width
        if not wanted:  # nothing is drawn yet, but the keys and values are to be stored
            wanted = [first - 1]
        return self.cache.read(segments, wanted), rows

    def _draws(self, rows: list[tuple[Feed, int]]) -> Iterator[Draw]:
        """Yield the draws of a step. When a prompt has been read, its further texts begin, sharing its pages."""
        for feed, row in rows:
            text, request = feed.text, feed.text.request
            if not feed.draws or not request.max_new_tokens:
                continue
            if text.drawn:
                for number in range(len(feed.guesses) + 1):
                    yield Draw(text, row + number, text.drawn + number)
                continue
            if len(request.texts) < len(request.seeds):
                self._fork(text, feed.count)
            for each in request.texts:
                yield Draw(each, row + feed.count - 1 if feed.scores else row, 0)

    def _fork(self, text: Text, fed: int) -> None:
        """Begin the other texts of a request, whose prompt has just been read."""
        request = text.request
        for index in range(1, len(request.seeds)):
            other = Text(request, index, list(text.tokens))
            other.pages, other.computed = list(text.pages), text.computed + fed
            for page in other.pages:
                self.pool.share(page)
            request.texts.append(other)
        place = self.running.index(text) + 1
        self.running[place:place] = request.texts[1:]

    def _choose(self, logits: Tensor, draws: list[Draw]) -> tuple[list[int], list[Chance | None]]:
        """Return the id that each draw gives, and how likely it was if its request asks for that.

        An id outside the vocabulary says that the logits are not numbers.
        """
        ids: list[int] = [0] * len(draws)
        chances: list[Chance | None] = [None] * len(draws)
        groups: dict[Rules | None, list[int]] = {}  # None: the likeliest, for which no rule is looked at
        for place, draw in enumerate(draws):
            groups.setdefault(None if draw.text.is_plain else draw.text.rules, []).append(place)
        for rules, places in groups.items():
            group = [draws[place] for place in places]
            rows = _selected(logits, [draw.row for draw in group])
            chosen = likeliest(rows).tolist() if rules is None else self._choose_alike(rows, group, rules)
            for place, id in zip(places, chosen, strict=True):
                ids[place] = id
        for place, draw in enumerate(draws):
            top = draw.text.request.top
            if top is not None and ids[place] < logits.shape[-1]:
                chances[place] = _chance(logits[draw.row], ids[place], top)
        return ids, chances

    def _choose_alike(self, logits: Tensor, draws: list[Draw], rules: Rules) -> list[int]:
        """Return the ids of draws by the same rules, logits (draws, V)."""
        if any(draw.text.request.bias for draw in draws):
            logits = logits.clone()
            for row, draw in enumerate(draws):
                for id, bias in draw.text.request.bias.items():
                    logits[row, id] += bias
        present = None
        if rules.repetition_penalty != 1:
            present = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
            for row, draw in enumerate(draws):
                present[row, list(draw.text.seen)] = True
        numbers = [0.0 if rules.greedy else draw.text.uniform(draw.number) for draw in draws]
        return rules.choose(logits, torch.tensor(numbers, device=logits.device), present).tolist()

    def _score_prompt(self, feed: Feed, logits: Tensor, row: int) -> None:
        """Add the chances of the prompt's tokens after those that were just fed."""
        request, first = feed.text.request, feed.text.computed
        for place in range(first, min(first + feed.count, len(request.prompt) - 1)):
            chance = _chance(logits[row + place - first], request.prompt[place + 1], request.top or 0)
            request.prompt_chances.append(chance)

    def _keep(
        self, rows: list[tuple[Feed, int]], ids: list[int], chances: list[Chance | None]
    ) -> list[Drawn]:
        """Add to the texts what was drawn, in the order of `_draws`; end those that are complete."""
        kept: list[Drawn] = []
        drawn = zip(ids, chances, strict=True)
        for feed, _ in rows:
            text, draws = feed.text, feed.draws
            if feed.count > 1 or not text.drawn:
                self.counters.prompt_tokens += feed.count
            text.computed += feed.count
            if draws and text.drawn and not feed.guesses:
                kept.append(self._add(text, *next(drawn)))
            elif draws and text.drawn:
                found = list(itertools.islice(drawn, len(feed.guesses) + 1))
                kept += self._keep_guessed(text, found, feed.guesses)
            elif draws:
                kept += self._keep_first(text, drawn)
        return kept

    def _keep_first(self, text: Text, drawn: Iterator[tuple[int, Chance | None]]) -> list[Drawn]:
        """Add the first token to each text of a request, whose prompt has been read."""
        request = text.request
        if not request.score_prompt:
            text.pages = self.tree.insert(text.tokens[: text.computed], text.pages)
        if not request.max_new_tokens:  # nothing is drawn: the other texts are over before they begin
            self.finish(text, "length")
            others = [Text(request, index, list(text.tokens)) for index in range(1, len(request.seeds))]
            for each in others:
                each.reason = "length"
            request.texts += others
            return [Drawn(each, None) for each in request.texts]
        return [self._add(each, *next(drawn)) for each in request.texts]

    def _keep_guessed(
        self, text: Text, found: list[tuple[int, Chance | None]], guesses: Sequence[int]
    ) -> list[Drawn]:
        """Add the tokens drawn for a text, up to the first wrong guess: after it the logits were wrong."""
        kept = []
        self.counters.guessed_tokens += len(guesses)
        for number, (id, chance) in enumerate(found):
            kept.append(self._add(text, id, chance))
            if text.reason is not None or number == len(guesses) or guesses[number] != id:
                break
            text.computed += 1  # the guess that was fed is this token
            self.counters.accepted_tokens += 1
        return kept

    def _add(self, text: Text, id: int, chance: Chance | None) -> Drawn:
        """Add a token to a text; end it if that was its last."""
        request = text.request
        if id >= self.gpt.config.vocab_size:
            self.finish(text, "error")
            return Drawn(text, None)
        if id in request.stop:
            self.finish(text, "stop")
            return Drawn(text, None)
        text.tokens.append(id)
        text.drawn += 1
        self.counters.drawn_tokens += 1
        if text.seen is not None:
            text.seen.add(id)
        full = len(text.tokens) >= self.gpt.config.block_size
        is_last = full or text.drawn >= request.max_new_tokens
        if is_last:
            self.finish(text, "length")
        return Drawn(text, id, chance, is_last)


def _selected(logits: Tensor, rows: list[int]) -> Tensor:
    """Return these rows of logits (N, V), without a copy if they are all of them."""
    return logits if rows == list(range(len(logits))) else logits[rows]


def _chance(logits: Tensor, id: int, count: int) -> Chance:
    """Return the chance of an id under logits (V,), and of the `count` likeliest ids."""
    log_probabilities = logits.float().log_softmax(-1)
    best = log_probabilities.topk(min(count, len(logits)))
    likeliest = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Chance(log_probabilities[id].item(), likeliest)
