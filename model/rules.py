"""The rules by which the next id is drawn: pure functions of the logits, one idea each.

`Rules` puts them in order: repetition penalty, temperature, top-k, top-p, min-p, draw.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

COLDEST = 1e-6  # colder is greedy in all but name, and far below float32 overflows


@dataclass(frozen=True)
class Rules:
    """How the next id is drawn. Temperature 0 or top_k 1 is greedy: the likeliest id, the first of equals."""

    temperature: float = 1.0
    """Divides the logits; 0, or at least COLDEST."""
    top_k: int | None = None
    """Keep the k likeliest ids."""
    top_p: float | None = None
    """Keep the smallest set of likeliest ids that holds this share of the probability."""
    min_p: float | None = None
    """Keep the ids at least this many times as likely as the likeliest one."""
    repetition_penalty: float = 1.0
    """Above 1, ids that stand in the text already become less likely."""

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

    def choose(self, logits: Tensor, uniform: Tensor, said: Tensor | None = None) -> Tensor:
        """Ids (B,) for logits (B, V), with one number in [0, 1) per row to decide; see `draw`.

        A row that holds a NaN has no likeliest id: its place is V, outside the vocabulary.
        said (B, V) of bool marks the ids that each row's text holds; only the repetition penalty asks.
        """
        if said is not None and self.repetition_penalty != 1:
            logits = penalize_repetition(logits, said, self.repetition_penalty)
        if self.greedy:
            largest = logits.max(-1)
            return largest.indices.masked_fill(largest.values.isnan(), logits.shape[-1])
        return draw(self.probabilities(logits), uniform)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest id is always taken."""
        return self.temperature == 0 or self.top_k == 1

    def probabilities(self, logits: Tensor) -> Tensor:
        """The probabilities (…, V) from which the id is drawn; temperature 0 has none."""
        logits = logits.float() / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        return logits.softmax(-1)


def penalize_repetition(logits: Tensor, said: Tensor, penalty: float) -> Tensor:
    """Logits (…, V) with those that `said` (…, V) of bool marks divided, where negative multiplied, by penalty.

    CTRL, Keskar et al. 2019, section 4.1; the case of negative logits as in transformers.

    >>> penalize_repetition(torch.tensor([2.0, -2.0, 2.0]), torch.tensor([True, True, False]), 2.0).tolist()
    [1.0, -4.0, 2.0]
    """
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(said, penalized, logits)


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
    if p == 1:
        return logits  # rounded sums can reach 1 before the last id
    ordered, order = logits.sort(-1, descending=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # what stands in front of each id
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, order, before >= p)
    return logits.masked_fill(dropped, -math.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Logits (…, V) with every id less likely than p times the likeliest one at -inf.

    Nguyen et al. 2024. The quotient of two probabilities is the exponential of the logits' difference.

    >>> keep_min_p(torch.tensor([0.5, 0.3, 0.2]).log(), 0.5).exp().round(decimals=1).tolist()
    [0.5, 0.30000001192092896, 0.0]
    """
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), -math.inf)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Ids (B,) from probabilities (B, V): the first whose running sum passes `uniform` (B,) in [0, 1).

    >>> draw(torch.tensor([[0.25, 0.5, 0.25]]).expand(3, 3), torch.tensor([0.2, 0.25, 0.8])).tolist()
    [0, 1, 2]
    """
    running = probabilities.cumsum(-1)
    return torch.searchsorted(running, uniform[:, None] * running[:, -1:], right=True)[:, 0]
