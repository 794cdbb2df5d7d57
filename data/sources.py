"""Where documents come from: the built-in corpus, the Hugging Face hub, or files.

    stories                               the built-in corpus
    tinystories, tinystories-v2           roneneldan/TinyStories; v2 is the text by GPT-4
    hf:NAME[:CONFIG][:SPLIT][#COLUMN]     any dataset of the hub
    text:GLOB                             text files (.gz and the like too); see data/splitting.py
    jsonl:GLOB#FIELD  parquet:GLOB#COLUMN  csv:GLOB#COLUMN

Everything but the built-in corpus is read by the `datasets` library, imported when it is needed: files as a
stream, datasets of the hub from its cache on this machine, which is filled once.
"""

import dataclasses
import glob
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from bpe import END_OF_TEXT
from data import hub
from data.splitting import Segment, Splitter, choose, split_long
from data.stories import corpus

BLOCK = 1 << 20  # bytes of a file that are read at a time
ROWS = 1000  # rows of a table that are read at a time
FILE_KINDS = {
    "jsonl": "json",
    "parquet": "parquet",
    "csv": "csv",
}  # ours -> the name that datasets has for it
FORMS = (
    "stories, tinystories, tinystories-v2, hf:NAME, text:GLOB, jsonl:GLOB#FIELD, parquet:GLOB#COLUMN "
    "or csv:GLOB#COLUMN"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """The options that say how sources are read."""

    split_documents: Literal["auto", "separator", "line", "break", "whole"] = "auto"
    """Where documents end in text files: at --separator, at every line break, at single line breaks (blank lines
    separate paragraphs), at the end of the file, or whichever fits the first megabyte."""
    separator: str = END_OF_TEXT
    """What separates two documents in a text file."""
    stories_bytes: int = 10_000_000
    """How much of the built-in corpus to make."""
    seed: int = 0
    """Seed of the built-in corpus."""
    local_files_only: bool = False
    """Use no network, as with HF_HUB_OFFLINE=1: datasets of the hub come from the cache."""

    def __post_init__(self) -> None:
        if self.stories_bytes < 1:
            raise ValueError(f"--stories-bytes must be at least 1, not {self.stories_bytes}")


@dataclasses.dataclass(frozen=True)
class Source:
    """A corpus: `documents()` starts from the beginning at each call; `num_bytes` is its size, None if unknown.

    `fingerprint` changes when the content does: names, sizes and times of files.
    """

    spec: str
    documents: Callable[[], Iterator[Segment]]
    num_bytes: int | None = None
    fingerprint: tuple = ()
    notice: str = ""
    own_validation: Callable[[], "Source"] | None = None


def open_source(spec: str, reading: Reading) -> Source:
    """The source that `spec` names; ValueError for none such, FileNotFoundError when files are missing."""
    kind, _, rest = spec.partition(":")
    if spec == "stories":
        return _built_in(reading)
    if spec == "tinystories":
        return _hub(spec, hub.Name("roneneldan/TinyStories", None, "train", "text"), reading)
    if spec == "tinystories-v2":
        return _tinystories_v2(spec, "train", reading)
    if kind == "hf" and rest:
        return _hub(spec, hub.parse(rest), reading)
    if kind == "text" and rest:
        return _text(spec, _files(spec, rest), reading)
    if kind in FILE_KINDS and rest:
        pattern, _, column = rest.partition("#")
        return _table(spec, kind, _files(spec, pattern), column or None)
    raise ValueError(f"unknown source {spec!r}: use {FORMS}")


def mix(sources: Iterable[Source], weights: Iterable[float]) -> Iterator[Segment]:
    """Documents of all sources, their bytes in the ratio of `weights`; ends when one source does.

    The next document always comes from the source that is furthest behind its share, so that the mixture is
    the same everywhere and even throughout.
    """
    streams = [source.documents() for source in sources]
    weights = list(weights)
    given = [0.0] * len(streams)  # bytes over weight
    while True:
        behind = given.index(min(given))
        segment = next(streams[behind], None)
        while segment is not None:
            given[behind] += max(len(segment.text), 1) / weights[behind]
            yield segment
            if segment.ends:
                break
            segment = next(streams[behind])
        else:
            return


def _built_in(reading: Reading) -> Source:
    def documents() -> Iterator[Segment]:
        return (Segment(text.encode()) for text in corpus(reading.stories_bytes, reading.seed))

    return Source("stories", documents, reading.stories_bytes)


def _files(spec: str, pattern: str) -> list[str]:
    """The files that match, sorted by name, so that the order is the same everywhere."""
    found = sorted(path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path))
    if not found:
        what = "is a folder" if os.path.isdir(pattern) else "matches no file"
        raise FileNotFoundError(
            f"{pattern} {what}: check the path in --source {spec} (** matches all folders below)"
        )
    for path in found:
        if not os.path.getsize(path):
            raise ValueError(f"{path} is empty: remove it or leave it out of --source {spec}")
    return found


def _of_files(
    spec: str, paths: list[str], documents: Callable[[], Iterator[Segment]], notice: str = ""
) -> Source:
    stats = [(path, os.stat(path)) for path in paths]
    fingerprint = tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats)
    return Source(spec, documents, sum(stat.st_size for _, stat in stats), fingerprint, notice)


def _text(spec: str, paths: list[str], reading: Reading) -> Source:
    mode, notice = reading.split_documents, ""
    if mode == "auto":
        mode = choose(next(_blocks(paths[0]), b""), reading.separator)
        notice = f"{spec}: --split-documents {mode} (chosen from the first megabyte)"
    splitter = Splitter(mode, reading.separator)

    def documents() -> Iterator[Segment]:
        return itertools.chain.from_iterable(splitter.documents(_blocks(path)) for path in paths)

    return _of_files(spec, paths, documents, notice)


def _blocks(path: str) -> Iterator[bytes]:
    """A text file as UTF-8 bytes, about a megabyte at a time, each block ending at a line break."""
    loaded = hub.load("text", data_files=[path], streaming=True, keep_linebreaks=True, chunksize=BLOCK)
    tables = loaded.with_format("arrow")
    try:
        first = next(tables.iter(batch_size=100), None)  # 100 lines tell how many make up a block
        lines = max(1, int(100 * BLOCK / max(first.nbytes, 1))) if first else 1
        for table in tables.iter(batch_size=min(lines, 10_000)):
            yield b"".join(map(hub.joined_bytes, table.column(0).chunks))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 ({error.reason}): convert it, for example with iconv"
        ) from error


def _table(spec: str, kind: str, paths: list[str], column: str | None) -> Source:
    def documents() -> Iterator[Segment]:
        return itertools.chain.from_iterable(_rows_of_file(kind, path, column) for path in paths)

    return _of_files(spec, paths, documents)


def _rows_of_file(kind: str, path: str, column: str | None) -> Iterator[Segment]:
    extra = {"keep_default_na": False} if kind == "csv" else {}  # the words NA and null are words
    try:
        loaded = hub.load(FILE_KINDS[kind], data_files=[path], streaming=True, **extra)
        yield from _rows(f"{kind}:{path}", loaded, column)
    except hub.ColumnError:
        raise
    except (ValueError, hub.library().exceptions.DatasetsError) as error:
        raise ValueError(f"{path} cannot be read as {kind}: {error}") from error


def _rows(where: str, loaded: Iterable, column: str | None) -> Iterator[Segment]:
    """The texts of one column; a missing value is an empty document, to be counted as such."""
    for table in loaded.with_format("arrow").iter(batch_size=ROWS):
        for text in hub.text_column(where, table, column):
            yield from split_long(text or b"")


def _hub(spec: str, name: hub.Name, reading: Reading) -> Source:
    def documents() -> Iterator[Segment]:
        return _rows(spec, hub.load_name(name, reading.local_files_only), name.column)

    def validation() -> Source:
        split = hub.validation_split(name, reading.local_files_only)
        return _hub(f"{spec} ({split})", dataclasses.replace(name, split=split), reading)

    return Source(spec, documents, None, dataclasses.astuple(name), "", validation)


def _tinystories_v2(spec: str, split: str, reading: Reading) -> Source:
    path = hub.download("roneneldan/TinyStories", f"TinyStoriesV2-GPT4-{split}.txt", reading.local_files_only)
    marked = dataclasses.replace(reading, separator=END_OF_TEXT, split_documents="separator")
    return dataclasses.replace(
        _text(spec, [path], marked),
        own_validation=lambda: _tinystories_v2(f"{spec} (valid)", "valid", reading),
    )
