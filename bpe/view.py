"""Shows tokens as coloured spans with ids and bytes, in the terminal or as one self-contained HTML page."""

import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bpe.tokenizer import Tokenizer
from common.files import write_text

COLOURS = ("#ffd6a5", "#caffbf", "#9bf6ff", "#bdb2ff", "#ffadad")
VISIBLE = {"\n": "⏎\n", "\r": "␍", "\t": "⇥\t"}


@dataclasses.dataclass(frozen=True)
class Span:
    """One token of a text: its id, its bytes, and what is shown for it."""

    id: int
    token: bytes
    shown: str

    @property
    def hexadecimal(self) -> str:
        """Return the bytes as in a hex dump."""
        return self.token.hex(" ")


class Tokens(tuple[Span, ...]):
    """The tokens of a text: printed with a bar between two of them, in a notebook as coloured spans."""

    def __str__(self) -> str:
        return "│".join(span.shown for span in self)

    def _repr_html_(self) -> str:
        return f'<pre style="color:#111;white-space:pre-wrap">{self.coloured()}</pre>'

    def coloured(self) -> str:
        """Return HTML spans with id and bytes in their titles; everything that comes from the text is escaped."""
        return "".join(
            f'<span style="background:{COLOURS[index % len(COLOURS)]}" title="{html.escape(_title(index, span))}">'
            f"{html.escape(span.shown)}</span>"
            for index, span in enumerate(self)
        )


def spans(tokenizer: Tokenizer, text: str) -> Tokens:
    r"""Return the tokens of `text`; special tokens are recognised.

    Parts of a character are shown by their bytes.

    >>> print(spans(Tokenizer([(b"h", b"i")]), "hihié"))
    hi│hi│\xc3│\xa9
    """
    tokens = [(id, tokenizer.vocab[id]) for id in tokenizer.encode(text, allowed_special="all")]
    return Tokens(Span(id, token, _shown(token)) for id, token in tokens)


def _shown(token: bytes) -> str:
    text = token.decode("utf-8", "backslashreplace")
    return "".join(VISIBLE.get(c, c if c.isprintable() else ascii(c)[1:-1]) for c in text)


def summary(text: str, found: Sequence[Span]) -> str:
    """Return the length of the text in characters, bytes and tokens."""
    size = sum(len(span.token) for span in found)
    ratio = f", {size / len(found):.2f} bytes per token" if found else ""
    return f"{len(text):,} characters, {size:,} bytes, {len(found):,} tokens{ratio}"


def render_terminal(
    text: str, tokenizers: dict[str, Tokenizer], rows: int, *, coloured: bool
) -> RenderableType:
    """Return for each tokenizer the text, its counts, and a table of the first `rows` tokens.

    Tokens are told apart by colours or, where there are none, by a bar between two.
    """
    parts: list[RenderableType] = []
    for name, tokenizer in tokenizers.items():
        found = spans(tokenizer, text)
        shown = [(span.shown, f"black on {COLOURS[i % len(COLOURS)]}") for i, span in enumerate(found)]
        line = Text.assemble(*shown) if coloured else Text(str(found))
        parts += [Text(name, style="bold"), line, Text(summary(text, found)), _token_table(found, rows)]
    return Group(*parts)


def _token_table(found: Sequence[Span], rows: int) -> RenderableType:
    table = Table("position", "id", "bytes", "token")
    for index, span in enumerate(found[:rows]):
        table.add_row(str(index), str(span.id), span.hexadecimal, Text(span.shown.replace("\n", "")))
    more = Text(f"… and {len(found) - rows:,} more" if len(found) > rows else "")
    return Group(table, more)


def write_html(path: Path, text: str, tokenizers: dict[str, Tokenizer]) -> None:
    """Write the page, one column for each tokenizer; everything that comes from the text is escaped."""
    write_text(path, html_page(text, tokenizers))


def html_page(text: str, tokenizers: dict[str, Tokenizer]) -> str:
    """Return one HTML page that needs nothing else: spans with id and bytes in their titles, counts above."""
    columns = "".join(_column(name, text, spans(tokenizer, text)) for name, tokenizer in tokenizers.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Tokens</title>\n'
        f"<style>{_STYLE}</style></head>\n<body><main>{columns}</main></body></html>\n"
    )


_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.9 system-ui,sans-serif;margin:2rem}
main{display:flex;gap:2rem;align-items:flex-start}
section{flex:1;min-width:0}
pre{font:15px/1.9 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
span{border-radius:3px;color:#111}
span:hover{outline:2px solid}
"""


def _column(name: str, text: str, found: Tokens) -> str:
    heading = f"<h2>{html.escape(name)}</h2><p>{summary(text, found)}</p>"
    return f"<section>{heading}<pre>{found.coloured()}</pre></section>\n"


def _title(index: int, span: Span) -> str:
    return f"token {index} · id {span.id} · bytes {span.hexadecimal} · {span.shown.strip()}"
