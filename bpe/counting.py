"""How often each pre-token occurs in a corpus: files or strings, in parallel, in bounded memory.

Text is cut into blocks at places that no pre-token and no special token crosses, so neither the size of the
blocks nor the number of workers changes a count. Within a block the text is cut at spaces and the pieces
are counted; the pattern runs once per distinct piece, at the end.
"""

import codecs
import dataclasses
import glob
import itertools
import logging
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from bpe.pretokenize import (
    Pattern,
    blocks,
    cut_pieces,
    forced_cut,
    last_cut,
    repair_surrogates,
    split_special,
)
from common.files import check_start, not_utf8
from common.textfiles import MAGIC, TextFile, matching_files, text_files
from common.workers import WORTH_A_WORKER, ordered_map, sensible_workers

Source = str | os.PathLike[str] | Sequence[os.PathLike[str]] | Iterable[str]

Progress = Callable[
    [int, int | None], None
]  # called with what is done and the total, None if it is not known

BLOCK = 1 << 22  # bytes of a file, or characters of strings, that a worker gets at once
SLICE = 1 << 17  # characters that are cut at once: few enough to stay in the processor's cache
JOINED = 4096  # pieces that are split into pre-tokens at once
MAX_PIECES = 1_000_000  # distinct pieces that are kept; beyond it the rarest are dropped
MAX_CHARACTERS = 16_000_000  # the same bound for their total length
COMPRESSION = 4  # how many times longer a text is than its compressed file, to choose the number of workers
LONGEST_WORD = 4096  # bytes of a pre-token; a longer one is counted in slices

logger = logging.getLogger("bpe")


@dataclasses.dataclass(frozen=True)
class FileBlock:
    """The bytes of `path` from `start` to `end`; `whole` is False if a character may be cut off at the end."""

    path: str
    start: int
    end: int
    whole: bool = True

    def read(self) -> str:
        """Return its text; a ValueError names the place of bytes that are not UTF-8."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            data = file.read(self.end - self.start)
        return _decoded(self.path, codecs.getincrementaldecoder("utf-8")(), data, self.start, self.whole)


class PieceCounts:
    """Counts of pieces: `spaced` ones have lost their leading space, `words` are whole pre-tokens."""

    def __init__(self) -> None:
        self.spaced: Counter[str] = Counter()
        self.words: Counter[str] = Counter()
        self.dropped = 0  # how many pieces were dropped for want of room

    def add_text(self, text: str, pattern: Pattern) -> None:
        """Count one ordinary text, without special tokens."""
        first, *rest = cut_pieces(text) if pattern.name else [text]
        if not rest:
            self.words.update(pattern.split(first))
            return
        self.words.update(pattern.split_inner(first))
        self.words.update(pattern.split(" " + rest.pop()))
        self.spaced.update(rest)

    def merge(self, other: "PieceCounts") -> None:
        """Add the counts of a block; if a table grows too large, its rarest pieces are dropped."""
        for mine, theirs in ((self.spaced, other.spaced), (self.words, other.words)):
            mine.update(theirs)
            if len(mine) > MAX_PIECES or sum(map(len, mine)) > MAX_CHARACTERS:
                self.dropped += drop_rarest(mine, MAX_PIECES // 2, MAX_CHARACTERS // 2)

    def pretokens(self, pattern: Pattern) -> Counter[bytes]:
        """Return the counts of the pre-tokens, as UTF-8, a very long one in slices."""
        words = defaultdict(int, self.words)  # faster than a Counter where most keys are new
        pieces = list(self.spaced.items())
        for start in range(0, len(pieces), JOINED):
            group = pieces[start : start + JOINED]
            found = iter(pattern.split_inner("".join([" " + piece for piece, _ in group])))
            for piece, count in group:
                left = len(piece) + 1  # no pre-token crosses the space before the next piece
                while left:
                    words[word := next(found)] += count
                    left -= len(word)
        counts: Counter[bytes] = Counter({word.encode(): count for word, count in words.items()})
        for word in [word for word in counts if len(word) > LONGEST_WORD]:
            count = counts.pop(word)
            for start in range(0, len(word), LONGEST_WORD):
                counts[word[start : start + LONGEST_WORD]] += count
        return counts


def no_progress(done: int, total: int | None) -> None:
    """Show nothing."""


def drop_rarest(counts: Counter[str], max_pieces: int, max_characters: int) -> int:
    """Keep the most frequent pieces, the first of equally frequent ones; return how many were dropped.

    >>> counts = Counter("a b b c c c d".split())
    >>> drop_rarest(counts, 3, 100), counts
    (1, Counter({'c': 3, 'b': 2, 'a': 1}))
    """
    number: Counter[int] = Counter()
    characters: Counter[int] = Counter()
    for piece, count in counts.items():
        number[count] += 1
        characters[count] += len(piece)
    floor = 0
    for floor in sorted(number, reverse=True):
        if number[floor] > max_pieces or characters[floor] > max_characters:
            break
        max_pieces -= number[floor]
        max_characters -= characters[floor]
    else:
        return 0
    kept = {}
    for piece, count in counts.items():
        if count == floor and max_pieces > 0 and len(piece) <= max_characters:
            max_pieces -= 1
            max_characters -= len(piece)
        elif count <= floor:
            continue
        kept[piece] = count
    dropped = len(counts) - len(kept)
    counts.clear()
    counts.update(kept)
    return dropped


def count_pretokens(
    source: Source,
    pattern: Pattern,
    special_tokens: Sequence[str] = (),
    *,
    num_workers: int | None = None,
    max_bytes: int | None = None,
    block: int = BLOCK,
    on_progress: Progress = no_progress,
) -> Counter[bytes]:
    """Count the pre-tokens of files or strings; special tokens are left out, and each ends a text.

    `source` is a path, several paths, or an iterable of strings, each a separate text. A path is a file (plain or
    compressed), a folder or a glob pattern. `max_bytes` stops after that many bytes of text.
    `on_progress(done, total)` is called with bytes (total None if it is not known). The counts do not depend on
    `num_workers` or `block`, unless pieces had to be dropped or a text had no place to be cut; a warning says so.
    """
    if max_bytes is not None and max_bytes < 1:
        raise ValueError(f"max_bytes is {max_bytes}: give 1 or more, or None for everything")
    special_tokens = tuple(special_tokens)
    files = _as_files(source)
    if files is None:
        jobs, size = _with_size(_text_jobs(_limited(source, max_bytes), special_tokens, block))
        total = size
    else:
        sizes = [os.path.getsize(file.path) for file in files]
        total = None if any(map(_is_compressed, files)) else min(sum(sizes), max_bytes or sys.maxsize)
        size = min(sum(sizes) * (1 if total else COMPRESSION), max_bytes or sys.maxsize)
        jobs = _file_jobs(files, special_tokens, block, max_bytes)
    workers = sensible_workers(num_workers, size)
    counted, done = PieceCounts(), 0
    for length, counts in ordered_map(_count, (pattern, special_tokens), jobs, workers):
        counted.merge(counts)
        done += length
        on_progress(done, total)
    if counted.dropped:
        logger.warning(
            "%d rare pieces were dropped to bound the memory: counts are not exact", counted.dropped
        )
    return counted.pretokens(pattern)


def _as_files(source: Source) -> list[TextFile] | None:
    """Return the files that `source` names, or None if it holds the texts themselves."""
    if isinstance(source, (str, os.PathLike)):
        return _files(Path(source))
    if isinstance(source, Sequence) and source and all(isinstance(item, os.PathLike) for item in source):
        return [file for path in source for file in _files(Path(path))]
    return None


def _files(path: Path) -> list[TextFile]:
    """Return the files of a path: itself, what it matches, or what is in it, sorted by name."""
    if path.is_dir():
        found = [
            str(file) for file in sorted(path.rglob("*")) if file.is_file() and not _is_hidden(file, path)
        ]
        problem = "holds no file"
    elif path.exists() or not glob.has_magic(str(path)):
        found, problem = [str(path)] if path.is_file() else [], "is not a file"
    else:
        found, problem = matching_files(str(path)), "matches no file"
    if not found:
        raise FileNotFoundError(
            f"{path} {problem}: give text files, folders or globs, or an iterable of strings"
        )
    return [file for name in found for file in text_files(name)]


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _is_compressed(file: TextFile) -> bool:
    with open(file.path, "rb") as opened:
        return opened.read(6).startswith(tuple(MAGIC))


def stream_text(name: str, stream: IO[bytes]) -> Iterator[str]:
    """Yield the text of a stream as it is read, without a byte order mark.

    A ValueError names the place of bytes that are not UTF-8.
    """
    decoder, position = codecs.getincrementaldecoder("utf-8")(), 0
    while data := stream.read(BLOCK):
        if not position:
            check_start(name, data)
            position = _text_start(data)
            data = data[position:]
        yield _decoded(name, decoder, data, position, False)
        position += len(data)
    yield _decoded(name, decoder, b"", position, True)


def _text_start(data: bytes) -> int:
    """Return the place of the first byte that is text: after a byte order mark."""
    return len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0


def _decoded(name: str, decoder: codecs.IncrementalDecoder, data: bytes, start: int, final: bool) -> str:
    """Decode the bytes that begin at byte `start` of a text."""
    held = len(decoder.getstate()[0])
    try:
        return decoder.decode(data, final)
    except UnicodeDecodeError as error:
        place = start - held + error.start
        raise ValueError(not_utf8(name, f"{error.reason} at byte {place:,}")) from error


def _file_jobs(
    files: Iterable[TextFile], special_tokens: Sequence[str], block: int, max_bytes: int | None
) -> Iterator[FileBlock | list[str]]:
    room = sys.maxsize if max_bytes is None else max_bytes
    for file in files:
        if room <= 0:
            return
        with file.open() as stream:  # which refuses what does not begin like text
            if _is_compressed(file):
                texts = _limited(stream_text(file.name, stream), room)
                for text in blocks(texts, special_tokens, block, longest=block):
                    room -= len(text.encode())
                    yield [text]
                continue
        size = os.path.getsize(file.path)
        yield from _blocks_of_file(file.path, min(size, room), room >= size, special_tokens, block)
        room -= size


def _blocks_of_file(
    path: str, size: int, whole: bool, special_tokens: Sequence[str], block: int
) -> Iterator[FileBlock]:
    """Cut the first `size` bytes of a file, which are the whole file or not, into blocks."""
    with open(path, "rb") as file:
        start = _text_start(file.read(len(codecs.BOM_UTF8)))
        while start < size:
            end = start + block
            end = _file_cut(file, start, end, special_tokens) if end < size else size
            yield FileBlock(path, start, end, whole or end < size)
            start = end


def _file_cut(file: IO[bytes], start: int, end: int, special_tokens: Sequence[str]) -> int:
    """Return where to cut the bytes from `start` to about `end`."""
    width = 1 << 14
    while True:
        width = min(width * 4, end - start)
        file.seek(end - width)
        # Any bytes survive the way to text and back. The last character may be half, so it is not used.
        text = file.read(width).decode("utf-8", "surrogateescape")[:-3]
        cut = last_cut(text, special_tokens)
        if cut > 3 or width == end - start:  # the first three may be the rest of a character
            break
    if cut <= 3:
        cut = forced_cut(text, special_tokens)
        logger.warning(
            "%s: no place to cut in bytes %d to %d: they are cut where they end", file.name, start, end
        )
    return end - width + len(text[:cut].encode("utf-8", "surrogateescape"))


def _limited(texts: Iterable[str], max_bytes: int | None) -> Iterator[str]:
    """Yield the texts up to `max_bytes` bytes of UTF-8; the last one is cut."""
    room = max_bytes
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(
                f"the corpus holds {type(text).__name__}, not str: give texts, or paths as pathlib.Path"
            )
        if room is not None:
            text = text.encode("utf-8", "replace")[:room].decode("utf-8", "ignore")
            room -= len(text.encode())
            if not text:
                return
        yield text


def _text_jobs(texts: Iterable[str], special_tokens: Sequence[str], block: int) -> Iterator[list[str]]:
    """Yield lists of texts of about `block` characters together; a longer text is cut."""
    job: list[str] = []
    length = 0
    for text in texts:
        parts = [text] if len(text) <= block else blocks([text], special_tokens, block, longest=block)
        for part in parts:
            job.append(part)
            length += len(part)
            if length >= block:
                yield job
                job, length = [], 0
    if job:
        yield job


def _with_size(jobs: Iterator[list[str]]) -> tuple[Iterator[list[str]], int | None]:
    """Return the jobs again, and their size in characters if it is too small for workers, else None."""
    ahead, size = [], 0
    for job in jobs:
        ahead.append(job)
        size += sum(map(len, job))
        if size >= 2 * WORTH_A_WORKER:
            return itertools.chain(ahead, jobs), None
    return iter(ahead), size


def _count(settings: tuple[Pattern, Sequence[str]], job: FileBlock | list[str]) -> tuple[int, PieceCounts]:
    """Count one block; return its length (bytes of a file, characters of strings) and its pieces."""
    pattern, special_tokens = settings
    counts = PieceCounts()
    if isinstance(job, FileBlock):
        texts, length = [job.read()], job.end - job.start
    else:
        texts, length = map(repair_surrogates, job), sum(map(len, job))
    for text in texts:
        for part in blocks([text], special_tokens, SLICE) if pattern.name else [text]:
            for ordinary in split_special(part, special_tokens)[::2]:
                counts.add_text(ordinary, pattern)
    return length, counts
