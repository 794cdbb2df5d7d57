"""One pre-token to token ids: merge the adjacent pair of lowest rank, the leftmost first, until none is left.

Two methods with one result. Short pieces (nearly all) take the plain loop, which is quadratic in a handful of
symbols. Long ones take a linked list with one bucket of places per rank, in O(n log n).
"""

import heapq
from collections.abc import Mapping, Sequence
from itertools import pairwise, repeat

Pair = tuple[int, int]
Merge = tuple[bytes, bytes]
SHORT = 48  # symbols up to which the plain loop is the faster one


def merge(ids: list[int], ranks: Mapping[Pair, int], made: Sequence[int]) -> list[int]:
    """The tokens of one pre-token.

    `ids` are the ids of its bytes, `ranks` maps a pair of ids to its rank, `made[rank]` is the id of the
    merged pair.

    >>> merge([1, 2, 1, 2, 3], {(1, 2): 0, (9, 3): 1}, [9, 10])
    [9, 10]
    """
    return _merge_short(ids, ranks, made) if len(ids) <= SHORT else _merge_long(ids, ranks, made)


def _merge_short(ids: list[int], ranks: Mapping[Pair, int], made: Sequence[int]) -> list[int]:
    ids, never = list(ids), len(made)
    while len(ids) > 1:
        found = list(map(ranks.get, pairwise(ids), repeat(never)))
        lowest = min(found)
        if lowest == never:
            break
        place = found.index(lowest)
        ids[place : place + 2] = [made[lowest]]
    return ids


def _merge_long(ids: list[int], ranks: Mapping[Pair, int], made: Sequence[int]) -> list[int]:
    """Every pair waits in the bucket of its rank; buckets are emptied by rank, each from left to right."""
    symbols = _Symbols(ids)
    buckets: dict[int, list[int]] = {}
    for place, pair in enumerate(pairwise(ids)):
        if (rank := ranks.get(pair)) is not None:
            buckets.setdefault(rank, []).append(place)
    waiting = list(buckets)
    heapq.heapify(waiting)
    while waiting:
        rank = heapq.heappop(waiting)
        places = sorted(buckets.pop(rank))
        for done, place in enumerate(places, 1):
            if symbols.rank_at(place, ranks) != rank:
                continue
            lowest = rank
            for changed in symbols.merge_at(place, made[rank]):
                new = symbols.rank_at(changed, ranks)
                if new is None:
                    continue
                if new not in buckets:
                    buckets[new] = []
                    heapq.heappush(waiting, new)
                buckets[new].append(changed)
                lowest = min(lowest, new)
            if lowest < rank:  # never in a trained vocabulary, where what is made later ranks later
                buckets.setdefault(rank, []).extend(places[done:])
                heapq.heappush(waiting, rank)
                break
    return symbols.alive()


class _Symbols:
    """A doubly linked list of ids; a place keeps its number, and a swallowed place holds None."""

    def __init__(self, ids: list[int]) -> None:
        self.ids: list[int | None] = [*ids, None]
        self.next = list(range(1, len(ids) + 2))
        self.previous = list(range(-1, len(ids)))

    def rank_at(self, place: int, ranks: Mapping[Pair, int]) -> int | None:
        """The rank of the pair that begins at `place`."""
        return ranks.get((self.ids[place], self.ids[self.next[place]]))

    def merge_at(self, place: int, new: int) -> tuple[int, ...]:
        """Puts `new` in place of the pair there; returns the places where other pairs begin now."""
        swallowed = self.next[place]
        after = self.next[swallowed]
        self.ids[place], self.ids[swallowed] = new, None
        self.next[place] = after
        if after < len(self.previous):
            self.previous[after] = place
        before = self.previous[place]
        return (place,) if before < 0 else (before, place)

    def alive(self) -> list[int]:
        return [symbol for symbol in self.ids if symbol is not None]
