"""Documents to token files: read, clean, encode in several processes, write in order.

The output does not depend on the number of workers, on the size of a part or on interruptions.
"""

import collections
import contextlib
import dataclasses
import itertools
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bpe import END_OF_TEXT, Tokenizer, train
from common.files import write_json
from common.textfiles import glob_matches
from common.workers import sensible_workers
from data.clean import SeenHashes
from data.corpus import Corpus, Prepare
from data.encode import Encoded, Encoder, encoded, text_key
from data.parts import FINISHED, Parts, locked
from data.tokenfile import SPLITS, Meta, TokenFile, read_meta, sha256

__all__ = ["Prepare", "prepare", "read_meta"]

JOURNAL_VERSION = 2  # an unfinished preparation of another version cannot be continued
WORTH_A_WORKER = 8_000_000  # bytes; with less for each, starting processes takes longer than it saves


def prepare(options: Prepare) -> Meta:
    """Make the token files of `options.out`, or finish them, or find them finished; return their meta.json.

    Raises ValueError and OSError that name the cause and the remedy; see docs/data.md.
    """
    corpus = Corpus.open(options)
    _check_out(options.out, corpus)
    recipe = corpus.recipe(options)
    if (finished := _finished(options, recipe)) is not None:
        return finished
    with locked(options.out):
        parts = Parts(options.out, {**recipe, "journal": JOURNAL_VERSION}, options.overwrite)
        if not parts.complete:
            try:
                _make(options, corpus, recipe, parts)
            except Exception:
                parts.discard_unless_begun()
                raise
        parts.finish()
    return read_meta(options.out)


def _check_out(out: Path, corpus: Corpus) -> None:
    """Raise ValueError if a source would read the finished files."""
    for source, name in itertools.product(corpus.every_source, FINISHED):
        if source.pattern and glob_matches(source.pattern, out / name):
            raise ValueError(
                f"--out {out} is inside {source.spec}, which would read {out / name} as a document: "
                f"choose a folder elsewhere"
            )


def _make(options: Prepare, corpus: Corpus, recipe: dict[str, Any], parts: Parts) -> None:
    """Make all files, in the folder of the unfinished preparation."""
    tokenizer = _tokenizer(options, corpus, parts.folder / "tokenizer.json")
    with parts.growing():
        totals = _write(options, corpus, parts)
    meta = _meta(tokenizer, recipe, totals, parts.folder)
    write_json(parts.folder / "meta.json", dataclasses.asdict(meta))


def _finished(options: Prepare, recipe: dict[str, Any]) -> Meta | None:
    """Return the meta of finished files if they are those asked for; ValueError if they are others."""
    if options.overwrite or not (options.out / "meta.json").exists():
        return None
    meta = read_meta(options.out)
    if meta.recipe != recipe:
        raise ValueError(
            f"{options.out} already holds another corpus ({', '.join(meta.source)}) or one made with other "
            f"options: choose another folder, or replace this one with python -m data prepare --overwrite"
        )
    for split in SPLITS:
        TokenFile.open(options.out, split)
    shutil.rmtree(options.out / ".prepare", ignore_errors=True)  # left if the very last step was interrupted
    return meta


def _tokenizer(options: Prepare, corpus: Corpus, path: Path) -> Tokenizer:
    """Return the tokenizer at `path`, which is first trained or copied there if it is missing."""
    if path.exists():
        return Tokenizer.load(path)
    if options.tokenizer is not None:
        tokenizer = Tokenizer.gpt2() if options.tokenizer == "gpt2" else Tokenizer.load(options.tokenizer)
        if tokenizer.end_of_text is None:
            raise ValueError(
                f"{options.tokenizer} has no special token that closes documents: choose or add one with "
                "python -m bpe add --end-of-text"
            )
    else:
        special = [END_OF_TEXT, *(f"<|{name}|>" for name in options.special_tokens)]
        tokenizer = train(_training_texts(options, corpus), options.vocab_size, special_tokens=special)
    tokenizer.save(path)
    return tokenizer


def _training_texts(options: Prepare, corpus: Corpus) -> Iterator[str]:
    """Yield the texts that the tokenizer is trained on: as they will be encoded, without validation documents."""
    reader, left = Encoder(None, **options.encoder_settings), options.tokenizer_bytes
    for segment in corpus.train_segments():
        text, reason, _ = reader.read(segment)
        if reason or corpus.is_validation(np.uint64(text_key(segment, text))):
            continue
        yield text.decode()
        left -= len(segment.text)
        if left <= 0:
            return
    if left == options.tokenizer_bytes:
        raise ValueError(
            f"{', '.join(options.source)} has no document to learn from: every one is empty, left out or for validation"
        )


def _write(options: Prepare, corpus: Corpus, parts: Parts) -> "_Totals":
    """Encode what no full part holds yet; return the totals."""
    totals = _Totals(**(parts.state or {}))
    seen = SeenHashes(np.fromfile(parts.folder / "hashes.bin", np.uint64))
    rest = itertools.islice(corpus.segments(), totals.segments, None)
    workers = sensible_workers(options.workers, corpus.num_bytes, WORTH_A_WORKER)
    committed = totals.bytes_read
    with progress_bar(corpus.num_bytes, totals.bytes_read) as bar:
        for job in encoded(rest, parts.folder / "tokenizer.json", options.encoder_settings, workers):
            keep = np.ones(len(job.lengths), bool)
            if options.clean:
                keep[job.whole] = new = seen.add(job.hashes[job.whole])
                parts.write("hashes.bin", job.hashes[job.whole][new].tobytes())
            in_val = job.validation | corpus.is_validation(job.keys)
            for split, mine in zip(SPLITS, (keep & ~in_val, keep & in_val), strict=True):
                parts.write(f"{split}.bin", job.ids[np.repeat(mine, job.lengths)].tobytes())
                totals.wrote(split, job, mine)
            totals.read(job, duplicates=int((~keep).sum()))
            bar(totals.bytes_read, sum(totals.documents.values()))
            if totals.bytes_read - committed >= options.part_bytes:
                parts.commit(dataclasses.asdict(totals))
                committed = totals.bytes_read
    for warning in corpus.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    _check_splits(totals, corpus.fraction)
    parts.commit(dataclasses.asdict(totals))
    return totals


@dataclasses.dataclass
class _Totals:
    """Count what was read and written so far; the state that is saved with a part."""

    segments: int = 0
    bytes_read: int = 0
    tokens: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    documents: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    bytes: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    removed: dict[str, int] = dataclasses.field(default_factory=dict)
    changed: dict[str, int] = dataclasses.field(default_factory=dict)

    def read(self, job: Encoded, duplicates: int) -> None:
        """Count a job as read."""
        self.segments += job.segments_read
        self.bytes_read += job.bytes_read
        removed = job.removed + collections.Counter(duplicate=duplicates)
        self.removed = dict(collections.Counter(self.removed) + removed)
        self.changed = dict(collections.Counter(self.changed) + job.changed)

    def wrote(self, split: str, job: Encoded, mine: np.ndarray) -> None:
        """Count the segments of a job with `mine` (S,) bool as written to `split`."""
        self.tokens[split] += int(job.lengths[mine].sum())
        self.documents[split] += int(job.ends[mine].sum())
        self.bytes[split] += int(job.num_bytes[mine].sum())


def _check_splits(totals: _Totals, fraction: float) -> None:
    """Raise ValueError if a split got no document."""
    for split in SPLITS:
        if not totals.tokens[split]:
            read = sum(totals.documents.values())
            raise ValueError(
                f"no document for {split}: {read} documents were kept and a share of {fraction:g} is for "
                f"validation; use more text, another --val-fraction, --split-documents or --val-source"
            )


def _meta(tokenizer: Tokenizer, recipe: dict[str, Any], totals: _Totals, folder: Path) -> Meta:
    """Return the contents of meta.json."""
    return Meta(
        dtype=tokenizer.dtype.name,
        vocab_size=tokenizer.vocab_size,
        tokens=totals.tokens,
        documents=totals.documents,
        bytes=totals.bytes,
        special_tokens=tokenizer.special_tokens,
        document_end=tokenizer.end_of_text,
        tokenizer_sha256=sha256(folder / "tokenizer.json"),
        source=recipe["source"],
        removed=totals.removed,
        changed=totals.changed,
        recipe=recipe,
    )


@contextlib.contextmanager
def progress_bar(num_bytes: int | None, done: int = 0) -> Iterator[Callable[[int, int], None]]:
    """Show progress on a terminal; yield a function to call with the bytes read and the documents kept so far.

    `num_bytes` is the total, None if unknown: then no remaining time is shown. `done` was done before.
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
        if num_bytes is not None:  # the file sizes include separators
            bars.update(bar, completed=num_bytes)
