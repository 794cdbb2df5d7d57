"""Where documents come from: the built-in corpus, the Hugging Face hub, or files.

    stories                               the built-in corpus
    tinystories, tinystories-v2           roneneldan/TinyStories; v2 is the text by GPT-4
    hf:NAME[:CONFIG][:SPLIT][#COLUMN]     any dataset of the hub
    text:GLOB                             text files, also .gz .bz2 .xz .zip .zst; see data/splitting.py
    jsonl:GLOB#FIELD  parquet:GLOB#COLUMN  csv:GLOB#COLUMN    tables; see data/tables.py

Files are streamed. Datasets of the hub are read by the `datasets` library, imported when it is needed, from its cache
on this machine.
"""

import contextlib
import dataclasses
import glob
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from bpe import END_OF_TEXT
from common.textfiles import TextFile, matching_files, text_files
from data import hub
from data.splitting import Segment, SeparatorCount, Splitter, choose
from data.stories import corpus
from data.tables import Warnings, table_segments

TABLES = ("jsonl", "parquet", "csv")
FORMS = (
    "stories, tinystories, tinystories-v2, hf:NAME, text:GLOB, jsonl:GLOB#FIELD, parquet:GLOB#COLUMN "
    "or csv:GLOB#COLUMN"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """The options that say how sources are read."""

    split_documents: Literal["auto", "separator", "line", "break", "whole"] = "auto"
    """Where documents end in text files: at --separator, at every line break, at single line breaks (blank lines
    separate paragraphs), at the end of the file; auto decides for each file by its first megabyte."""
    separator: str = END_OF_TEXT
    """What separates two documents in a text file; another one than <|endoftext|> implies separator."""
    stories_bytes: int = 10_000_000
    """How much of the built-in corpus to make."""
    seed: int = 0
    """Seed of the built-in corpus."""
    local_files_only: bool = False
    """Use no network, as with HF_HUB_OFFLINE=1: datasets of the hub come from the cache."""

    def __post_init__(self) -> None:
        if self.stories_bytes < 1:
            raise ValueError(f"--stories-bytes must be at least 1, not {self.stories_bytes}")
        if self.separator != END_OF_TEXT and self.split_documents not in ("auto", "separator"):
            raise ValueError(
                f"--separator has no effect with --split-documents {self.split_documents}: leave one of them out"
            )


@dataclasses.dataclass(frozen=True)
class Source:
    """A corpus: `documents()` starts from the beginning at each call; `num_bytes` is its size, None if unknown.

    `fingerprint` changes when the content does: names, sizes and times of files. `warnings()` says what was odd in
    the documents read since the last call of `documents`.
    """

    spec: str
    documents: Callable[[], Iterator[Segment]]
    num_bytes: int | None = None
    fingerprint: tuple = ()
    notice: str = ""
    own_validation: Callable[[], "Source"] | None = None
    warnings: Callable[[], list[str]] = list
    pattern: str = ""  # of the files


def open_source(spec: str, reading: Reading) -> Source:
    """Return the source that `spec` names; ValueError for an unknown one, FileNotFoundError for missing files."""
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
        return _text(spec, rest, reading)
    if kind in TABLES and rest:
        pattern, _, column = rest.partition("#")
        return _table(spec, kind, pattern, column or None)
    raise ValueError(f"unknown source {spec!r}: use {FORMS}")


def mix(sources: Iterable[Source], weights: Iterable[float]) -> Iterator[Segment]:
    """Yield documents of all sources, their bytes in the ratio of `weights`; end when one source does.

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
    """Return the files that match, sorted by name, so that the order is the same everywhere."""
    found = matching_files(pattern)
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
    spec: str, pattern: str, paths: list[str], documents: Callable[[Warnings], Iterator[Segment]]
) -> Source:
    stats = [(path, os.stat(path)) for path in paths]
    warnings = Warnings()

    def from_the_beginning() -> Iterator[Segment]:
        warnings.clear()
        return documents(warnings)

    return Source(
        spec,
        from_the_beginning,
        num_bytes=sum(stat.st_size for _, stat in stats),
        fingerprint=tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats),
        warnings=warnings.lines,
        pattern=pattern,
    )


def _text(spec: str, pattern: str, reading: Reading) -> Source:
    paths = _files(spec, pattern)
    files = [file for path in paths for file in text_files(path)]
    if not files:
        raise ValueError(f"{paths[0]} is an archive without members: leave it out of --source {spec}")
    mode = reading.split_documents
    if mode == "auto" and reading.separator != END_OF_TEXT:
        mode = "separator"
    modes = [choose(_start(file), END_OF_TEXT) if mode == "auto" else mode for file in files]
    splitters = {each: Splitter(each, reading.separator) for each in modes}

    def documents(warnings: Warnings) -> Iterator[Segment]:
        found = 0
        for file, each in zip(files, modes, strict=True):
            count = SeparatorCount(reading.separator)
            yield from splitters[each].documents(count.of(_blocks(file)))
            found += count.found
            if mode == "auto" and each != "separator" and count.found:
                warnings.add(
                    f"holds {END_OF_TEXT} {count.found:,} times as text, but not in its first megabyte, "
                    f"by which auto chose {each}: give --split-documents separator",
                    file.name,
                )
        if mode == "separator" and not found:
            warnings.add(f"never holds the separator {reading.separator!r}: each file is one document", spec)

    source = _of_files(spec, pattern, paths, documents)
    return dataclasses.replace(source, notice=_chosen(spec, files, modes)) if mode == "auto" else source


def _chosen(spec: str, files: list[TextFile], modes: list[str]) -> str:
    """Return what auto chose, with the files of all modes but the most frequent one."""
    (usual, _), *others = Counter(modes).most_common()
    parts = [usual]
    for mode, count in others:
        names = [file.name for file, each in zip(files, modes, strict=True) if each == mode]
        parts.append(f"{mode} for {', '.join(names[:3])}{f' and {count - 3:,} more' if count > 3 else ''}")
    return f"{spec}: --split-documents {', '.join(parts)} (chosen from the first megabyte of each file)"


def _start(file: TextFile) -> bytes:
    """Return the first megabyte of a text."""
    with contextlib.closing(file.blocks()) as blocks:
        return next(blocks, "").encode()


def _blocks(file: TextFile) -> Iterator[bytes]:
    return (block.encode() for block in file.blocks())


def _table(spec: str, kind: str, pattern: str, column: str | None) -> Source:
    paths = _files(spec, pattern)

    def documents(warnings: Warnings) -> Iterator[Segment]:
        each = (table_segments(kind, path, column, warnings) for path in paths)
        return itertools.chain.from_iterable(each)

    return _of_files(spec, pattern, paths, documents)


def _hub(spec: str, name: hub.Name, reading: Reading) -> Source:
    def documents() -> Iterator[Segment]:
        return hub.segments(spec, name, reading.local_files_only)

    def validation() -> Source:
        split = hub.validation_split(name, reading.local_files_only)
        return _hub(f"{spec} ({split})", dataclasses.replace(name, split=split), reading)

    return Source(spec, documents, None, dataclasses.astuple(name), "", validation)


def _tinystories_v2(spec: str, split: str, reading: Reading) -> Source:
    path = hub.download("roneneldan/TinyStories", f"TinyStoriesV2-GPT4-{split}.txt", reading.local_files_only)
    marked = dataclasses.replace(reading, separator=END_OF_TEXT, split_documents="separator")
    return dataclasses.replace(
        _text(spec, glob.escape(path), marked),
        own_validation=lambda: _tinystories_v2(f"{spec} (valid)", "valid", reading),
    )
