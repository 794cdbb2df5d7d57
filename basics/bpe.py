"""Byte-pair encoding, the plain way: learn merges from a text, encode with them, decode.

    python basics/bpe.py my.txt        # learn 100 merges from the text and show what became of it

Complete, and slow on purpose: every merge counts all pairs of the corpus again, and encoding searches each word
again for each merge. Special tokens, files and speed are left to bpe/, which gives the same merges and the same ids.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import regex

Pair = tuple[bytes, bytes]

# GPT-2's rule: merges never cross the border between two words. A word takes the space before it with it.
WORD = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def count_words(text: str, pattern: str = WORD) -> Counter[bytes]:
    """Count the distinct words of a text, as UTF-8: all that training needs to know about it."""
    return Counter(word.encode() for word in regex.findall(pattern, text))


def train(words: Mapping[bytes, int], n_merges: int) -> list[Pair]:
    """Learn merges: make the most frequent pair of neighbours one token, everywhere, and repeat.

    Ties go to the greatest pair of byte strings. The list is shorter than `n_merges` if no pair is left.

    >>> train({b"hug": 10, b"pug": 5, b"hugs": 5}, 2)
    [(b'u', b'g'), (b'h', b'ug')]
    """
    split = {word: [bytes([byte]) for byte in word] for word in words}
    merges: list[Pair] = []
    while len(merges) < n_merges:
        pairs: Counter[Pair] = Counter()
        for word, tokens in split.items():
            for pair in pairwise(tokens):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        split = {word: merge(tokens, best) for word, tokens in split.items()}
    return merges


def merge(tokens: Sequence[bytes], pair: Pair) -> list[bytes]:
    """Join every occurrence of `pair`, from left to right.

    >>> merge([b"a", b"a", b"a", b"b"], (b"a", b"a"))
    [b'aa', b'a', b'b']
    """
    merged: list[bytes] = []
    for token in tokens:
        merged.append(token)
        if tuple(merged[-2:]) == pair:
            merged[-2:] = [pair[0] + pair[1]]
    return merged


def merge_word(word: bytes, ranks: Mapping[Pair, int]) -> list[bytes]:
    """Split a word into tokens: of the pairs present, join the one learnt first, the leftmost, until none is left."""
    tokens = [bytes([byte]) for byte in word]
    while present := [(ranks[pair], place) for place, pair in enumerate(pairwise(tokens)) if pair in ranks]:
        _, place = min(present)
        tokens[place : place + 2] = [tokens[place] + tokens[place + 1]]
    return tokens


def vocabulary(merges: Iterable[Pair]) -> list[bytes]:
    """List the bytes of each id: 0 to 255 are the bytes themselves, then comes one id per merge."""
    return [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]


def encode(text: str, merges: Sequence[Pair], pattern: str = WORD) -> list[int]:
    """Turn a text into ids.

    >>> encode("hug pug", [(b"u", b"g"), (b"h", b"ug")])
    [257, 32, 112, 256]
    """
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    ids = {token: id for id, token in enumerate(vocabulary(merges))}
    words = regex.findall(pattern, text)
    return [ids[token] for word in words for token in merge_word(word.encode(), ranks)]


def decode(ids: Iterable[int], merges: Sequence[Pair]) -> str:
    """Turn ids into text; bytes that are not UTF-8, such as half a character, become U+FFFD."""
    tokens = vocabulary(merges)
    return b"".join(tokens[id] for id in ids).decode(errors="replace")


if __name__ == "__main__":
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    words = count_words(text)
    merges = train(words, 100)
    print(f"{len(text.encode()):,} bytes, {words.total():,} words, {len(words):,} of them distinct")
    shown = [f"{left.decode('latin-1')}|{right.decode('latin-1')}" for left, right in merges]
    print("first merges:", ", ".join(shown[:10]), "last:", ", ".join(shown[-10:]))
    line = next(line for line in text.splitlines() if line.strip())[:80]
    ids = encode(line, merges)
    print(f"{line!r} is {len(line.encode())} bytes and {len(ids)} tokens:\n{ids}")
    print("|".join(decode([id], merges) for id in ids))
    print("decoded, it is the same text again:", decode(ids, merges) == line)
