"""A text seen as the quality rules see it: words, lines, paragraphs; each view is computed once.

A word is a run of letters and digits, with what follows an apostrophe; each other printed character is a word of its
own, and dots in a row are one. That is close to the tokenizer of spaCy, on which FineWeb's thresholds were set, at a
tenth of its time.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Mapping

WORD = re.compile(r"\w+(?:['’]\w+)?|\.{2,}|[^\w\s]")
PARAGRAPH = re.compile(r"\n{2,}")
LINE = re.compile(r"\n+")


class Text:
    """The views of one text."""

    def __init__(self, text: str, numbers: Mapping[str, float] | None = None) -> None:
        self.text = text
        self.numbers = numbers or {}  # the numeric fields of its JSON line
        self.distinct_from = math.inf  # the n from which no n-gram is known to occur twice

    @functools.cached_property
    def tokens(self) -> list[str]:
        """Return words and punctuation in order.

        >>> Text("Don't stop... now!").tokens
        ["Don't", 'stop', '...', 'now', '!']
        """
        return WORD.findall(self.text)

    @functools.cached_property
    def words(self) -> list[str]:
        """Return the tokens that hold a letter or a digit."""
        return [token for token in self.tokens if token[0].isalnum() or token[-1].isalnum()]

    @functools.cached_property
    def lines(self) -> list[str]:
        """Return the lines that are not blank."""
        return [line for line in self.text.split("\n") if line.strip()]

    @functools.cached_property
    def repeated_lines(self) -> tuple[float, int]:
        """Return the fraction of lines that occurred earlier in the text, and the characters in them."""
        parts = LINE.split(self.text)
        count, characters = repeated(parts)
        return count / len(parts), characters

    @functools.cached_property
    def repeated_paragraphs(self) -> tuple[float, int]:
        """Return the same for paragraphs, which blank lines separate."""
        parts = PARAGRAPH.split(self.text.strip())
        count, characters = repeated(parts)
        return count / len(parts), characters


def repeated(parts: list[str]) -> tuple[int, int]:
    """Return how many parts occur earlier in the list, and their characters.

    >>> repeated(["a", "bcd", "bcd", "bcd"])
    (2, 6)
    """
    seen: set[str] = set()
    again = [part for part in parts if part in seen or seen.add(part)]
    return len(again), sum(map(len, again))


def top_ngram_characters(tokens: list[str], n: int) -> int:
    """Return the characters covered by the most frequent n-gram, blanks included; the first one at a tie.

    >>> top_ngram_characters("a b a b c".split(), 2)
    6
    """
    counts = Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
    if not counts:
        return 0
    gram, count = counts.most_common(1)[0]
    return (sum(map(len, gram)) + n - 1) * count


def repeated_ngram_characters(tokens: list[str], n: int) -> int:
    """Return the characters in n-grams that occurred before, each character counted once.

    >>> repeated_ngram_characters("a b c a b c a b".split(), 3)
    3
    """
    seen: set[tuple[str, ...]] = set()
    grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
    if len(set(grams)) == len(grams):
        return 0
    characters, place = 0, 0
    while place < len(grams):
        if grams[place] in seen:
            characters += sum(map(len, grams[place]))
            place += n
        else:
            seen.add(grams[place])
            place += 1
    return characters
