"""Beam search: instead of drawing one id after another, look for the likeliest whole continuation.

For comparison more than for use: the likeliest text is rarely the best one (Holtzman et al. 2019). One beam is greedy
search. Prompt and continuation must fit the context.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.cache import KVCache
from model.generate import NOT_NUMBERS, check_prompts, stop_ids
from model.gpt import GPT, evaluating


@dataclass(frozen=True)
class Beam:
    """A continuation: its ids, without the stop id, and log P of them (and of the stop id, if it ended there)."""

    ids: list[int]
    log_probability: float
    ended: bool = False

    def score(self, length_penalty: float) -> float:
        """Return log P per token to the power of the penalty: 0 favours short texts, 1 compares means (Wu et al. 2016).

        >>> Beam([5, 9], -3.0, ended=True).score(1.0)
        -1.0
        """
        return self.log_probability / max(1, len(self.ids) + self.ended) ** length_penalty


@torch.inference_mode()
def beam_search(
    gpt: GPT,
    ids: Sequence[int],
    max_new_tokens: int,
    *,
    beams: int = 4,
    length_penalty: float = 1.0,
    stop: int | Collection[int] = (),
) -> list[Beam]:
    """Return the `beams` best continuations of `ids` that were found, the best first.

    Each step extends every open beam by every id and keeps the likeliest. One that draws a `stop` id is finished
    and leaves one place fewer to those still open. Raises a ValueError if prompt and continuation do not fit
    into block_size.
    """
    check_prompts(gpt, [ids], max_new_tokens)
    if beams < 1:
        raise ValueError(f"beams is {beams}: it must be at least 1")
    if len(ids) + max_new_tokens > gpt.config.block_size:
        raise ValueError(
            f"{len(ids)} tokens of prompt and {max_new_tokens} new ones do not fit into the context of "
            f"{gpt.config.block_size}: ask for fewer"
        )
    with evaluating(gpt):
        found = _search(gpt, ids, max_new_tokens, beams, stop_ids(stop))
    return sorted(found, key=lambda beam: beam.score(length_penalty), reverse=True)[:beams]


def _search(gpt: GPT, ids: Sequence[int], steps: int, beams: int, stops: set[int]) -> list[Beam]:
    """Return the beams that ended, and those still open after the last step: `beams` together."""
    cache = KVCache(gpt, 1, len(ids) + steps)
    finished, live = [], [Beam([], 0.0)]
    for step in range(steps):
        contexts = [beam.ids[-1:] for beam in live] if step else [ids]
        start = len(ids) + step - 1 if step else 0
        logits = cache.read(contexts, [start] * len(live), range(len(live)))  # (beams, V)
        grown = _extend(live, logits.float().log_softmax(-1), beams - len(finished), stops)
        finished += [beam for _, beam in grown if beam.ended]
        parents = [parent for parent, beam in grown if not beam.ended]
        live = [beam for _, beam in grown if not beam.ended]
        if not live:
            break
        cache.keep(parents)
    return finished + live


def _extend(live: list[Beam], log_p: Tensor, count: int, stops: set[int]) -> list[tuple[int, Beam]]:
    """Return the `count` likeliest extensions by log_p (beams, V), each with the number of the beam it extends."""
    total = log_p + log_p.new_tensor([beam.log_probability for beam in live])[:, None]
    best = total.flatten().topk(min(count, total.numel()))  # (beams, V) -> (beams V,)
    if best.values.isnan().any():  # NaN is the greatest of all
        raise ValueError(NOT_NUMBERS)
    grown = []
    for value, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        parent, token = divmod(place, log_p.shape[1])
        ids = live[parent].ids
        grown.append((parent, Beam(ids if token in stops else [*ids, token], value, token in stops)))
    return grown
