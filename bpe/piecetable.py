"""All pieces of a block of text looked up at once: a hash table made of numpy arrays.

A dictionary costs about 100 ns per piece of text, most of it for making the piece a Python object. Here a
piece never becomes an object: its bytes, up to 15 of them, and its length are two 64-bit numbers, read
straight from the text at every place where a piece begins. They are the key, so a find is exact and not
only probable. A slot holds one piece; a new piece that falls on the same slot takes its place, so the table
is bounded without any bookkeeping.

What the table does not hold (a new piece, a long one, one of more than eight tokens) goes the slow way.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

SLOT_BITS = 18
LONGEST = 15  # bytes of a piece: 8 in the low number, 7 in the high one, whose last byte is the length
MOST_IDS = 8
PADDING = b" " * 16  # behind the text: a key can be read at its very end, and a last space is no cut

# Bytes that may begin a white space character: a space before one of them is no cut. (A space before
# U+201C, say, is no cut either, because U+2003 begins with the same byte: a cut that is left out makes a
# longer piece, never a wrong one.)
WHITE_LEADS = (*range(0x09, 0x0E), *range(0x1C, 0x21), 0xC2, 0xE1, 0xE2, 0xE3)

_BEGINS_PIECE = np.ones(256, bool)
_BEGINS_PIECE[list(WHITE_LEADS)] = False
_LOW_MASK = np.array([(1 << 8 * min(length, 8)) - 1 for length in range(LONGEST + 1)], np.uint64)
_HIGH_MASK = np.array([(1 << 8 * max(length - 8, 0)) - 1 for length in range(LONGEST + 1)], np.uint64)
_LENGTH = np.array([length << 56 for length in range(LONGEST + 1)], np.uint64)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, as in Knuth's multiplicative hashing
# Row n as one 64-bit number: which of eight ids are kept where there are n.
_KEPT = np.array([[i < n for i in range(MOST_IDS)] for n in range(MOST_IDS + 1)]).view(np.uint64).ravel()


def find_cuts(data: np.ndarray) -> np.ndarray:
    """Positions (n,) of the spaces in `data` (uint8, UTF-8 and PADDING) at which a piece begins."""
    spaces = np.flatnonzero(data[: -len(PADDING)] == 0x20)
    return spaces[_BEGINS_PIECE.take(data.take(spaces + 1))]


def spare_special(
    text: bytes, cuts: np.ndarray, special_tokens: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The `cuts` that are neither in a special token nor right before one, and which pieces hold one.

    Right before one, the text ends: white space there is not followed by a character. Pieces are counted
    from the first cut on; the one before it is -1.

    >>> spare_special(b"a <s> b c<s> d", np.array([1, 5, 7, 12]), ["<s>"])
    (array([ 5,  7, 12]), array([-1,  1]))
    """
    spans = list(_occurrences(text, special_tokens))
    covered = np.zeros(len(text), bool)
    for start, end in spans:
        covered[max(start - 1, 0) : end] = True
    cuts = cuts[~covered[cuts]]
    starts = np.array([start for start, _ in spans], np.int64)
    return cuts, np.unique(np.searchsorted(cuts, starts) - 1)


def _occurrences(text: bytes, special_tokens: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where special tokens stand, those that overlap others too."""
    for token in map(str.encode, special_tokens):
        start = text.find(token)
        while start >= 0:
            yield start, start + len(token)
            start = text.find(token, start + 1)


class PieceTable:
    """Packed ids of pieces."""

    def __init__(self, dtype: np.dtype) -> None:
        slots = 1 << SLOT_BITS
        self.low = np.zeros(slots, np.uint64)
        self.high = np.zeros(slots, np.uint64)  # 0 in an empty slot: a piece is never of length 0
        self.ids = np.zeros((slots, MOST_IDS), dtype)
        self.counts = np.zeros(slots, np.uint8)

    def encode_pieces(
        self,
        text: bytes,
        data: np.ndarray,
        cuts: np.ndarray,
        encode: Callable[[str], bytes],
        unkept: Sequence[int] | np.ndarray = (),
    ) -> bytes:
        """Packed ids of the pieces between the n + 1 `cuts`, each without its leading space.

        `data` is `text` and PADDING as uint8. `encode` gives the ids of a piece that the table does not hold.
        The pieces `unkept` (their numbers) mean something else elsewhere: the table is not asked for them.
        """
        starts, ends = cuts[:-1] + 1, cuts[1:]
        low, high = _keys(data, starts, ends - starts)
        high[np.asarray(unkept, np.int64)] = 0
        slots = ((low ^ high * _MULTIPLIER) * _MULTIPLIER >> np.uint64(64 - SLOT_BITS)).view(np.int64)
        found = (self.low.take(slots) == low) & (self.high.take(slots) == high) & (high != 0)
        counts = np.where(found, self.counts.take(slots), 0)
        ids = self.ids.take(slots, axis=0).ravel().compress(_KEPT.take(counts).view(bool))  # (n, 8) -> (ids,)
        missed = np.flatnonzero(~found)
        if not missed.size:
            return ids.tobytes()
        bounds = zip(starts[missed].tolist(), ends[missed].tolist(), strict=True)
        values = [encode(text[start:end].decode()) for start, end in bounds]
        self._remember(slots[missed], low[missed], high[missed], values)
        return _interleave(ids.tobytes(), np.cumsum(counts)[missed] * ids.itemsize, values)

    def _remember(self, slots: np.ndarray, low: np.ndarray, high: np.ndarray, values: list[bytes]) -> None:
        size = self.ids.itemsize
        fits = [i for i, value in enumerate(values) if len(value) <= MOST_IDS * size and high[i]]
        if not fits:
            return
        # Where a slot stands here twice the last one stays, in all four arrays.
        slots = slots[fits]
        self.low[slots], self.high[slots] = low[fits], high[fits]
        padded = b"".join(values[i].ljust(MOST_IDS * size, b"\0") for i in fits)
        self.ids[slots] = np.frombuffer(padded, self.ids.dtype).reshape(-1, MOST_IDS)
        self.counts[slots] = [len(values[i]) // size for i in fits]


def _keys(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two numbers (n,), (n,) that are each piece's key; the high one is 0 for a piece that is too long."""
    words = np.ndarray((len(data) - 7,), "<u8", data, 0, (1,))  # the 8 bytes from every position on
    lengths = np.where(lengths <= LONGEST, lengths, 0)
    low = words[starts] & _LOW_MASK.take(lengths)
    high = words[starts + 8] & _HIGH_MASK.take(lengths) | _LENGTH.take(lengths)
    return low, high


def _interleave(found: bytes, places: np.ndarray, values: list[bytes]) -> bytes:
    """`found` with each value put in at its place."""
    parts: list[bytes] = []
    start = 0
    for place, value in zip(places.tolist(), values, strict=True):
        parts += found[start:place], value
        start = place
    return b"".join((*parts, found[start:]))
