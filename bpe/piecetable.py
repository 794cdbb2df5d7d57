"""All pieces of a block of text looked up at once: a hash table made of numpy arrays.

A dictionary costs about 100 ns per piece of text, most of it for making the piece a Python object. Here a
piece never becomes an object: its bytes, up to 15 of them, and its length are two 64-bit numbers, read
straight from the text at every place where a piece begins. They are the key, so a find is exact and not
only probable. A slot holds one piece; a new piece that falls on the same slot takes its place, and a full
table starts again, so it is bounded. A second table does the same for the pre-tokens of new pieces.

What the table cannot hold (a long piece, one of more than eight tokens) is encoded one by one.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

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
    """Return the positions (n,) of the spaces in `data` (uint8, UTF-8 and PADDING) at which a piece begins."""
    spaces = np.flatnonzero(data[: -len(PADDING)] == 0x20)
    return spaces[_BEGINS_PIECE.take(data.take(spaces + 1))]


def spare_special(
    text: bytes, cuts: np.ndarray, special_tokens: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the `cuts` that are neither in a special token nor right before one, and which pieces hold one.

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
    """Yield start and end of every special token, including those that overlap others."""
    for token in map(str.encode, special_tokens):
        start = text.find(token)
        while start >= 0:
            yield start, start + len(token)
            start = text.find(token, start + 1)


_HIGH_BITS = np.uint64(0x8080808080808080)
ALL = slice(None)


class Spans:
    """Spans of a text (pieces or pre-tokens), each with its key and, once a table has been asked, its ids."""

    def __init__(self, data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        """Take the text with its PADDING (uint8), and where each span begins and ends (n,), (n,)."""
        self.data, self.starts, self.ends = data, starts, ends
        self.low, self.high = _keys(data, starts, ends - starts)
        hashed = (self.low ^ self.high * _MULTIPLIER) * _MULTIPLIER
        self.slots = (hashed >> np.uint64(64 - SLOT_BITS)).view(np.int64)

    @classmethod
    def adjacent(cls, text: bytes, lengths: Iterable[int]) -> Self:
        """Return spans of these lengths, one after another, which make up the whole text."""
        ends = np.cumsum(np.fromiter(lengths, np.int64))
        return cls(np.frombuffer(text + PADDING, np.uint8), np.append(0, ends[:-1]), ends)

    def names(self, which: np.ndarray) -> list[str]:
        """Return the texts of these spans."""
        text = self.data.tobytes()
        bounds = zip(self.starts[which].tolist(), self.ends[which].tolist(), strict=True)
        return [text[start:end].decode() for start, end in bounds]

    def packed(self, unknown: np.ndarray) -> tuple[bytes, np.ndarray]:
        """Return the packed ids of the known spans, and the places in bytes where the unknown ones belong."""
        packed = self.rows.ravel().compress(_KEPT.take(self.counts).view(bool)).tobytes()  # (n, 8) -> (ids,)
        places = np.cumsum(self.counts)[unknown] * self.rows.itemsize if unknown.size else unknown
        return packed, places

    def distinct(self, which: np.ndarray) -> np.ndarray:
        """Return those of `which` that fit into a table; of those that fall on the same slot only the first."""
        which = which[self.high[which] != 0]
        slots = self.slots[which]
        first = np.empty(1 << SLOT_BITS, np.int32)
        first[slots[::-1]] = which[::-1]
        return which[first[slots] == which]


class Pieces(Spans):
    """The pieces of a block of text, each from one cut to the next; head and tail are before and after them.

    >>> pieces = Pieces(b"One day, a dog ran")
    >>> pieces.head, pieces.names(np.arange(3)), pieces.tail
    ('One', ['day,', 'a', 'dog'], ' ran')
    """

    def __init__(self, text: bytes, special_tokens: Sequence[str] = ()) -> None:
        data = np.frombuffer(text + PADDING, np.uint8)
        self.cuts = find_cuts(data)
        holders = np.array([], np.int64)
        if special_tokens:
            self.cuts, holders = spare_special(text, self.cuts, special_tokens)
        if not self.cuts.size:
            return
        self.head, self.tail = text[: self.cuts[0]].decode(), text[self.cuts[-1] :].decode()
        super().__init__(data, self.cuts[:-1] + 1, self.cuts[1:])
        # A piece that holds a special token means something else elsewhere: the table is not asked for it.
        holders = holders[(holders >= 0) & (holders < len(self.starts))]
        self.high[holders] = 0
        self.special = set(holders.tolist())

    def worth_learning(self, unknown: np.ndarray) -> tuple[np.ndarray, int]:
        """Return the pieces that should be split together, and how many of them are ASCII, which come first.

        Of the pieces `unknown` these are the distinct ones and all that are too long for a key.
        """
        which = self.distinct(unknown)
        is_ascii = (self.low[which] | self.high[which]) & _HIGH_BITS == 0
        long = [i for i in unknown[self.high[unknown] == 0].tolist() if i not in self.special]
        which = np.concatenate((which[is_ascii], which[~is_ascii], np.array(long, np.int64)))
        return which, np.count_nonzero(is_ascii)

    def joined(self, which: np.ndarray) -> tuple[bytes, np.ndarray]:
        """Return the text of these pieces with their spaces, one after another, and where each of them ends (n,)."""
        lengths = self.cuts[which + 1] - self.cuts[which]
        ends = np.cumsum(lengths)
        moved = np.repeat(self.cuts[which] - ends + lengths, lengths)
        return self.data.take(np.arange(len(moved)) + moved).tobytes(), ends


class PieceTable:
    """Packed ids of spans, for several threads at once: it is read and written as a whole.

    A slot holds the number of an entry, and entries are kept in the order in which they came. So common spans, which
    come early, are close together in memory.
    """

    def __init__(self, dtype: np.dtype) -> None:
        self._lock = threading.Lock()
        self._slots = np.zeros(1 << SLOT_BITS, np.int32)
        self._size = 1  # entry 0 means none
        entries = (1 << SLOT_BITS) + 1
        self._low = np.zeros(entries, np.uint64)
        self._high = np.zeros(entries, np.uint64)
        self._ids = np.zeros((entries, MOST_IDS), dtype)
        self._counts = np.zeros(entries, np.uint8)

    def look_up(self, spans: Spans, which: np.ndarray | slice = ALL) -> np.ndarray:
        """Put the ids of those of the spans `which` that are known into `spans`; return which ones are not."""
        low, high, slots = spans.low[which], spans.high[which], spans.slots[which]
        with self._lock:
            entries = self._slots.take(slots)
            found = (self._low.take(entries) == low) & (self._high.take(entries) == high) & (high != 0)
            entries *= found
            counts, rows = self._counts.take(entries), self._ids.take(entries, axis=0)
        if which is ALL:
            spans.counts, spans.rows = counts, rows
            return np.flatnonzero(~found)
        spans.counts[which], spans.rows[which] = counts, rows
        return which[~found]

    def store(self, spans: Spans, which: np.ndarray, packed: bytes, counts: np.ndarray) -> dict[str, bytes]:
        """Keep the packed ids of the spans `which`, counts[i] of the i-th span.

        Returns the names and the packed ids of those that the table cannot hold.
        """
        ids, ends = np.frombuffer(packed, self._ids.dtype), np.cumsum(counts)
        starts = ends - counts
        fits = (counts <= MOST_IDS) & (spans.high[which] != 0)
        size = ids.itemsize
        bounds = zip((starts[~fits] * size).tolist(), (ends[~fits] * size).tolist(), strict=True)
        unkept = [packed[start:end] for start, end in bounds]
        names = spans.names(which[~fits])
        which, starts, counts = which[fits], starts[fits], counts[fits]
        rows = ids.take(starts[:, None] + np.arange(MOST_IDS), mode="clip")  # (n, 8)
        with self._lock:
            if self._size + len(which) > len(self._low):
                self._slots[:], self._size = 0, 1
            new = slice(self._size, self._size + len(which))
            self._low[new], self._high[new] = spans.low[which], spans.high[which]
            self._ids[new], self._counts[new] = rows, counts
            self._slots[spans.slots[which]] = np.arange(new.start, new.stop)
            self._size = new.stop
        return dict(zip(names, unkept, strict=True))


def _keys(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the two numbers (n,), (n,) that are each piece's key; the high one is 0 for a piece that is too long."""
    words = np.ndarray((len(data) - 7,), "<u8", data, 0, (1,))  # the 8 bytes from every position on
    lengths = np.where(lengths <= LONGEST, lengths, 0)
    low = words[starts] & _LOW_MASK.take(lengths)
    high = words[starts + 8] & _HIGH_MASK.take(lengths) | _LENGTH.take(lengths)
    return low, high
