"""python -m bpe train | encode | decode | compare | view: tokenizers at the command line."""

import codecs
import contextlib
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Annotated

import tyro

from bpe import END_OF_TEXT
from bpe.tokenizer import BLOCK, Tokenizer
from common import cli
from common.files import atomic

Argument = tyro.conf.Positional


@dataclasses.dataclass(frozen=True)
class Train:
    """Learns a tokenizer from text files."""

    input: tuple[Path, ...]
    """Text files (UTF-8)."""
    vocab_size: int
    """Number of ids: 256 bytes, the merges and the special tokens."""
    out: Path = Path("tokenizer.json")
    """Where to write the tokenizer, in the format of Hugging Face's tokenizer.json."""
    pattern: str = "gpt2"
    """How text is split before merging: gpt2, cl100k, o200k or a regular expression."""
    special_tokens: tuple[str, ...] = (END_OF_TEXT,)
    """Tokens that are no text: they get an id of their own, and a text ends where one stands."""
    num_workers: int | None = None
    """Processes that count; by default as many as are worth it."""
    max_bytes: int | None = None
    """Learn from so many bytes at the beginning of the input only."""


@dataclasses.dataclass(frozen=True)
class Encode:
    """Writes the ids of a text, with spaces between them."""

    file: Annotated[Argument[Path | None], tyro.conf.arg(metavar="FILE")] = None
    """The text (UTF-8); standard input by default."""
    tokenizer: str = "gpt2"
    """A tokenizer.json, a folder that holds one, or gpt2."""
    allow_special: bool = False
    """Recognise special tokens; otherwise they are ordinary text."""
    out: Path | None = None
    """Where to write the ids; standard output by default."""


@dataclasses.dataclass(frozen=True)
class Decode:
    """Writes the text that ids stand for."""

    file: Annotated[Argument[Path | None], tyro.conf.arg(metavar="FILE")] = None
    """Ids with white space between them; standard input by default."""
    tokenizer: str = "gpt2"
    """A tokenizer.json, a folder that holds one, or gpt2."""
    out: Path | None = None
    """Where to write the text; standard output by default."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compares BPE with bytes, characters and words on a text."""

    file: Annotated[Argument[Path], tyro.conf.arg(metavar="FILE")]
    """The text (UTF-8)."""
    vocab_size: int = 4096
    """Number of ids of the BPE that is trained on the text."""
    max_bytes: int = 10_000_000
    """Read so many bytes of the text only."""


@dataclasses.dataclass(frozen=True)
class View:
    """Shows the tokens of a text as coloured spans with their ids and bytes."""

    text: Annotated[Argument[str], tyro.conf.arg(metavar="TEXT_OR_FILE")]
    """A file, or where there is none of this name, the text itself."""
    tokenizer: tuple[str, ...] = ("gpt2",)
    """One or two tokenizers, side by side: a tokenizer.json, a folder that holds one, or gpt2."""
    html: Path | None = None
    """Write one self-contained HTML page here, instead of the terminal."""
    rows: int = 50
    """How many tokens the table in the terminal lists."""
    max_bytes: int = 100_000
    """Read so many bytes of a file only."""


def run_train(options: Train) -> None:
    """Trains, saves, and says what was learnt."""
    from bpe.trainer import train

    tokenizer = train(
        options.input,
        options.vocab_size,
        pattern=options.pattern,
        special_tokens=options.special_tokens,
        num_workers=options.num_workers,
        max_bytes=options.max_bytes,
    )
    tokenizer.save(options.out)
    print(f"{options.out}: {tokenizer.vocab_size:,} ids, {len(tokenizer.merges):,} of them merges")


def run_encode(options: Encode) -> None:
    """Encodes a stream in constant memory."""
    tokenizer = open_tokenizer(options.tokenizer)
    allowed = "all" if options.allow_special else ()
    with _reader(options.file) as source, _writer(options.out) as sink:
        ids = tokenizer.encode_iterable(iter(lambda: source.read(BLOCK), ""), allowed)
        for line in _grouped(ids, 1 << 14):
            sink.write((" ".join(map(str, line)) + "\n").encode())


def run_decode(options: Decode) -> None:
    """Decodes a stream of ids, byte for byte."""
    tokenizer = open_tokenizer(options.tokenizer)
    with _reader(options.file) as source, _writer(options.out) as sink:
        for ids in _grouped(_read_ids(source), 1 << 14):
            sink.write(tokenizer.decode_bytes(ids))


def run_compare(options: Compare) -> None:
    """Prints the table."""
    from rich.console import Console

    from bpe.compare import compare, render

    text = _beginning(options.file, options.max_bytes)
    Console().print(render(compare(text, options.vocab_size)))


def run_view(options: View) -> None:
    """Prints the tokens or writes the page."""
    if options.rows < 0:
        raise ValueError(f"rows is {options.rows}: give 0 or more")
    from rich.console import Console

    from bpe.view import render_terminal, write_html

    tokenizers = {name: open_tokenizer(name) for name in options.tokenizer}
    text = options.text
    if _is_file(text):
        text = _beginning(Path(text), options.max_bytes)
    if options.html is None:
        Console().print(render_terminal(text, tokenizers, options.rows))
        return
    write_html(options.html, text, tokenizers)
    print(f"{options.html}: open it in a browser")


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that a flag names."""
    if name == "gpt2":
        return Tokenizer.gpt2()
    path = Path(name)
    return Tokenizer.load(path / "tokenizer.json" if path.is_dir() else path)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a null character
        return False


def _beginning(path: Path, max_bytes: int) -> str:
    """The first `max_bytes` bytes without a character that they cut; others that are no UTF-8 become U+FFFD."""
    if max_bytes < 1:
        raise ValueError(f"max_bytes is {max_bytes}: give 1 or more")
    with open(path, "rb") as file:
        return codecs.getincrementaldecoder("utf-8")("replace").decode(file.read(max_bytes))


@contextlib.contextmanager
def _reader(path: Path | None) -> Iterator[IO[str]]:
    """Text from a file or standard input: line breaks as they are, bytes that are no UTF-8 as U+FFFD."""
    if path is None:
        sys.stdin.reconfigure(encoding="utf-8", errors="replace", newline="")
        yield sys.stdin
    else:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            yield file


@contextlib.contextmanager
def _writer(path: Path | None) -> Iterator[IO[bytes]]:
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        with atomic(path) as file:
            yield file


def _grouped(ids: Iterable[int], size: int) -> Iterator[list[int]]:
    group: list[int] = []
    for id in ids:
        group.append(id)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _read_ids(source: IO[str]) -> Iterator[int]:
    rest = ""
    while chunk := source.read(BLOCK):
        # A number may go on in the next chunk: the last word waits unless white space follows it.
        *words, rest = (rest + chunk + "|").split()
        rest = rest[:-1]
        yield from map(_id, words)
    if rest:
        yield _id(rest)


def _id(word: str) -> int:
    if not (word.isascii() and word.isdigit()):
        raise ValueError(f"{word[:40]!r} is no token id: give whole numbers with white space between them")
    return int(word)


COMMANDS = {
    "train": (Train, run_train),
    "encode": (Encode, run_encode),
    "decode": (Decode, run_decode),
    "compare": (Compare, run_compare),
    "view": (View, run_view),
}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of python -m bpe."""
    cli.dispatch(COMMANDS, argv, prog="python -m bpe")


if __name__ == "__main__":
    main()
