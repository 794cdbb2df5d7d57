"""How many tokens a text becomes under each scheme: bytes, characters, words, BPE trained on the text,
GPT-2's BPE.

What learns, learns from the first nine tenths of the text, and everything is measured on the last tenth:
otherwise no word would ever be unknown.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from rich.console import Group
from rich.table import Table
from rich.text import Text

from bpe.baselines import ByteTokenizer, CharTokenizer, WordTokenizer
from bpe.tokenizer import Tokenizer
from bpe.trainer import train

EXAMPLE_TOKENS = 12


class Scheme(Protocol):
    """What a tokenizer must offer to be compared."""

    vocab_size: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one scheme does to a text. `longest` is the number of tokens of the line that has most."""

    name: str
    vocab_size: int
    tokens: int
    bytes_per_token: float
    unknown_share: float
    longest: int
    example: str


def compare(text: str, vocab_size: int) -> list[Measured]:
    """Measures every scheme; GPT-2's is left out where its vocabulary is not at hand."""
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
    """The first nine tenths and the last tenth, divided at a line break where there is one."""
    place = len(text) * 9 // 10
    place = text.rfind("\n", 0, place) + 1 or place
    if not text[:place].strip() or not text[place:].strip():
        raise ValueError("the text is too short to be compared: give one of some hundred characters at least")
    return text[:place], text[place:]


def measure(name: str, scheme: Scheme, text: str) -> Measured:
    """Encodes `text` line by line."""
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
    """The table for the terminal, and how a line begins under each scheme."""
    table = Table(title="learnt from the first nine tenths, measured on the last", title_justify="left")
    for column in ("scheme", "ids", "tokens", "bytes per token", "unknown", "longest line"):
        table.add_column(column, justify="left" if column == "scheme" else "right")
    for row in rows:
        numbers = f"{row.vocab_size:,}", f"{row.tokens:,}", f"{row.bytes_per_token:.2f}"
        table.add_row(row.name, *numbers, f"{row.unknown_share:.2%}", f"{row.longest:,}")
    width = max(len(row.name) for row in rows)
    return Group(table, *(Text(f"{row.name:>{width}}  {row.example}") for row in rows))
