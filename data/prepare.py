"""Documents to token files: read, clean, encode in several processes, write in order.

What is written does not depend on the number of workers, on the size of a part or on interruptions.
"""

import collections
import contextlib
import dataclasses
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bpe import END_OF_TEXT, Tokenizer, train
from common.files import write_json
from data.clean import Seen
from data.corpus import Corpus, Prepare
from data.encode import Encoded, Encoder, encoded, text_key
from data.parts import Parts, locked
from data.tokenfile import SPLITS, Meta, TokenFile, dtype_for, read_meta, sha256

__all__ = ["Prepare", "prepare", "read_meta"]

WORTH_WORKERS = 16_000_000  # bytes; below, starting processes takes longer than it saves


def prepare(options: Prepare) -> Meta:
    """Makes the token files of `options.out`, or finishes them, or finds them there already.

    Raises ValueError and OSError that name the cause and the way out; see docs/data.md.
    """
    corpus = Corpus.open(options)
    recipe = corpus.recipe(options)
    if (finished := _finished(options, recipe)) is not None:
        return finished
    with locked(options.out):
        parts = Parts(options.out, recipe, options.overwrite)
        if not parts.complete:
            try:
                _make(options, corpus, recipe, parts)
            except Exception:
                parts.discard_unless_begun()
                raise
        parts.finish()
    return read_meta(options.out)


def _make(options: Prepare, corpus: Corpus, recipe: dict[str, Any], parts: Parts) -> None:
    """Makes all files, in the folder where they grow."""
    tokenizer = _tokenizer(options, corpus, parts.folder / "tokenizer.json")
    with parts.growing():
        totals = _write(options, corpus, parts)
    meta = _meta(tokenizer, recipe, totals, parts.folder)
    write_json(parts.folder / "meta.json", dataclasses.asdict(meta))


def _finished(options: Prepare, recipe: dict[str, Any]) -> Meta | None:
    """What is finished in the folder already, if it is what is asked for; ValueError if it is something else."""
    if options.overwrite or not (options.out / "meta.json").exists():
        return None
    meta = read_meta(options.out)
    if meta.recipe != recipe:
        raise ValueError(
            f"{options.out} already holds another corpus ({', '.join(meta.source)}) or one made with other "
            f"options: choose another folder, or make this one anew with python -m data prepare --overwrite"
        )
    for split in SPLITS:
        TokenFile.open(options.out, split)
    shutil.rmtree(options.out / ".prepare", ignore_errors=True)  # left where the very last step was cut off
    return meta


def _tokenizer(options: Prepare, corpus: Corpus, path: Path) -> Tokenizer:
    """The tokenizer at `path`, put there if it is not yet: trained, or a copy of the one asked for."""
    if path.exists():
        return Tokenizer.load(path)
    if options.tokenizer is not None:
        tokenizer = Tokenizer.gpt2() if options.tokenizer == "gpt2" else Tokenizer.load(options.tokenizer)
        if END_OF_TEXT not in tokenizer.special_tokens:
            raise ValueError(
                f"{options.tokenizer} has no {END_OF_TEXT}, which closes documents: train another"
            )
    else:
        special = [END_OF_TEXT, *(f"<|{name}|>" for name in options.special_tokens)]
        tokenizer = train(_training_texts(options, corpus), options.vocab_size, special_tokens=special)
    tokenizer.save(path)
    return tokenizer


def _training_texts(options: Prepare, corpus: Corpus) -> Iterator[str]:
    """The documents that the tokenizer learns from: as they will be encoded, none of them for validation."""
    reader, left = Encoder(None, **options.encoder_settings), options.tokenizer_bytes
    for piece in corpus.train_pieces():
        text, reason, _ = reader.read(piece)
        if reason or corpus.is_validation(np.uint64(text_key(piece, text))):
            continue
        yield text.decode()
        left -= len(piece.text)
        if left <= 0:
            return
    if left == options.tokenizer_bytes:
        raise ValueError(
            f"{', '.join(options.source)} has no document to learn from: every one is empty, left out or for validation"
        )


def _write(options: Prepare, corpus: Corpus, parts: Parts) -> "_Totals":
    """Encodes what no full part holds yet; returns the totals."""
    totals = _Totals(**(parts.state or {}))
    seen = Seen(np.fromfile(parts.folder / "hashes.bin", np.uint64))
    rest = itertools.islice(corpus.pieces(), totals.pieces, None)
    workers = options.workers or _sensible_workers(corpus.num_bytes)
    committed = totals.bytes_read
    with progress_bar(corpus.num_bytes, totals.bytes_read) as bar:
        for batch in encoded(rest, parts.folder / "tokenizer.json", options.encoder_settings, workers):
            keep = np.ones(len(batch.lengths), bool)
            if options.clean:
                keep[batch.whole] = new = seen.add(batch.hashes[batch.whole])
                parts.write("hashes.bin", batch.hashes[batch.whole][new].tobytes())
            in_val = batch.validation | corpus.is_validation(batch.keys)
            for split, mine in zip(SPLITS, (keep & ~in_val, keep & in_val), strict=True):
                parts.write(f"{split}.bin", batch.ids[np.repeat(mine, batch.lengths)].tobytes())
                totals.wrote(split, batch, mine)
            totals.read(batch, duplicates=int((~keep).sum()))
            bar(totals.bytes_read, sum(totals.documents.values()))
            if totals.bytes_read - committed >= options.part_bytes:
                parts.commit(dataclasses.asdict(totals))
                committed = totals.bytes_read
    _check_splits(totals, corpus.fraction)
    parts.commit(dataclasses.asdict(totals))
    return totals


@dataclasses.dataclass
class _Totals:
    """What was read and written so far; the state that a part leaves."""

    pieces: int = 0
    bytes_read: int = 0
    tokens: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    documents: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    bytes: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    removed: dict[str, int] = dataclasses.field(default_factory=dict)
    changed: dict[str, int] = dataclasses.field(default_factory=dict)

    def read(self, batch: Encoded, duplicates: int) -> None:
        """Counts a batch as read."""
        self.pieces += batch.pieces_read
        self.bytes_read += batch.bytes_read
        removed = batch.removed + collections.Counter(duplicate=duplicates)
        self.removed = dict(collections.Counter(self.removed) + removed)
        self.changed = dict(collections.Counter(self.changed) + batch.changed)

    def wrote(self, split: str, batch: Encoded, mine: np.ndarray) -> None:
        """Counts the pieces of a batch where `mine` (P,) bool as written to `split`."""
        self.tokens[split] += int(batch.lengths[mine].sum())
        self.documents[split] += int(batch.ends[mine].sum())
        self.bytes[split] += int(batch.num_bytes[mine].sum())


def _sensible_workers(num_bytes: int | None) -> int:
    """One process for each core that this one may use, but none beside it for little text."""
    if num_bytes is not None and num_bytes < WORTH_WORKERS:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_splits(totals: _Totals, fraction: float) -> None:
    """ValueError where a split got no document."""
    for split in SPLITS:
        if not totals.tokens[split]:
            read = sum(totals.documents.values())
            raise ValueError(
                f"no document for {split}: {read} documents were kept and a share of {fraction:g} is for "
                f"validation; use more text, another --val-fraction, --split-documents or --val-source"
            )


def _meta(tokenizer: Tokenizer, recipe: dict[str, Any], totals: _Totals, folder: Path) -> Meta:
    """What meta.json says of the finished files."""
    return Meta(
        dtype=dtype_for(tokenizer.vocab_size).name,
        vocab_size=tokenizer.vocab_size,
        tokens=totals.tokens,
        documents=totals.documents,
        bytes=totals.bytes,
        special_tokens=tokenizer.special_tokens,
        tokenizer_sha256=sha256(folder / "tokenizer.json"),
        source=recipe["source"],
        removed=totals.removed,
        changed=totals.changed,
        recipe=recipe,
    )


@contextlib.contextmanager
def progress_bar(num_bytes: int | None, done: int = 0) -> Iterator[Callable[[int, int], None]]:
    """Gives a function to call with the bytes read and the documents kept so far.

    `num_bytes` is the size of it all, None if unknown: then no time left is shown. `done` was done before.
    """
    from rich import progress

    columns = (
        *("encoding", progress.BarColumn(), progress.DownloadColumn(), progress.TransferSpeedColumn()),
        *(
            "{task.fields[documents]:,} documents",
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
        ),
    )
    with progress.Progress(*columns) as bars:
        bar = bars.add_task("encoding", total=num_bytes, completed=done, documents=0)

        def update(bytes_read: int, documents: int) -> None:
            bars.update(bar, completed=bytes_read, documents=documents)

        yield update
        if num_bytes is not None:  # the size of the files counts their separators too
            bars.update(bar, completed=num_bytes)
