"""Count what a token file holds, in one pass: lengths of documents, frequencies of tokens, a sample."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bpe import Tokenizer
from common import plots
from data.batches import document_spans
from data.tokenfile import Meta, TokenFile, chunks

if TYPE_CHECKING:
    from rich.console import RenderableType

SAMPLE_TOKENS = 200


@dataclasses.dataclass(frozen=True)
class Info:
    """The figures of one split."""

    path: Path
    split: str
    meta: Meta
    lengths: np.ndarray  # (documents,) tokens of each, <|endoftext|> counted
    counts: np.ndarray  # (vocab_size,) how often each id occurs
    names: list[str]  # (vocab_size,) the ids' text, quoted
    sample: str

    @property
    def unused(self) -> int:
        """Return the number of ids that never occur."""
        return int((self.counts == 0).sum())


def read_info(directory: Path, split: str) -> Info:
    """Count one split of a prepared folder; the errors are those of TokenFile.open."""
    file = TokenFile.open(directory, split)
    tokenizer = Tokenizer.load(Path(directory) / "tokenizer.json")
    counts = np.zeros(file.vocab_size, np.int64)
    for _, ids in chunks(file.tokens):
        counts += np.bincount(ids, minlength=file.vocab_size)
    starts, lengths = document_spans(file.tokens, file.meta.end_of_text, block_size=len(file))
    middle = int(starts[len(starts) // 2])
    sample = tokenizer.decode(file.tokens[middle : middle + SAMPLE_TOKENS].tolist())
    names = [_quoted(tokenizer.vocab.get(id, b"")) for id in range(file.vocab_size)]
    return Info(file.path, split, file.meta, lengths, counts, names, sample)


def _quoted(token: bytes) -> str:
    """Return a token as it is shown: text in quotes, or bytes that are not UTF-8 as hex escapes.

    >>> _quoted(b" the"), _quoted(b"\\xe2\\x80")
    ("' the'", "b'\\\\xe2\\\\x80'")
    """
    try:
        return repr(token.decode())
    except UnicodeDecodeError:
        return repr(token)


def histogram(lengths: np.ndarray) -> list[tuple[int, int, int]]:
    """Return (shortest, longest, documents) of bins whose bounds double, from the first used bin to the last.

    >>> histogram(np.array([3, 3, 5, 17]))
    [(2, 3, 2), (4, 7, 1), (8, 15, 0), (16, 31, 1)]
    """
    powers = np.frexp(lengths)[1] - 1  # floor of log2
    first = int(powers.min())
    counts = np.bincount(powers - first).tolist()
    return [(1 << power, (2 << power) - 1, count) for power, count in enumerate(counts, start=first)]


def ranked(info: Info, top: int) -> tuple[list[int], list[int]]:
    """Return the ids of the `top` most used tokens and of the `top` least used that occur, rarest first."""
    order = np.argsort(-info.counts, kind="stable")
    used = order[info.counts[order] > 0]
    return used[:top].tolist(), used[::-1][:top].tolist()


def render(info: Info, top: int) -> "RenderableType":
    """Return the figures as tables for a terminal."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    tables = (_overview(info), _lengths(info), _tokens(info, top))
    return Group(*tables, Panel(Text(info.sample), title="from the middle", title_align="left"))


def _overview(info: Info) -> "RenderableType":
    from rich.table import Table

    meta, split = info.meta, info.split
    table = Table(title=f"{info.path}", title_justify="left", show_header=False)
    rows = {
        "source": ", ".join(meta.source),
        "tokens": f"{meta.tokens[split]:,} ({meta.dtype})",
        "documents": f"{meta.documents[split]:,}, {info.lengths.mean():.1f} tokens each, "
        f"median {np.median(info.lengths):.0f}, longest {info.lengths.max():,}",
        "text": f"{meta.bytes[split]:,} bytes, {meta.bytes_per_token(split):.3f} per token",
        "vocabulary": f"{meta.vocab_size:,} tokens, {info.unused:,} of them never used here",
        "special tokens": ", ".join(f"{token} = {id}" for token, id in meta.special_tokens.items()),
    }
    for what, counts in (("changed", meta.changed), ("removed", meta.removed)):
        rows[what] = ", ".join(f"{count:,} {rule}" for rule, count in sorted(counts.items())) or "nothing"
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _lengths(info: Info) -> "RenderableType":
    from rich.bar import Bar
    from rich.table import Table

    bins = histogram(info.lengths)
    most = max(count for _, _, count in bins)
    table = Table("tokens", "documents", "", title="lengths of documents", title_justify="left")
    for shortest, longest, count in bins:
        table.add_row(f"{shortest:,} to {longest:,}", f"{count:,}", Bar(most, 0, count, width=40))
    return table


def _tokens(info: Info, top: int) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    table = Table("most used", "times", "least used", "times", title="tokens", title_justify="left")
    for common, rare in zip(*ranked(info, top), strict=True):
        cells = [(Text(info.names[id]), f"{info.counts[id]:,}") for id in (common, rare)]
        table.add_row(*cells[0], *cells[1])
    return table


def draw(info: Info, path: Path) -> None:
    """Plot lengths of documents and frequencies of tokens (Zipf's law is a straight line there) to `path`."""
    figure = plots.figure(10, 4)
    left, right = figure.subplots(1, 2)
    shortest, longest = info.lengths.min(), info.lengths.max() + 1
    wide = longest > 20 * shortest  # a narrower range has hardly a power of ten for a logarithmic axis
    left.hist(info.lengths, bins=(np.geomspace if wide else np.linspace)(shortest, longest, 40))
    left.set(xlabel="tokens in a document", ylabel="documents", title=f"{info.split}: lengths")
    if wide:
        left.set_xscale("log")
    frequencies = np.sort(info.counts[info.counts > 0])[::-1]
    right.loglog(np.arange(1, len(frequencies) + 1), frequencies)
    right.set(xlabel="rank of the token", ylabel="times it occurs", title=f"{info.split}: frequencies")
    plots.save(figure, path)
