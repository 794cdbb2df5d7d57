r"""From text to pre-tokens: the split patterns, special tokens, and the places where text may be cut.

Merges never cross the border of a pre-token, so everything about BPE is decided piece by piece. The
patterns are those of GPT-2, GPT-4 (cl100k) and GPT-4o (o200k), in a spelling that means the same to
Python's `regex`, to Rust and to Oniguruma: possessive quantifiers are left away where they change nothing,
and cl100k's `\s++$` is written `\s++(?!\S)`, because `$` also matches before a final line break in Python.

The fast path of this room rests on one fact, shown in docs/bpe.md and held by tests: in all three patterns a
pre-token always begins at a space that is followed by a character that is no white space. So text can be
cut at those spaces first, by `re.split` at memory speed, and the pattern needs to run once per *distinct*
piece.
"""

import dataclasses
import functools
import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Sequence

import regex

END_OF_TEXT = "<|endoftext|>"  # closes every document, in GPT-2 and here

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K_INNER = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s"
)
CL100K = CL100K_INNER.replace(r"|\s*[\r\n]|", r"|\s++(?!\S)|\s*[\r\n]|")
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {"gpt2": GPT2, "cl100k": CL100K, "o200k": O200K}

# `re` counts U+001C..U+001F as white space and `regex` does not: `\S` of `re` is the stricter of the two,
# so it is safe.
SPACE_CUT = re.compile(r" (?=\S)")
# Where a text may be divided into parts that are tokenized apart, whatever the named pattern: before a
# space or after a line break that stands alone between two other characters ("/" may join the line break
# before it in o200k).
BLOCK_CUT = re.compile(r"(?<=\S)(?= \S)|(?<=\S\n)(?=[^\s/])")


logger = logging.getLogger("bpe")


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A split pattern. `text` is its regular expression; `name` is None for a pattern that is none of the
    three, which gets no fast path.

    >>> Pattern.of("gpt2").split("Hello world, it's 2024!")
    ['Hello', ' world', ',', ' it', "'s", ' 2024', '!']
    """

    text: str
    name: str | None = None

    @classmethod
    def of(cls, pattern: "str | Pattern") -> "Pattern":
        """A pattern by its name (gpt2, cl100k, o200k) or by its regular expression."""
        if isinstance(pattern, Pattern):
            return pattern
        if pattern in PATTERNS:
            return cls(PATTERNS[pattern], pattern)
        return cls(pattern, next((name for name, text in PATTERNS.items() if text == pattern), None))

    def __post_init__(self) -> None:
        try:
            regex.compile(self.text)
        except regex.error as error:
            known = ", ".join(PATTERNS)
            raise ValueError(
                f"the pattern {self.text!r} is neither one of {known} nor a regular expression ({error})"
            ) from error

    @functools.cached_property
    def compiled(self) -> regex.Pattern:
        return regex.compile(self.text)

    @functools.cached_property
    def compiled_inner(self) -> regex.Pattern:
        """The pattern for a piece before a cut, where cl100k's white space at the end of a text cannot be."""
        return regex.compile(CL100K_INNER) if self.name == "cl100k" else self.compiled

    def split(self, text: str) -> list[str]:
        """The pre-tokens of `text`, which joined give `text` again."""
        return self.compiled.findall(text) if self.name else list(_matches_and_gaps(self.compiled, text))

    def split_inner(self, piece: str) -> list[str]:
        """The pre-tokens of a piece that `pieces` cut off before the end of a text."""
        return self.compiled_inner.findall(piece)

    def pieces(self, text: str) -> list[str]:
        """Cuts `text` where a pre-token must begin; every piece but the first has lost its leading space.

        The last piece is for `split`, the others are for `split_inner`, with their space put back.

        >>> Pattern.of("gpt2").pieces("One day, a dog")
        ['One', 'day,', 'a', 'dog']
        """
        return SPACE_CUT.split(text) if self.name else [text]


def _matches_and_gaps(pattern: regex.Pattern, text: str) -> Iterator[str]:
    """What the pattern finds, and what it leaves out between its finds: nothing of the text is lost."""
    end = 0
    for match in pattern.finditer(text):
        if match.start() > end:
            yield text[end : match.start()]
        if match.end() > match.start():
            yield match.group()
        end = match.end()
    if end < len(text):
        yield text[end:]


def split_special(text: str, special_tokens: Iterable[str]) -> list[str]:
    """Cuts the special tokens out of `text`: ordinary text at even places, special tokens at odd ones.

    Of overlapping special tokens the one that begins first wins, then the longest.

    >>> split_special("a<s>b", ["<s>"])
    ['a', '<s>', 'b']
    """
    present = [token for token in special_tokens if token in text]
    return _special_regex(tuple(present)).split(text) if present else [text]


@functools.lru_cache(maxsize=64)
def _special_regex(special_tokens: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")


def last_cut(text: str, special_tokens: Sequence[str] = ()) -> int:
    """The last place where `text`, which may go on, can be cut without changing a pre-token; 0 where there
    is none.

    No special token lies across it, not even one of which the end is yet to come.

    >>> last_cut("One day, a dog")
    10
    """
    end = _undecided(text, special_tokens)
    width = 256
    while end > 0:
        start = max(0, end - width)
        cuts = [match.start() for match in BLOCK_CUT.finditer(text, start, end)]
        cuts += [
            text.rfind(token, start, end) + len(token) for token in special_tokens if token in text[start:end]
        ]
        for cut in sorted(cuts, reverse=True):
            if _token_across(text, cut, special_tokens) is None:
                return cut
        if start == 0:
            break
        width *= 16
    return 0


def forced_cut(text: str, special_tokens: Sequence[str] = ()) -> int:
    """The last place in `text` that no special token lies across: for text that has no better place."""
    cut = _undecided(text, special_tokens)
    while cut > 0 and (start := _token_across(text, cut, special_tokens)) is not None:
        cut = start
    return cut or len(text)


def _undecided(text: str, special_tokens: Sequence[str]) -> int:
    """From here on a special token may have begun that is not yet whole."""
    return len(text) - max(map(len, special_tokens), default=1) + 1


def _token_across(text: str, cut: int, special_tokens: Sequence[str]) -> int | None:
    """Where a special token begins that ends beyond `cut`; None where no one does."""
    for token in special_tokens:
        start = text.find(token, max(0, cut - len(token) + 1), cut + len(token) - 1)
        if start >= 0:
            return start
    return None


def blocks(
    texts: Iterable[str], special_tokens: Sequence[str], size: int, longest: int | None = None
) -> Iterator[str]:
    """Joins and cuts a stream of text into blocks of about `size` characters that can be tokenized apart.

    Text without a place to cut is held until there is one; with `longest`, it is cut anyway after so many
    characters.
    """
    held: list[str] = []
    length, enough = 0, size
    for text in itertools.chain.from_iterable(_slices(text, size) for text in texts):
        held.append(text)
        length += len(text)
        if length < enough:
            continue
        joined = "".join(held)
        cut = last_cut(joined, special_tokens)
        if not cut and longest is not None and length >= longest:
            cut = forced_cut(joined, special_tokens)
            logger.warning("no place to cut in %d characters: they are cut where they end", length)
        if cut:
            yield joined[:cut]
        held, length = [joined[cut:]], length - cut
        enough = max(size, 2 * length)  # so that a text without a cut is not searched again and again
    if rest := "".join(held):
        yield rest


def repair_surrogates(text: str) -> str:
    """Joins surrogate pairs into the character they stand for; a lone surrogate becomes U+FFFD (as tiktoken
    does).

    >>> repair_surrogates("\\ud83d\\ude00 \\ud83d") == "\\N{GRINNING FACE} \\N{REPLACEMENT CHARACTER}"
    True
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _slices(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))
