"""Count the tokens that a text becomes as bytes, characters, words, by BPE trained on the text, by GPT-2's BPE.

Schemes that learn see the first nine tenths of the text, and everything is measured on the last tenth: otherwise
no word would ever be unknown.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import regex
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bpe.tokenizer import Tokenizer
from bpe.trainer import train

EXAMPLE_TOKENS = 12
UNKNOWN = "<unk>"
WORD = r"\w+(?:['’]\w+)*|[^\w\s]|\s"


class Scheme(Protocol):
    """Offer what a comparison asks of a tokenizer."""

    vocab_size: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclasses.dataclass(frozen=True)
class Measured:
    """Hold what one scheme does to a text. `longest` is the number of tokens of the line with the most."""

    name: str
    vocab_size: int
    tokens: int
    bytes_per_token: float
    unknown_share: float
    longest: int
    example: str


def compare(text: str, vocab_size: int) -> list[Measured]:
    """Measure every scheme; GPT-2's is left out if its vocabulary cannot be found."""
    seen, unseen = _split(text)
    schemes: dict[str, Callable[[], Scheme]] = {
        "byte": ByteTokenizer,
        "character": lambda: CharTokenizer.train(seen),
        "word": lambda: WordTokenizer.train(seen),
        f"word, {vocab_size:,} at most": lambda: WordTokenizer.train(seen, vocab_size),
        "BPE, trained here": lambda: train([seen], vocab_size, special_tokens=()),
        "BPE, GPT-2's": Tokenizer.gpt2,
    }
    measured = []
    for name, make in schemes.items():
        try:
            scheme = make()
        except FileNotFoundError:
            continue
        measured.append(measure(name, scheme, unseen))
    return measured


def _split(text: str) -> tuple[str, str]:
    """Return the first nine tenths and the last tenth, divided at a line break if there is one."""
    place = len(text) * 9 // 10
    place = text.rfind("\n", 0, place) + 1 or place
    if not text[:place].strip() or not text[place:].strip():
        raise ValueError("the text is too short to be compared: give one of some hundred characters at least")
    return text[:place], text[place:]


def measure(name: str, scheme: Scheme, text: str) -> Measured:
    """Encode `text` line by line and return the counts."""
    lines = [scheme.encode(line) for line in text.splitlines(keepends=True)]
    tokens = sum(map(len, lines))
    unknown_id = getattr(scheme, "unknown_id", None)
    unknown = 0 if unknown_id is None else sum(line.count(unknown_id) for line in lines)
    size = len(text.encode("utf-8", "replace"))
    example = next(line for line in lines if len(line) > 1 or len(lines) == 1)
    pieces = [scheme.decode([id]) for id in example[:EXAMPLE_TOKENS]]
    return Measured(
        name,
        scheme.vocab_size,
        tokens,
        size / tokens,
        unknown / tokens,
        max(map(len, lines)),
        "|".join(piece.replace("\n", "⏎") for piece in pieces) + "|…" * (len(example) > EXAMPLE_TOKENS),
    )


def render(rows: Sequence[Measured]) -> Group:
    """Return the table for the terminal, and how a line begins under each scheme."""
    table = Table(title="learned from the first nine tenths, measured on the last", title_justify="left")
    for column in ("scheme", "ids", "tokens", "bytes per token", "unknown", "longest line"):
        table.add_column(column, justify="left" if column == "scheme" else "right")
    for row in rows:
        numbers = f"{row.vocab_size:,}", f"{row.tokens:,}", f"{row.bytes_per_token:.2f}"
        table.add_row(row.name, *numbers, f"{row.unknown_share:.2%}", f"{row.longest:,}")
    width = max(len(row.name) for row in rows)
    lines = (f"{row.name:>{width}}  {row.example}" for row in rows)
    return Group(table, *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))


# The tokenizers that BPE is measured against: one id per byte, per character, per word. What a vocabulary does not
# hold becomes its unknown id, which bytes never need and BPE does not need either.


class ByteTokenizer:
    """UTF-8: 256 ids, nothing is unknown, and the longest sequences of all.

    >>> ByteTokenizer().encode("né")
    [110, 195, 169]
    """

    vocab_size = 256
    unknown_id = None

    def encode(self, text: str) -> list[int]:
        """Return the bytes of `text`; a lone surrogate becomes a question mark."""
        return list(text.encode("utf-8", "replace"))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text; bytes that are not UTF-8 become U+FFFD."""
        return bytes(ids).decode("utf-8", "replace")


class UnitTokenizer:
    """Ids for a fixed list of units (characters or words) after id 0, which means any other one."""

    unknown_id = 0

    def __init__(self, units: Iterable[str]) -> None:
        self.units = [UNKNOWN, *units]
        self._ids = {unit: id for id, unit in enumerate(self.units)}

    @property
    def vocab_size(self) -> int:
        """Return the number of units and the unknown one."""
        return len(self.units)

    def split(self, text: str) -> Sequence[str]:
        """Return the units of `text`, known or not."""
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """Return the ids of the units of `text`."""
        return [self._ids.get(unit, self.unknown_id) for unit in self.split(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the units joined; unknown ones are lost and read <unk>."""
        return "".join(self.units[id] for id in ids)


class CharTokenizer(UnitTokenizer):
    """One id per character of the training text.

    >>> tokenizer = CharTokenizer.train("banana")
    >>> tokenizer.encode("nab!"), tokenizer.decode(tokenizer.encode("nab!"))
    ([3, 1, 2, 0], 'nab<unk>')
    """

    @classmethod
    def train(cls, text: str) -> "CharTokenizer":
        """Take every character of `text`, in the order of their code points."""
        return cls(sorted(set(text)))

    def split(self, text: str) -> Sequence[str]:
        """Return the characters."""
        return text


class WordTokenizer(UnitTokenizer):
    """One id per word, punctuation mark and white space character of the training text.

    >>> WordTokenizer.train("the cat, the dog").encode("the bird, the cat")
    [2, 1, 0, 4, 1, 2, 1, 3]
    """

    @classmethod
    def train(cls, text: str, vocab_size: int | None = None) -> "WordTokenizer":
        """Take the most frequent units of `text`, the first of equals, by default all of them."""
        counts = Counter(regex.findall(WORD, text))
        return cls(unit for unit, _ in counts.most_common(None if vocab_size is None else vocab_size - 1))

    def split(self, text: str) -> Sequence[str]:
        """Return the words, punctuation marks and white space characters; joined they give the text again."""
        return regex.findall(WORD, text)
