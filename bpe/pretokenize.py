r"""From text to pre-tokens: the split patterns, special tokens, and the places where text may be cut.

Merges never cross the border of a pre-token, so BPE works on one pre-token at a time. (`WORD` in basics/bpe.py is the
first of these patterns.) They are written so that Python's `regex`, Rust and Oniguruma read them in the same way:
possessive quantifiers are left out where they change nothing, and cl100k's `\s++$` is written `\s++(?!\S)`, because
`$` also matches before a final line break in Python.

The fast path of this room rests on one fact, shown in docs/bpe.md and tested: in all named patterns a pre-token
begins at every space that is followed by a character other than white space. So text can be cut at those spaces
first, by `re.split` at memory speed, and the pattern needs to run once per *distinct* piece.
"""

import dataclasses
import difflib
import functools
import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Sequence

import regex

END_OF_TEXT = "<|endoftext|>"  # closes every document, in GPT-2 and here

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s"
)
CL100K = LLAMA3.replace(r"|\s*[\r\n]|", r"|\s++(?!\S)|\s*[\r\n]|")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {"gpt2": GPT2, "cl100k": CL100K, "o200k": O200K, "llama3": LLAMA3, "qwen2": QWEN2}

# The same patterns as Hugging Face and tiktoken spell them.
_HF_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TIKTOKEN_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_SPELLINGS = {text: name for name, text in PATTERNS.items()} | {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt2",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s": "gpt2",
    _HF_LLAMA3: "llama3",
    _HF_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2",
    _TIKTOKEN_CL100K: "cl100k",
}
# What other projects call them.
_OTHER_NAMES = {"gpt4": "cl100k", "gpt3.5": "cl100k", "gpt4o": "o200k", "r50k": "gpt2", "p50k": "gpt2"}
_OTHER_NAMES |= {"qwen3": "qwen2"}
_ASCII_CLASSES = {"L": "A-Za-z", "Lu": "A-Z", "Ll": "a-z", "N": "0-9", "Lt": "", "Lm": "", "Lo": "", "M": ""}

# `re` counts U+001C..U+001F as white space and `regex` does not: `\S` of `re` is the stricter of the two,
# so it is safe.
SPACE_CUT = re.compile(r" (?=\S)")
# Where a text may be divided into parts that are tokenized apart, whatever the named pattern: before a
# space or after a single line break, between two other characters ("/" may join the line break before it
# in o200k).
BLOCK_CUT = re.compile(r"(?<=\S)(?= \S)|(?<=\S\n)(?=[^\s/])")


logger = logging.getLogger("bpe")


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A split pattern: `text` is its regular expression, `name` is None if it is none of PATTERNS.

    A pattern without a name gets no fast path.

    >>> Pattern.of("gpt2").split("Hello world, it's 2024!")
    ['Hello', ' world', ',', ' it', "'s", ' 2024', '!']
    """

    text: str
    name: str | None = None

    @classmethod
    def of(cls, pattern: "str | Pattern") -> "Pattern":
        """Return the pattern with this name or regular expression.

        A text that looks like a name but is none is refused; "regex:TEXT" is always a regular expression.
        """
        if isinstance(pattern, Pattern):
            return pattern
        if pattern in PATTERNS:
            return cls(PATTERNS[pattern], pattern)
        text = pattern.removeprefix("regex:")
        if not text or (text == pattern and re.fullmatch(r"\w[\w. -]*", pattern)):
            raise ValueError(_no_such_name(pattern))
        return cls.spelled(text)

    @classmethod
    def spelled(cls, text: str) -> "Pattern":
        """Return the pattern of a regular expression; other projects' spellings of the named ones are recognised."""
        name = _SPELLINGS.get(text)
        return cls(PATTERNS[name], name) if name else cls(text)

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
        """Return the pattern for a whole text."""
        return regex.compile(self.text)

    @functools.cached_property
    def _inner(self) -> tuple[regex.Pattern, re.Pattern[str]]:
        """Return the pattern for pieces before a cut, for any text and, three times as fast, for ASCII.

        The rule of cl100k for white space at the end of a text cannot apply there.
        """
        text = LLAMA3 if self.name == "cl100k" else self.text
        return regex.compile(text), re.compile(_for_ascii(text), re.ASCII)

    def split(self, text: str) -> list[str]:
        """Return the pre-tokens of `text`, which joined give `text` again."""
        return self.compiled.findall(text) if self.name else list(_matches_and_gaps(self.compiled, text))

    def split_inner(self, pieces: str) -> list[str]:
        """Return the pre-tokens of one or more pieces from before the last cut of a text, joined with their spaces.

        Only for named patterns.
        """
        any_text, ascii_only = self._inner
        if pieces.isascii():
            return ascii_only.findall(pieces)
        first, *others = SPACE_CUT.split(pieces)
        found = any_text.findall(first)
        for is_ascii, group in itertools.groupby(others, str.isascii):
            found += (ascii_only if is_ascii else any_text).findall(" " + " ".join(group))
        return found


def cut_pieces(text: str) -> list[str]:
    """Cut `text` where a pre-token of a named pattern must begin; every piece but the first loses its leading space.

    The last piece is for `Pattern.split`, the others are for `split_inner`, with their space put back.

    >>> cut_pieces("One day, a dog")
    ['One', 'day,', 'a', 'dog']
    """
    return SPACE_CUT.split(text)


def _no_such_name(name: str) -> str:
    known = {name: name for name in PATTERNS} | _OTHER_NAMES
    plain = re.sub(r"[ _-]|base$", "", name.lower())
    words = [plain] if plain in known else difflib.get_close_matches(plain, known, n=2, cutoff=0.6)
    near = sorted({known[word] for word in words})
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    return (
        f"no pattern is named {name!r}{hint}: use one of {', '.join(PATTERNS)}, "
        f"or 'regex:{name}' if it is meant as a regular expression"
    )


def _for_ascii(text: str) -> str:
    r"""Return a named pattern with its Unicode classes reduced to what ASCII has of them, for `re`.

    >>> _for_ascii(r" ?\p{L}+|[^\s\p{L}]")
    ' ?[A-Za-z]+|[^\\sA-Za-z]'
    """

    def reduce(match: re.Match[str]) -> str:
        reduced = re.sub(r"\\p\{(\w+)\}", lambda found: _ASCII_CLASSES[found[1]], match[0])
        return reduced if match[0].startswith("[") else f"[{reduced}]"

    return re.sub(r"\[[^]]*\]|\\p\{\w+\}", reduce, text)


def _matches_and_gaps(pattern: regex.Pattern, text: str) -> Iterator[str]:
    """Yield what the pattern matches and what is between its matches, so that nothing of the text is lost."""
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
    """Cut the special tokens out of `text`: ordinary text at even places, special tokens at odd ones.

    If special tokens overlap, the one that begins first wins, then the longest.

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
    """Return the last place where `text`, which may go on, can be cut without changing a pre-token, or 0.

    No special token spans it, not even one whose end is yet to come.

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
    """Return the last place in `text` that no special token spans: for text that has no better place."""
    cut = _undecided(text, special_tokens)
    while cut > 0 and (start := _token_across(text, cut, special_tokens)) is not None:
        cut = start
    return cut or len(text)


def _undecided(text: str, special_tokens: Sequence[str]) -> int:
    """Return where an incomplete special token may begin at the earliest."""
    return len(text) - max(map(len, special_tokens), default=1) + 1


def _token_across(text: str, cut: int, special_tokens: Sequence[str]) -> int | None:
    """Return the start of a special token that spans `cut`, or None."""
    for token in special_tokens:
        start = text.find(token, max(0, cut - len(token) + 1), cut + len(token) - 1)
        if start >= 0:
            return start
    return None


def blocks(
    texts: Iterable[str], special_tokens: Sequence[str], size: int, longest: int | None = None
) -> Iterator[str]:
    """Yield a stream of text in blocks of about `size` characters that can be tokenized apart.

    Text without a place to cut is held until there is one; with `longest`, it is cut anyway after that many
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
    """Join surrogate pairs into their characters; a lone surrogate becomes U+FFFD, as in tiktoken.

    >>> repair_surrogates("\\ud83d\\ude00 \\ud83d") == "\\N{GRINNING FACE} \\N{REPLACEMENT CHARACTER}"
    True
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _slices(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))
