"""Pre-tokens to token ids: merge the adjacent pair of lowest rank, the leftmost first, until none is left.

Three methods with one result (`merge_word` in basics/bpe.py is the definition). One short pre-token takes the plain
loop, which is quadratic in a handful of symbols. One long pre-token takes a linked list with one bucket of places per
rank, in O(n log n). Many new pre-tokens take rounds over arrays: each round makes the next merge of every pre-token.
"""

import heapq
from collections.abc import Mapping, Sequence
from itertools import pairwise, repeat

import numpy as np

Pair = tuple[int, int]
Merge = tuple[bytes, bytes]
SHORT = 48  # symbols up to which the plain loop is the faster one
MANY = 64  # pre-tokens from which rounds over arrays are faster than one after another


def merge(ids: list[int], ranks: Mapping[Pair, int], made: Sequence[int]) -> list[int]:
    """Return the tokens of one pre-token.

    `ids` are the ids of its bytes, `ranks` maps a pair of ids to its rank, `made[rank]` is the id of the
    merged pair.

    >>> merge([1, 2, 1, 2, 3], {(1, 2): 0, (9, 3): 1}, [9, 10])
    [9, 10]
    """
    if len(ids) > SHORT:
        return _merge_long(ids, ranks, made)
    ids, never = list(ids), len(made)
    while len(ids) > 1:
        found = list(map(ranks.get, pairwise(ids), repeat(never)))
        lowest = min(found)
        if lowest == never:
            break
        place = found.index(lowest)
        ids[place : place + 2] = [made[lowest]]
    return ids


_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, as in Knuth's multiplicative hashing
_EMPTY = np.uint64(2**64 - 1)
_NEVER = 2**31 - 1  # the rank of a pair that is not merged
_PLACE_BITS = 32
_DONE = _NEVER << _PLACE_BITS  # less than this is the rank and place of a pair that is merged
_NOTHING = 2**31 - 1  # the id of what is left of the first symbol and right of the last one


class BatchMerger:
    """Merges many pre-tokens at once. The ranks of pairs are in a hash table of arrays, with linear probing."""

    def __init__(
        self, ranks: Mapping[Pair, int], made: Sequence[int], byte_ids: Sequence[int], dtype: np.dtype
    ) -> None:
        self.byte_ids, self.dtype = np.array(byte_ids, np.int64), dtype
        self.made = np.array([*made, 0], np.int64)
        bits = (4 * len(ranks) + 4).bit_length()
        self._shift, self._mask = np.uint64(64 - bits), (1 << bits) - 1
        self._keys = np.full(1 << bits, _EMPTY)
        self._ranks = np.full(1 << bits, _NEVER, np.int32)
        pairs = np.array(list(ranks), np.int64).reshape(-1, 2)
        self._pairs = pairs
        keys, slots = self._hash(pairs[:, 0], pairs[:, 1])
        values = np.fromiter(ranks.values(), np.int64, len(ranks))
        while keys.size:
            free = self._keys[slots] == _EMPTY
            self._keys[slots[free]] = keys[free]  # of several keys that want one slot, the last gets it
            placed = self._keys[slots] == keys
            self._ranks[slots[placed]] = values[placed]
            keys, values, slots = keys[~placed], values[~placed], (slots[~placed] + 1) & self._mask

    def _hash(self, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        keys = (left << 32 | right).view(np.uint64)
        return keys, (keys * _MULTIPLIER >> self._shift).view(np.int64)

    def _rank(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return the rank (n,) of each pair, _NEVER if it is not merged."""
        keys, slots = self._hash(left, right)
        found = self._keys.take(slots)
        ranks = self._ranks.take(slots)
        ranks[found != keys] = _NEVER
        other = np.flatnonzero((found != keys) & (found != _EMPTY))
        while other.size:
            slots[other] = (slots[other] + 1) & self._mask
            found = self._keys.take(slots[other])
            hit = found == keys[other]
            ranks[other[hit]] = self._ranks.take(slots[other[hit]])
            other = other[~hit & (found != _EMPTY)]
        return ranks

    def whole_tokens(self) -> np.ndarray:
        """Return ids (n,) of tokens that the merges make of their own bytes: all but a few of a trained vocabulary.

        For a token that is made of a and b, this holds if it holds for a and b and if no pair across their border is
        merged before its time. These pairs are found backwards: whichever of the two tokens at the border was made
        last is replaced by the part of it that is at the border. A token that several merges make is left out.
        """
        n = len(self._pairs)
        made = self.made[:n]
        size = max(self.byte_ids.max(), self.made.max()) + 1
        rank_of, left_of, right_of = np.full((3, size), -1)
        rank_of[made], left_of[made], right_of[made] = np.arange(n), *self._pairs.T
        undecided = before = np.flatnonzero(np.bincount(made)[made] == 1)
        left, right = self._pairs[undecided].T
        good = np.zeros(n, bool)
        while undecided.size:
            last = np.maximum(rank_of[left], rank_of[right])
            good[undecided[last < 0]] = True  # two bytes: nothing came before
            going = (last >= 0) & (last <= before)
            undecided, left, right, last = undecided[going], left[going], right[going], last[going]
            is_right = rank_of[right] == last  # of equal tokens the left one is made first
            left, right = np.where(is_right, left, right_of[left]), np.where(is_right, left_of[right], right)
            going = self._rank(left, right) > last
            undecided, left, right, before = undecided[going], left[going], right[going], last[going]
        whole = rank_of < 0
        whole[made] = good
        while np.any(wrong := whole[made] & ~whole[self._pairs].all(1)):
            whole[made[wrong]] = False
        return np.flatnonzero(whole)

    def merge(self, pretokens: Sequence[bytes]) -> list[bytes]:
        """Return the packed ids of each pre-token; none of them may be empty."""
        lengths = np.fromiter(map(len, pretokens), np.int64, len(pretokens))  # (W,)
        ids = self.byte_ids.take(np.frombuffer(b"".join(pretokens), np.uint8))  # (n,)
        n, ends = len(ids), np.cumsum(lengths)
        starts = ends - lengths
        ids = np.append(
            ids, _NOTHING
        )  # a linked list: place n is before every first and after every last symbol
        after, before = np.arange(1, n + 2), np.arange(-1, n)
        after[ends - 1] = before[starts] = n
        # The rank of the pair at each place, with the place in the low bits: the least value is the leftmost of
        # the lowest rank.
        waiting = np.full(n + 1, _DONE)
        first = np.setdiff1d(np.arange(n), ends - 1, assume_unique=True)
        waiting[first] = self._keyed(ids, first, first + 1)
        while True:
            lowest = np.minimum.reduceat(waiting, starts)  # (W,), the next merge of each pre-token
            lowest = lowest[lowest < _DONE]
            if not lowest.size:
                break
            place = lowest & ((1 << _PLACE_BITS) - 1)
            swallowed = after[place]
            ids[place], ids[swallowed] = self.made.take(lowest >> _PLACE_BITS), -1
            after[place] = behind = after[swallowed]
            before[behind] = place
            waiting[swallowed] = _DONE
            left = np.concatenate((before[place], place))
            waiting[left] = self._keyed(ids, left, np.concatenate((place, behind)))
            before[n] = after[n] = n
        alive = ids[:n] >= 0
        packed = ids[:n][alive].astype(self.dtype).tobytes()
        ends = (np.cumsum(alive)[ends - 1] * self.dtype.itemsize).tolist()
        return [packed[start:end] for start, end in zip([0, *ends], ends)]  # noqa: B905

    def _keyed(self, ids: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return rank and place of the pairs at these places as one number (n,)."""
        return self._rank(ids[left], ids[right]).astype(np.int64) << _PLACE_BITS | left


def _merge_long(ids: list[int], ranks: Mapping[Pair, int], made: Sequence[int]) -> list[int]:
    """Put every pair into the bucket of its rank; empty the buckets by rank, each from left to right."""
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
        """Return the rank of the pair that begins at `place`."""
        return ranks.get((self.ids[place], self.ids[self.next[place]]))

    def merge_at(self, place: int, new: int) -> tuple[int, ...]:
        """Replace the pair at `place` by `new`; return the places where other pairs begin now."""
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
