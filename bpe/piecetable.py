"""All pieces of a block of text looked up at once: a hash table made of numpy arrays.

A dictionary costs about 100 ns per piece of text, most of it for making the piece a Python object. Here a
piece never becomes an object: its bytes, up to 15 of them, and its length are two 64-bit numbers, read
straight from the text at every place where a piece begins. They are the key, so a find is exact and not
only probable. A slot holds one piece; a new piece that falls on the same slot takes its place, so the table
is bounded without any bookkeeping.

What the table cannot hold (a long piece, one of more than eight tokens) is encoded one by one.
"""

import threading
from collections.abc import Iterator, Sequence

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


ALL = slice(None)


class Pieces:
    """The pieces of a block of text, each from one cut to the next; head and tail are before and after them.

    >>> pieces = Pieces(b"One day, a dog ran")
    >>> pieces.head, pieces.names(np.arange(3)), pieces.tail
    ('One', ['day,', 'a', 'dog'], ' ran')
    """

    def __init__(self, text: bytes, special_tokens: Sequence[str] = ()) -> None:
        self.text = text
        self._data = np.frombuffer(text + PADDING, np.uint8)
        self.cuts = find_cuts(self._data)
        holders = np.array([], np.int64)
        if special_tokens:
            self.cuts, holders = spare_special(text, self.cuts, special_tokens)
        if not self.cuts.size:
            return
        self.head, self.tail = text[: self.cuts[0]].decode(), text[self.cuts[-1] :].decode()
        starts = self.cuts[:-1] + 1
        self.low, self.high = _keys(self._data, starts, self.cuts[1:] - starts)
        # A piece that holds a special token means something else elsewhere: the table is not asked for it.
        holders = holders[(holders >= 0) & (holders < len(starts))]
        self.high[holders] = 0
        self.special = set(holders.tolist())
        hashed = (self.low ^ self.high * _MULTIPLIER) * _MULTIPLIER
        self.slots = (hashed >> np.uint64(64 - SLOT_BITS)).view(np.int64)

    def names(self, which: np.ndarray) -> list[str]:
        """Return the texts of these pieces, without the space that begins each of them."""
        bounds = zip((self.cuts[which] + 1).tolist(), self.cuts[which + 1].tolist(), strict=True)
        return [self.text[start:end].decode() for start, end in bounds]

    def packed(self, unknown: np.ndarray) -> tuple[bytes, np.ndarray]:
        """Return the packed ids of the known pieces, and the places in bytes where the unknown ones belong."""
        packed = self.rows.ravel().compress(_KEPT.take(self.counts).view(bool)).tobytes()  # (n, 8) -> (ids,)
        places = np.cumsum(self.counts)[unknown] * self.rows.itemsize if unknown.size else unknown
        return packed, places

    def distinct(self, which: np.ndarray) -> np.ndarray:
        """Return those of `which` that hold no special token; of equal ones that fit into the table, the first.

        Of different ones that fall on the same slot only the first one is returned, too.
        """
        fits = self.high[which] != 0
        long = [i for i in which[~fits].tolist() if i not in self.special]
        which = which[fits]
        slots = self.slots[which]
        first = np.empty(1 << SLOT_BITS, np.int64)
        first[slots[::-1]] = which[::-1]
        return np.concatenate((which[first[slots] == which], np.array(long, np.int64)))

    def joined(self, which: np.ndarray) -> str:
        """Return the texts of these pieces, one after another."""
        bounds = zip(self.cuts[which].tolist(), self.cuts[which + 1].tolist(), strict=True)
        return b"".join([self.text[start:end] for start, end in bounds]).decode()

    def characters(self, which: np.ndarray) -> np.ndarray:
        """Return the number of characters of these pieces, with their spaces."""
        if self.text.isascii():
            return self.cuts[which + 1] - self.cuts[which]
        begun = np.cumsum((self._data & 0xC0) != 0x80)
        return begun[self.cuts[which + 1]] - begun[self.cuts[which]]


class PieceTable:
    """Packed ids of pieces, for several threads at once: a slot is read and written as a whole."""

    def __init__(self, dtype: np.dtype) -> None:
        self._lock = threading.Lock()
        slots = 1 << SLOT_BITS
        self.low = np.zeros(slots, np.uint64)
        self.high = np.zeros(slots, np.uint64)  # 0 in an empty slot: a piece is never of length 0
        self.ids = np.zeros((slots, MOST_IDS), dtype)
        self.counts = np.zeros(slots, np.uint8)

    def look_up(self, pieces: Pieces, which: np.ndarray | slice = ALL) -> np.ndarray:
        """Put the ids of those of the pieces `which` that are known into `pieces`; return which ones are not."""
        low, high, slots = pieces.low[which], pieces.high[which], pieces.slots[which]
        with self._lock:
            found = (self.low.take(slots) == low) & (self.high.take(slots) == high) & (high != 0)
            counts = np.where(found, self.counts.take(slots), 0)
            rows = self.ids.take(slots, axis=0)
        if which is ALL:
            pieces.counts, pieces.rows = counts, rows
            return np.flatnonzero(~found)
        pieces.counts[which], pieces.rows[which] = counts, rows
        return which[~found]

    def store(
        self, pieces: Pieces, which: np.ndarray, pretokens: Sequence[str], values: Sequence[bytes]
    ) -> dict[str, bytes]:
        """Keep the packed ids of the pieces `which`, given for each pre-token of these pieces.

        Returns the names and the packed ids of those that the table cannot hold.
        """
        packed = b"".join(values)
        ids = np.frombuffer(packed, self.ids.dtype)
        pretoken_ends = np.cumsum(np.fromiter(map(len, pretokens), np.int64, len(pretokens)))  # in characters
        id_ends = np.cumsum(np.fromiter(map(len, values), np.int64, len(values))) // ids.itemsize
        piece_ends = np.cumsum(pieces.characters(which))
        ends = id_ends[np.searchsorted(pretoken_ends, piece_ends)]  # of each piece, in ids
        counts = np.diff(ends, prepend=0)
        fits = (counts <= MOST_IDS) & (pieces.high[which] != 0)
        bounds = zip((ends - counts)[~fits].tolist(), ends[~fits].tolist(), strict=True)
        others = [packed[start * ids.itemsize : end * ids.itemsize] for start, end in bounds]
        unkept = dict(zip(pieces.names(which[~fits]), others, strict=True))
        which, starts, counts = which[fits], (ends - counts)[fits], counts[fits]
        rows = ids.take(starts[:, None] + np.arange(MOST_IDS), mode="clip")  # (n, 8)
        slots = pieces.slots[which]
        with self._lock:
            self.low[slots], self.high[slots] = pieces.low[which], pieces.high[which]
            self.ids[slots], self.counts[slots] = rows, counts
        return unkept


def _keys(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the two numbers (n,), (n,) that are each piece's key; the high one is 0 for a piece that is too long."""
    words = np.ndarray((len(data) - 7,), "<u8", data, 0, (1,))  # the 8 bytes from every position on
    lengths = np.where(lengths <= LONGEST, lengths, 0)
    low = words[starts] & _LOW_MASK.take(lengths)
    high = words[starts + 8] & _HIGH_MASK.take(lengths) | _LENGTH.take(lengths)
    return low, high
