"""python -m bpe train | add | encode | decode | compare | view: tokenizers at the command line."""

import codecs
import contextlib
import dataclasses
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Annotated

import numpy as np
import tyro

from bpe import END_OF_TEXT
from bpe.tokenizer import BLOCK, Tokenizer
from common import cli, cluster
from common.files import atomic, check_start
from common.textfiles import TextFile, glob_matches

Argument = tyro.conf.Positional


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(cluster.Machines):
    """Learn a tokenizer from text files."""

    input: tuple[Path, ...]
    """Text files (UTF-8), plain or compressed, folders or globs; - is standard input."""
    vocab_size: int
    """Number of ids: 256 bytes, the merges and the special tokens."""
    out: Path = Path("tokenizer.json")
    """Write the tokenizer to this file, in the format of Hugging Face's tokenizer.json."""
    pattern: str = "gpt2"
    """How text is split before merging: gpt2, cl100k, o200k, llama3, qwen2 or regex:EXPRESSION."""
    special_tokens: tuple[str, ...] = (END_OF_TEXT,)
    """Tokens that are not text: each gets an id, and a text ends at each of them."""
    end_of_text: str | None = None
    """The special token that closes a document; by default <|endoftext|> if it is one."""
    num_workers: int | None = None
    """Number of processes; chosen by the length of the input by default."""
    max_bytes: int | None = None
    """Learn from this many bytes at the beginning of the input only."""

    def __post_init__(self) -> None:
        self.check_machines()


@dataclasses.dataclass(frozen=True)
class Add:
    """Add special tokens to a tokenizer."""

    tokenizer: Annotated[Argument[str], tyro.conf.arg(metavar="TOKENIZER")]
    """A tokenizer.json, a folder that holds one, or gpt2."""
    out: Path
    """Write the new tokenizer.json to this file."""
    special_tokens: tuple[str, ...] = ()
    """The names of the new tokens; their ids follow the greatest one."""
    end_of_text: str | None = None
    """The special token, new or old, that closes a document."""


@dataclasses.dataclass(frozen=True)
class Encode:
    """Write the ids of a text, separated by spaces, or as a NumPy array."""

    file: Annotated[Argument[Path | None], tyro.conf.arg(metavar="FILE")] = None
    """The text (UTF-8, plain or compressed); standard input by default."""
    tokenizer: str = "gpt2"
    """A tokenizer.json, a folder that holds one, or gpt2."""
    allow_special: bool = False
    """Recognise special tokens; otherwise they are ordinary text."""
    out: Path | None = None
    """Write the ids to this file, as an array if the name ends in .npy; standard output by default."""


@dataclasses.dataclass(frozen=True)
class Decode:
    """Write the text of ids."""

    file: Annotated[Argument[Path | None], tyro.conf.arg(metavar="FILE")] = None
    """Ids separated by white space, or an array in a .npy file; standard input by default."""
    tokenizer: str = "gpt2"
    """A tokenizer.json, a folder that holds one, or gpt2."""
    skip_special: bool = False
    """Leave out special tokens."""
    out: Path | None = None
    """Write the text to this file; standard output by default."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare BPE with bytes, characters and words on a text."""

    file: Annotated[Argument[Path], tyro.conf.arg(metavar="FILE")]
    """The text (UTF-8)."""
    vocab_size: int = 4096
    """Number of ids of the BPE that is trained on the text."""
    max_bytes: int = 10_000_000
    """Read only this many bytes of the text."""


@dataclasses.dataclass(frozen=True)
class View:
    """Show the tokens of a text as coloured spans with their ids and bytes."""

    text: Annotated[Argument[str], tyro.conf.arg(metavar="TEXT_OR_FILE")]
    """A file or, if there is none of this name, the text itself."""
    tokenizer: tuple[str, ...] = ("gpt2",)
    """One or two tokenizers, side by side: a tokenizer.json, a folder that holds one, or gpt2."""
    html: Path | None = None
    """Write one self-contained HTML page here, instead of the terminal."""
    rows: int = 50
    """Tokens that the table in the terminal lists."""
    max_bytes: int = 100_000
    """Read only this many bytes of a file."""


def run_train(options: Train) -> None:
    """Train, save, and print what was learnt."""
    from bpe.trainer import train

    with cluster.engine(options, options.num_workers):
        tokenizer = train(
            _sources(options),
            options.vocab_size,
            pattern=options.pattern,
            special_tokens=options.special_tokens,
            end_of_text=options.end_of_text,
            num_workers=options.num_workers,
            max_bytes=options.max_bytes,
        )
    tokenizer.save(options.out)
    print(f"{options.out}: {tokenizer.vocab_size:,} ids, {len(tokenizer.merges):,} of them merges")


def _sources(options: Train) -> Sequence[Path] | Iterable[str]:
    """Return the paths, or what standard input holds in parts that can be counted apart."""
    from bpe.counting import BLOCK, stream_text
    from bpe.pretokenize import blocks

    if Path("-") not in options.input:
        _check_out(options)
        return options.input
    if len(options.input) > 1:
        raise ValueError("--input - is standard input: give no other input with it")
    texts = stream_text("standard input", sys.stdin.buffer)
    return blocks(texts, options.special_tokens, BLOCK, longest=BLOCK)


def _check_out(options: Train) -> None:
    """Raise ValueError if the tokenizer would replace a file of the input, or be read with it the next time."""
    for path in map(str, options.input):
        if glob_matches(str(Path(path) / "**") if Path(path).is_dir() else path, options.out):
            raise ValueError(f"--out {options.out} is a file of --input {path}: choose another name")


def run_add(options: Add) -> None:
    """Write the tokenizer with its new tokens."""
    if not options.special_tokens and not options.end_of_text:
        raise ValueError("nothing to add: give --special-tokens or --end-of-text")
    tokenizer = open_tokenizer(options.tokenizer)
    tokenizer = tokenizer.with_special_tokens(options.special_tokens, options.end_of_text)
    tokenizer.save(options.out)
    print(
        f"{options.out}: {tokenizer.vocab_size:,} ids, special tokens {', '.join(tokenizer.special_tokens)}"
    )


def run_encode(options: Encode) -> None:
    """Encode a stream in constant memory."""
    tokenizer = open_tokenizer(options.tokenizer)
    allowed = "all" if options.allow_special else ()
    with _reader(options.file) as source:
        ids = tokenizer.encode_iterable(iter(lambda: source.read(BLOCK), ""), allowed)
        if options.out and _is_array(options.out):
            _write_array(options.out, ids, tokenizer.dtype)
            return
        with _writer(options.out) as sink:
            for line in _grouped(ids, 1 << 14):
                sink.write((" ".join(map(str, line)) + "\n").encode())


def _write_array(path: Path, ids: Iterable[int], dtype: np.dtype) -> None:
    """Write a stream of ids as one array (n,); the header is written again when n is known."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype.newbyteorder("<")), "fortran_order": False}
    with atomic(path) as file:
        np.lib.format.write_array_header_1_0(file, header | {"shape": (0,)})
        begin = file.tell()
        for group in _grouped(ids, 1 << 20):
            file.write(np.array(group, dtype.newbyteorder("<")).tobytes())
        count = (file.tell() - begin) // dtype.itemsize
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header | {"shape": (count,)})
        if file.tell() != begin:
            raise ValueError(f"{path}: {count:,} ids do not fit into the header of an array")


def run_decode(options: Decode) -> None:
    """Decode a stream of ids, byte for byte."""
    tokenizer = open_tokenizer(options.tokenizer)
    skipped = set(tokenizer.special_tokens.values()) if options.skip_special else ()
    array = options.file is not None and _is_array(options.file)
    with contextlib.nullcontext() if array else _reader(options.file) as source, _writer(options.out) as sink:
        for ids in _grouped(_read_array(options.file) if array else _read_ids(source), 1 << 14):
            sink.write(tokenizer.decode_bytes([id for id in ids if id not in skipped]))


def run_compare(options: Compare) -> None:
    """Print the table."""
    from rich.console import Console

    from bpe.compare import compare, render

    text = _beginning(options.file, options.max_bytes)
    Console().print(render(compare(text, options.vocab_size)))


def run_view(options: View) -> None:
    """Print the tokens or write the page."""
    if options.rows < 0:
        raise ValueError(f"rows is {options.rows}: give 0 or more")
    from rich.console import Console

    from bpe.view import render_terminal, write_html

    tokenizers = {name: open_tokenizer(name) for name in options.tokenizer}
    text = options.text
    if _is_file(text):
        text = _beginning(Path(text), options.max_bytes)
    if options.html is None:
        console = Console()
        coloured = console.color_system is not None
        console.print(render_terminal(text, tokenizers, options.rows, coloured=coloured))
        return
    write_html(options.html, text, tokenizers)
    print(f"{options.html}: open it in a browser")


def open_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer that a flag names."""
    return Tokenizer.gpt2() if name == "gpt2" else Tokenizer.load(name)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a null character
        return False


def _beginning(path: Path, max_bytes: int) -> str:
    """Return the first `max_bytes` bytes, without a character cut off; bytes that are not UTF-8 become U+FFFD."""
    if max_bytes < 1:
        raise ValueError(f"max_bytes is {max_bytes}: give 1 or more")
    with TextFile(str(path)).open() as file:
        return codecs.getincrementaldecoder("utf-8")("replace").decode(file.read(max_bytes))


@contextlib.contextmanager
def _reader(path: Path | None) -> Iterator[IO[str]]:
    """Open a file or standard input for reading text: line ends as they are, bytes that are not UTF-8 as U+FFFD."""
    stream = io.BufferedReader(sys.stdin.buffer, BLOCK) if path is None else TextFile(str(path)).open()
    if path is None:
        check_start("standard input", stream.peek(1))
    text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")
    try:
        yield text
    finally:
        if path is None:
            text.detach().detach()  # standard input stays open
        else:
            text.close()


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


def _is_array(path: Path) -> bool:
    return path.suffix.lower() == ".npy"


def _read_array(path: Path) -> Iterator[int]:
    """Yield the ids of an array (n,) in a file, a part at a time."""
    ids = np.load(path, mmap_mode="r", allow_pickle=False)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"{path} holds {ids.dtype} in {ids.ndim} dimensions: give whole numbers in one")
    for start in range(0, len(ids), 1 << 20):
        yield from ids[start : start + (1 << 20)].tolist()


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
        raise ValueError(f"{word[:40]!r} is no token id: give whole numbers separated by white space")
    return int(word)


COMMANDS = {
    "train": (Train, run_train),
    "add": (Add, run_add),
    "encode": (Encode, run_encode),
    "decode": (Decode, run_decode),
    "compare": (Compare, run_compare),
    "view": (View, run_view),
}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run python -m bpe."""
    cli.dispatch(COMMANDS, argv, prog="python -m bpe")


if __name__ == "__main__":
    main()
