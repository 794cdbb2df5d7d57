"""MinHash: the similarity of two texts, estimated from a few hundred bytes of each.

A text is the set of its shingles, the runs of n words. Two sets A and B have the Jaccard similarity |A ∩ B| / |A ∪
B|. Put all shingles in a random order: the first one of A ∪ B is in both sets with just that probability, and then it
is the first of A and the first of B. So k orders give k coin flips whose mean estimates the similarity, with an error
of sqrt(s (1 - s) / k). An order is a hash, its first shingle the least hash (Broder, 1997).

k orders need k hashes of every shingle. One order is enough if its range is divided into k bins and the least of each
bin is taken (Li, Owen and Zhang, 2012). Of a short text many bins are empty; each borrows from a bin that a hash of
its own number selects, the same for every text (Shrivastava, 2017). That is the default; `k_permutations` is the
plain form.

Bands: k values in b bands of r rows. Two texts are candidates if one whole band agrees, with probability 1 - (1 -
s^r)^b: a curve with a steep rise, which `bands_for` puts below the similarity that is wanted.
"""

import functools
import itertools
import re
from collections.abc import Sequence

import numpy as np

SHINGLE = 5  # words
PERMUTATIONS = 128
BLOCK = 1 << 17  # characters that are hashed at a time: their arrays fit a core's cache
_PRIME = np.uint64(0x9E3779B97F4A7C15)  # odd, so it has an inverse modulo 2^64
_INVERSE = np.uint64(pow(int(_PRIME), -1, 1 << 64))
_EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
_OTHER = re.compile(r"[\W_]+")
_ASCII = bytes(ord(chr(byte).lower()) if chr(byte).isalnum() and byte < 128 else 32 for byte in range(256))
_END = 10  # the byte after each text


def normalized(text: str) -> bytes:
    """Return the words in lower case, each byte between them a blank, as UTF-8: what is compared.

    >>> normalized("The OWL, _however_, sleeps.").split()
    [b'the', b'owl', b'however', b'sleeps']
    """
    if text.isascii():
        return text.encode().translate(_ASCII)
    return _OTHER.sub(" ", text.lower()).encode()


def mixed(values: np.ndarray) -> np.ndarray:
    """Return uint64 values with their bits mixed (the finalizer of splitmix64), a bijection."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@functools.lru_cache(maxsize=2)
def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (size,) uint64 powers of the base and of its inverse."""
    with np.errstate(over="ignore"):
        ones = np.full(size, _PRIME)
        ones[0] = 1
        backwards = np.full(size, _INVERSE)
        backwards[0] = 1
        return np.cumprod(ones), np.cumprod(backwards)


def shingles(texts: Sequence[str], n: int = SHINGLE) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of all shingles, (S,) uint64, and where each text's begin, (len(texts) + 1,) int64.

    A text of fewer than n words is one shingle; one without words has none.
    """
    hashes, counts, block, size = [], [np.zeros(1, np.int64)], [], 0
    for number, text in enumerate(texts, start=1):
        block.append(text)
        size += len(text)
        if size >= BLOCK or number == len(texts):
            found, own = _shingles_of_block(block, n)
            hashes.append(found)
            counts.append(own)
            block, size = [], 0
    return np.concatenate(hashes) if hashes else np.zeros(0, np.uint64), np.cumsum(np.concatenate(counts))


def _shingles_of_block(texts: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of all shingles and the number of each text's."""
    words, counts = word_hashes(texts)
    text_of = np.repeat(np.arange(len(texts)), counts)  # of each word
    ends = np.cumsum(counts)
    place = np.arange(len(words)) - (ends - counts)[text_of]
    starts = np.flatnonzero((place + n <= counts[text_of]) | (place == 0))
    hashes = np.zeros(len(starts), np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(n):  # base^(n-1) w0 + … + w(n-1), of a short text those that are there
            inside = starts + offset < ends[text_of[starts]]
            hashes = hashes * _PRIME + np.where(
                inside, words[np.minimum(starts + offset, len(words) - 1)], np.uint64(0)
            )
        return mixed(hashes), np.bincount(text_of[starts], minlength=len(texts))


def word_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return a hash of each word, (W,) uint64, and how many words each text has, in one pass over their bytes.

    With prefix sums P of byte times base^place, the run from i to j has the hash (P[j] - P[i]) / base^i, modulo 2^64.
    """
    data = np.frombuffer(b"\n".join([*map(normalized, texts), b""]), np.uint8)
    edges = np.flatnonzero(
        np.diff(data > 32, prepend=False, append=False)
    )  # each word's beginning and end, in turn
    begins, ends = edges[::2], edges[1::2]
    powers, inverse = _powers(1 << max(len(data), BLOCK).bit_length())
    with np.errstate(over="ignore"):
        sums = np.zeros(len(data) + 1, np.uint64)
        np.cumsum(data * powers[: len(data)], out=sums[1:])
        hashes = mixed((sums[ends] - sums[begins]) * inverse[begins])
    return hashes, np.diff(np.searchsorted(begins, np.flatnonzero(data == _END)), prepend=0)


def distinct(hashes: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each text's shingles sorted and once each, in the layout of `shingles`."""
    parts = [np.unique(hashes[start:stop]) for start, stop in itertools.pairwise(starts)]
    sizes = np.array([0, *map(len, parts)], np.int64)
    return np.concatenate(parts) if parts else hashes, np.cumsum(sizes)


@functools.lru_cache(maxsize=4)
def _donors(k: int) -> np.ndarray:
    """Return (rounds, k) int64: the bin from which each empty bin borrows, round after round; in the end all in
    turn.
    """
    bins = np.arange(k, dtype=np.uint64)
    with np.errstate(over="ignore"):
        drawn = [mixed(bins * _PRIME + np.uint64(round_ + 1)) % np.uint64(k) for round_ in range(4 * k)]
    in_turn = [(bins + np.uint64(step)) % np.uint64(k) for step in range(1, k)]
    return np.array([*drawn, *in_turn], np.int64).reshape(-1, k)


def signatures(hashes: np.ndarray, starts: np.ndarray, k: int = PERMUTATIONS) -> np.ndarray:
    """Return (texts, k) uint64: the least hash in each of k bins, empty bins filled from others (one permutation).

    A text without shingles has the greatest number everywhere.
    """
    texts = len(starts) - 1
    result = np.full(texts * k, _EMPTY)
    text_of = np.repeat(np.arange(texts), np.diff(starts))
    with np.errstate(over="ignore"):
        bins = ((hashes >> np.uint64(32)) * np.uint64(k)) >> np.uint64(32)  # the high half selects the bin
    np.minimum.at(result, text_of * k + bins.astype(np.int64), hashes)
    result = result.reshape(texts, k)
    filled = result != _EMPTY
    rows = np.flatnonzero(filled.any(1) & ~filled.all(1))
    # An empty bin takes the value of the first full bin in its own sequence of bins.
    row, column = np.nonzero(~filled[rows])
    row = rows[row]
    for donors in _donors(k):
        if not len(row):
            break
        found = filled[row, donors[column]]
        result[row[found], column[found]] = result[row[found], donors[column[found]]]
        row, column = row[~found], column[~found]
    return result


def k_permutations(
    hashes: np.ndarray, starts: np.ndarray, k: int = PERMUTATIONS, seed: int = 1
) -> np.ndarray:
    """Return (texts, k) uint64: the least of each of k hashes of a text's shingles, each a multiplication and an
    addition.
    """
    draw = np.random.default_rng(seed)
    odd = draw.integers(0, 1 << 63, k, np.uint64) * np.uint64(2) + np.uint64(1)
    shift = draw.integers(0, 1 << 63, k, np.uint64)
    result = np.full((len(starts) - 1, k), _EMPTY)
    for text, (start, stop) in enumerate(itertools.pairwise(starts)):
        if stop > start:
            own = hashes[start:stop]
            result[text] = [mixed(own * a + b).min() for a, b in zip(odd, shift, strict=True)]
    return result


def probability(similarity: float, bands: int, rows: int) -> float:
    """Return the probability that two texts of this similarity become candidates.

    >>> round(probability(0.8, 21, 6), 4)
    0.9983
    """
    return 1 - (1 - similarity**rows) ** bands


def bands_for(similarity: float, k: int = PERMUTATIONS, recall: float = 0.995) -> tuple[int, int]:
    """Return bands and rows, b * r <= k, with the most rows that still find pairs of this similarity with this
    probability.

    >>> bands_for(0.8)
    (21, 6)
    """
    for rows in range(k, 0, -1):
        if probability(similarity, k // rows, rows) >= recall:
            return k // rows, rows
    raise ValueError(f"{k} hashes are too few for pairs of similarity {similarity}: take more permutations")


def band_keys(signature: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """Return (texts, bands) uint64 of (texts, k) signatures: a hash of each band and of its number."""
    texts = len(signature)
    grouped = signature[:, : bands * rows].reshape(texts, bands, rows)  # (texts, k) -> (texts, b, r)
    keys = np.broadcast_to(mixed(np.arange(1, bands + 1, dtype=np.uint64)), (texts, bands)).copy()
    with np.errstate(over="ignore"):
        for row in range(rows):
            keys = mixed(keys * _PRIME + grouped[:, :, row])
    return keys
