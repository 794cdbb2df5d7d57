"""Remove what a corpus holds twice: lines, documents, near-duplicates, and what a held-out set holds too.

    each file      ->  hashes of lines, or of documents and their bands        (any process or machine)
    band keys      ->  partitions on disk by their first bits, sorted one by one: equal keys are candidates
    candidates     ->  their true Jaccard similarity, from the texts; union-find joins those that reach it
    each cluster   ->  one document is kept, and each other one only dropped if it is that similar to the one kept

The last step matters if a is like b and b like c, but a is not like c: one document for the whole cluster would lose c.

Memory: 50 bytes a document (hash, length, place, cluster, fate), and `memory_mb` for what is sorted or compared.
"""

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common import files
from data.clean import SeenHashes
from data.splitting import text_hash
from data.web import minhash
from data.web.crawl import find_files, pages
from data.web.extract import Refused, extract
from data.web.records import Fault
from data.web.tally import Tally

KEPT, EXACT, NEAR, HELD_OUT = range(4)
STAGES = {EXACT: "exact duplicate", NEAR: "near duplicate", HELD_OUT: "held-out text"}
ENTRY = np.dtype([("key", "<u8"), ("doc", "<i8")])
# Of up to this many documents with one key every pair is compared; of more, each with the one before it and the first.
ALL_PAIRS = 8
MOST_PERMUTATIONS = 4096  # an error of 0.008; each is a number for every document of a batch
BATCH = 1 << 20  # bytes of text that are read and hashed at a time

Mapper = Callable[
    [Callable[[Any, Any], Any], Any, Iterable[Any]], Iterable[Any]
]  # as common.workers.ordered_map


@dataclasses.dataclass(frozen=True)
class Dedup:
    """What counts as a duplicate, and which copy is kept."""

    lines: Literal["off", "first", "all"] = "off"
    """Lines that occur again anywhere: keep the first one, or drop all of them."""
    exact: bool = True
    """Drop documents whose text occurred before."""
    near: bool = True
    """Drop documents that are similar to one that is kept."""
    similarity: float = 0.8
    """Jaccard similarity of word n-grams from which two documents are near-duplicates."""
    shingle: int = minhash.SHINGLE
    """Words in an n-gram."""
    permutations: int = minhash.PERMUTATIONS
    """Numbers in a signature."""
    recall: float = 0.995
    """Probability with which two documents of just this similarity are found: bands and rows follow from it."""
    keep: Literal["first", "longest"] = "first"
    """Which document of a cluster is kept."""
    held_out: tuple[str, ...] = ()
    """Files whose text must not be trained on (validation, evaluation)."""
    overlap: int = 13
    """Words in a row that a document must share with a held-out text to be dropped (GPT-3 took 13)."""
    memory_mb: int = 512
    """Memory for sorting and comparing."""

    def __post_init__(self) -> None:
        if not 0 < self.similarity <= 1:
            raise ValueError(f"similarity must be above 0 and at most 1, not {self.similarity}")
        for name in ("shingle", "permutations", "overlap", "memory_mb"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.permutations > MOST_PERMUTATIONS:
            raise ValueError(f"permutations must be at most {MOST_PERMUTATIONS:,}, not {self.permutations:,}")
        if not 0 < self.recall < 1:
            raise ValueError(f"recall must be above 0 and below 1, not {self.recall}")
        minhash.bands_for(self.similarity, self.permutations, self.recall)

    @property
    def bands(self) -> tuple[int, int]:
        """Return bands and rows."""
        return minhash.bands_for(self.similarity, self.permutations, self.recall)


@dataclasses.dataclass(frozen=True)
class Prints:
    """What one file says about its D documents; all arrays are (D,), `keys` is (D, bands)."""

    hashes: np.ndarray
    lengths: np.ndarray
    offsets: np.ndarray
    keys: np.ndarray
    held_out: np.ndarray


def rows_of(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the place of each line of a JSON-lines file and its object; ValueError names a line without a text."""
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                row["text"].encode()
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(f"{path}: line {number:,} holds no object with a text in 'text'") from error
            yield offset, row
            offset += len(line)


def batches(path: str | Path) -> Iterator[tuple[list[int], list[str]]]:
    """Yield places and texts of a file, about a megabyte at a time."""
    offsets, texts, size = [], [], 0
    for offset, row in rows_of(path):
        offsets.append(offset)
        texts.append(row["text"])
        size += len(row["text"])
        if size >= BATCH:
            yield offsets, texts
            offsets, texts, size = [], [], 0
    if texts:
        yield offsets, texts


def fingerprint(shared: tuple[Dedup, np.ndarray], path: str | Path) -> Prints:
    """Return what is known of each document of a file; `shared` holds settings and the hashes of held-out n-grams."""
    settings, held_out = shared
    bands, rows = settings.bands
    parts: list[tuple[np.ndarray, ...]] = [
        (
            np.zeros(0, np.uint64),
            *np.zeros((2, 0), np.int64),
            np.zeros((0, bands), np.uint64),
            np.zeros(0, bool),
        )
    ]
    for offsets, texts in batches(path):
        encoded = [text.encode() for text in texts]
        keys = np.zeros((len(texts), bands), np.uint64)
        if settings.near:
            signature = minhash.signatures(*minhash.shingles(texts, settings.shingle), settings.permutations)
            keys = minhash.band_keys(signature, bands, rows)
        hashes = np.array([text_hash(text) for text in encoded], np.uint64)
        contaminated = shares_ngram(texts, held_out, settings.overlap)
        parts.append((hashes, np.array([*map(len, encoded)]), np.array(offsets), keys, contaminated))
    return Prints(*map(np.concatenate, zip(*parts, strict=True)))


def shares_ngram(texts: Sequence[str], held_out: np.ndarray, n: int) -> np.ndarray:
    """Return (texts,) bool: True for a text with an n-gram whose hash is in the sorted array `held_out`."""
    if not len(held_out):
        return np.zeros(len(texts), bool)
    hashes, starts = minhash.shingles(texts, n)
    place = np.minimum(np.searchsorted(held_out, hashes), len(held_out) - 1)
    text_of = np.repeat(np.arange(len(texts)), np.diff(starts))
    return np.bincount(text_of[held_out[place] == hashes], minlength=len(texts)) > 0


def held_out_ngrams(patterns: tuple[str, ...], n: int) -> np.ndarray:
    """Return the sorted hashes of all n-grams in the texts of these files."""
    found = [np.zeros(0, np.uint64)]
    for path in find_files(patterns) if patterns else ():
        for page in pages(path):
            if isinstance(page, Fault):
                raise ValueError(f"held-out text {path} cannot be read: {page.reason}")
            try:
                text = extract(page).text
            except Refused as refused:
                raise ValueError(f"held-out text {path} cannot be read: {refused}") from refused
            found.append(np.unique(minhash.shingles([text], n)[0]))
    return np.unique(np.concatenate(found))


class Corpus:
    """The documents of several files by their number, and what is known of each."""

    def __init__(self, paths: Sequence[Path], settings: Dedup) -> None:
        self.paths, self.settings = list(paths), settings
        self.first = np.zeros(1, np.int64)  # number of the first document of each file, and of all documents
        self.hashes = self.lengths = self.offsets = np.zeros(0, np.int64)
        self._files: dict[int, Any] = {}

    def text(self, number: int) -> str:
        """Read the text of a document."""
        which = int(np.searchsorted(self.first, number, side="right")) - 1
        if which not in self._files:
            if len(self._files) >= 64:
                self._files.pop(next(iter(self._files))).close()
            self._files[which] = open(self.paths[which], "rb")  # noqa: SIM115 (closed by close)
        file = self._files[which]
        file.seek(self.offsets[number])
        return json.loads(file.readline())["text"]

    def shingles(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the distinct shingles of these documents, in the layout of minhash.shingles."""
        hashes, starts = minhash.shingles([self.text(number) for number in numbers], self.settings.shingle)
        return minhash.distinct(hashes, starts)

    def similarities(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return (P,) the true Jaccard similarity of each pair of documents (P,) and (P,)."""
        numbers, inverse = np.unique(np.concatenate([left, right]), return_inverse=True)
        hashes, starts = self.shingles(numbers)
        sizes = np.diff(starts)
        # A number for each shingle of each side of each pair: the pair above, 40 bits of the hash below. Equal
        # neighbours after sorting are common shingles.
        sides = []
        for side in np.split(inverse, 2):
            pair = np.repeat(np.arange(len(side)), sizes[side])
            within = np.arange(len(pair)) - np.repeat(np.cumsum(sizes[side]) - sizes[side], sizes[side])
            own = hashes[np.repeat(starts[side], sizes[side]) + within]
            sides.append((pair.astype(np.uint64) << np.uint64(40)) | (own >> np.uint64(24)))
        both = np.sort(np.concatenate(sides))
        pair = (both[1:][both[1:] == both[:-1]] >> np.uint64(40)).astype(np.int64)
        common = np.bincount(pair, minlength=len(left))
        union = sizes[inverse[: len(left)]] + sizes[inverse[len(left) :]] - common
        return np.where(union > 0, common / np.maximum(union, 1), 1.0)

    def groups(self, sizes: np.ndarray) -> Iterator[slice]:
        """Yield slices of consecutive items whose texts together fit the memory; `sizes` are their bytes."""
        # A byte of text becomes up to 8 bytes of hashes, and sorting copies those.
        budget = self.settings.memory_mb * 1_000_000 // 16
        group = np.cumsum(np.minimum(sizes, budget)) // budget
        edges = [0, *(np.flatnonzero(np.diff(group)) + 1), len(sizes)]
        for start in range(len(edges) - 1):
            for cut in range(edges[start], edges[start + 1], 1 << 20):
                yield slice(cut, min(cut + (1 << 20), edges[start + 1]))

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()


def roots_of(parent: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the root of each number's cluster."""
    while not np.array_equal(above := parent[numbers], numbers):
        numbers = above
    return numbers


def join(parent: np.ndarray, left: int, right: int) -> None:
    """Make two clusters one; the smaller number becomes the root. Paths are halved on the way."""
    ends = []
    for number in (left, right):
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        ends.append(number)
    parent[max(ends)] = min(ends)


def candidates(entries: np.ndarray) -> np.ndarray:
    """Return (P, 2) the pairs of documents with a common key, smaller number first, each pair once.

    >>> candidates(np.array([(7, 1), (9, 2), (7, 5)], ENTRY)).tolist()
    [[1, 5]]
    """
    order = np.argsort(entries["key"], kind="stable")
    keys, docs = entries["key"][order], entries["doc"][order]
    starts = np.flatnonzero(np.concatenate([np.ones(min(len(keys), 1), bool), keys[1:] != keys[:-1]]))
    sizes = np.diff(starts, append=len(keys))
    docs = docs[np.repeat(sizes > 1, sizes)]  # what is left: the runs of two and more, one after another
    sizes = sizes[sizes > 1]
    start = np.repeat(np.cumsum(sizes) - sizes, sizes)  # of each entry's run
    size = np.repeat(sizes, sizes)
    place = np.arange(len(docs))
    found = [np.stack([docs[start], docs], 1)[place > start]]  # with the first
    for step in range(1, ALL_PAIRS):
        near = np.flatnonzero((place - start >= step) & ((size <= ALL_PAIRS) | (step == 1)))
        found.append(np.stack([docs[near - step], docs[near]], 1))
    pairs = np.concatenate(found)
    number = docs.max(initial=0) + 1
    codes = np.unique(
        pairs.min(1) * number + pairs.max(1)
    )  # below 3 billion documents a pair fits one number
    pairs = np.stack(np.divmod(codes, number), 1)
    return pairs[pairs[:, 0] != pairs[:, 1]]


class Partitions:
    """Band keys on disk, in files by their first bits: each can be sorted in memory, and equal keys are in the same
    one.
    """

    def __init__(self, folder: Path, num_entries: int, memory: int) -> None:
        needed = max(
            1, math.ceil(num_entries * ENTRY.itemsize * 6 / memory)
        )  # sorting takes six times the entries
        self.bits = min(12, (needed - 1).bit_length())
        self.paths = [folder / f"keys-{number:04d}" for number in range(1 << self.bits)]
        for path in self.paths:
            path.touch()

    def add(self, keys: np.ndarray, docs: np.ndarray) -> None:
        """Append (D, b) keys of the documents (D,)."""
        entries = np.empty(keys.size, ENTRY)
        entries["key"], entries["doc"] = keys.reshape(-1), np.repeat(docs, keys.shape[1])
        part = entries["key"] >> np.uint64(64 - self.bits) if self.bits else np.zeros(len(entries), np.uint64)
        order = np.argsort(part, kind="stable")
        cuts = np.searchsorted(part[order], np.arange(1, len(self.paths), dtype=np.uint64))
        for path, own in zip(self.paths, np.split(entries[order], cuts), strict=True):
            if len(own):
                with open(path, "ab") as file:
                    own.tofile(file)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the entries of each partition."""
        for path in self.paths:
            yield np.fromfile(path, ENTRY)


@dataclasses.dataclass(frozen=True)
class Fates:
    """For each document: kept or why not (KEPT, EXACT, NEAR, HELD_OUT), and the document that is kept for it (else
    itself).
    """

    fate: np.ndarray
    kept: np.ndarray
    corpus: Corpus


def find_duplicates(
    paths: Sequence[Path], settings: Dedup, held_out: np.ndarray, mapper: Mapper, folder: Path
) -> Fates:
    """Return what becomes of each document of these files; `folder` takes temporary files."""
    corpus = Corpus(paths, settings)
    parts = _collect(mapper(fingerprint, (settings, held_out), list(paths)), folder)
    corpus.first = np.cumsum([0, *(len(each.hashes) for each, _ in parts)])
    corpus.hashes, corpus.lengths, corpus.offsets, flagged = (
        np.concatenate([getattr(each, name) for each, _ in parts])
        for name in ("hashes", "lengths", "offsets", "held_out")
    )
    fate = np.where(flagged, HELD_OUT, KEPT).astype(np.uint8)
    kept = np.arange(len(fate))
    if settings.exact:
        _find_exact(corpus, fate, kept)
    if settings.near:
        entries = len(fate) * settings.bands[0]
        partitions = Partitions(folder, entries, settings.memory_mb * 1_000_000)
        for start, (_, keys) in zip(corpus.first, parts, strict=False):
            own = start + np.flatnonzero(fate[start : start + len(keys)] == KEPT)
            partitions.add(keys[own - start], own)
        _find_near(corpus, partitions, fate, kept)
    corpus.close()
    return Fates(fate, kept, corpus)


def _collect(prints: Iterable[Prints], folder: Path) -> list[tuple[Prints, np.ndarray]]:
    """Return what each file says, its band keys moved to disk."""
    parts = []
    for number, each in enumerate(prints):
        keys = each.keys
        if len(keys):
            np.save(folder / f"bands-{number}.npy", keys)
            keys = np.load(folder / f"bands-{number}.npy", mmap_mode="r")
        parts.append((dataclasses.replace(each, keys=np.zeros(0)), keys))
    return parts


def _find_exact(corpus: Corpus, fate: np.ndarray, kept: np.ndarray) -> None:
    """Mark all but one of the documents with the same text: the first, which is as long as the others."""
    left = np.flatnonzero(fate == KEPT)
    new = SeenHashes().add(corpus.hashes[left])
    first = left[new][np.argsort(corpus.hashes[left[new]])]
    again = left[~new]
    fate[again] = EXACT
    kept[again] = first[np.searchsorted(corpus.hashes[first], corpus.hashes[again])]


def _find_near(corpus: Corpus, partitions: Iterable[np.ndarray], fate: np.ndarray, kept: np.ndarray) -> None:
    parent = np.arange(len(fate))
    for entries in partitions:
        pairs = candidates(entries)
        for part in corpus.groups(corpus.lengths[pairs].sum(1)):
            some = pairs[part]
            some = some[roots_of(parent, some[:, 0]) != roots_of(parent, some[:, 1])]
            if len(some):
                alike = corpus.similarities(some[:, 0], some[:, 1]) >= corpus.settings.similarity
                for left, right in some[alike].tolist():
                    join(parent, left, right)
    root = roots_of(parent, np.arange(len(parent)))
    _keep_one(corpus, root, fate, kept)


def _keep_one(corpus: Corpus, root: np.ndarray, fate: np.ndarray, kept: np.ndarray) -> None:
    """Keep one document of each cluster; those not like it form a cluster again, until none is left."""
    longest = -corpus.lengths if corpus.settings.keep == "longest" else np.zeros(len(root), np.int64)
    left = np.flatnonzero(np.bincount(root, minlength=len(root))[root] > 1)
    while len(left):
        left = left[np.lexsort((left, longest[left], root[left]))]
        first = np.flatnonzero(np.diff(root[left], prepend=-1))
        keeper = np.repeat(left[first], np.diff(first, append=len(left)))
        others = np.flatnonzero(left != keeper)
        unlike: list[np.ndarray] = []
        for part in corpus.groups(corpus.lengths[left[others]] + corpus.lengths[keeper[others]]):
            own, best = left[others[part]], keeper[others[part]]
            alike = corpus.similarities(best, own) >= corpus.settings.similarity
            fate[own[alike]] = NEAR
            kept[own[alike]] = best[alike]
            unlike.append(own[~alike])
        left = np.concatenate(unlike) if unlike else left[:0]


def line_hashes(shared: None, path: Path) -> tuple[np.ndarray, int]:
    """Return the hashes of all lines of a file that are not blank, and its number of documents."""
    found: list[int] = []
    documents = 0
    for _, row in rows_of(path):
        documents += 1
        found += (text_hash(line.strip().encode()) for line in row["text"].split("\n") if line.strip())
    return np.array(found, np.uint64), documents


def drop_lines(
    paths: Sequence[Path], settings: Dedup, mapper: Mapper, folder: Path, tally: Tally
) -> list[Path]:
    """Write each file again without lines that occur again; a document without lines is dropped. Return the new
    files.
    """
    results, counts = [], []
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        partitions, total = None, 0
        hashed = []
        for number, (hashes, _) in enumerate(mapper(line_hashes, None, list(paths))):
            np.save(Path(aside) / f"{number}.npy", hashes)
            hashed.append(Path(aside) / f"{number}.npy")
            counts.append(len(hashes))
        partitions = Partitions(Path(aside), sum(counts), settings.memory_mb * 1_000_000)
        for path in hashed:
            hashes = np.load(path)
            partitions.add(hashes[:, None], np.arange(total, total + len(hashes)))
            total += len(hashes)
        dropped = np.zeros(total, bool)
        for entries in partitions:
            entries = entries[np.lexsort((entries["doc"], entries["key"]))]
            same = entries["key"][1:] == entries["key"][:-1]
            dropped[entries["doc"][1:][same]] = True
            if settings.lines == "all":
                dropped[entries["doc"][:-1][same]] = True
    start = 0
    for path, count in zip(paths, counts, strict=True):
        results.append(folder / f"lines-{Path(path).name}")
        _write_lines(path, results[-1], dropped[start : start + count], tally)
        start += count
    return results


def _write_lines(path: Path, out: Path, dropped: np.ndarray, tally: Tally) -> None:
    place = 0
    with files.atomic(out) as file:
        for _, row in rows_of(path):
            lines, before = [], row["text"]
            for line in before.split("\n"):
                if line.strip():
                    place += 1
                    if dropped[place - 1]:
                        continue
                lines.append(line)
            row["text"] = "\n".join(lines).strip()
            lost = len(before.encode()) - len(row["text"].encode())
            tally.edited("duplicate lines", lost)
            if row["text"]:
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
            else:
                tally.dropped("duplicate lines", "all of its lines", before, name_of(row))


def name_of(row: dict[str, Any]) -> str:
    """Return by what a reader can find a document again: its URL, else file and record."""
    return str(row.get("url") or f"{row.get('file', '?')} #{row.get('record', 0)}")


def deduplicate(paths: Sequence[Path], out: Path, settings: Dedup, mapper: Mapper, tally: Tally) -> None:
    """Write the documents that are kept of these JSON-lines files to out/NNNNN.jsonl, and count the others in `tally`.

    A file of which nothing is kept is not written.
    """
    held_out = held_out_ngrams(settings.held_out, settings.overlap)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".dedup-") as aside:
        folder = Path(aside)
        if settings.lines != "off":
            tally.enter("duplicate lines")
            paths = drop_lines(paths, settings, mapper, folder, tally)
        fates = find_duplicates(paths, settings, held_out, mapper, folder)
        for stage, wanted in ((EXACT, settings.exact), (HELD_OUT, settings.held_out), (NEAR, settings.near)):
            if wanted:
                tally.enter(STAGES[stage])
        for number, path in enumerate(paths):
            _write_kept(number, path, out / f"{number:05d}.jsonl", fates, tally)
        fates.corpus.close()


def _write_kept(number: int, path: Path, out: Path, fates: Fates, tally: Tally) -> None:
    start = int(fates.corpus.first[number])
    out.unlink(missing_ok=True)
    if not (fates.fate[start : int(fates.corpus.first[number + 1])] == KEPT).any():
        return
    with files.atomic(out) as file, open(path, "rb") as source:
        for document, line in enumerate(source, start):
            fate = int(fates.fate[document])
            if fate == KEPT:
                file.write(line)
                continue
            row = json.loads(line)
            tally.dropped(STAGES[fate], STAGES[fate], row["text"], name_of(row))
