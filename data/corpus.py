"""The options of a preparation, the documents that they name, and which of these are for validation."""

import collections
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bpe.formats import json_path
from common.cluster import Machines
from data.encode import Encoder, text_key
from data.sources import Reading, Source, mix, open_source
from data.splitting import Segment, text_hash
from data.tokenfile import sha256

SMALL = 4_000_000  # bytes; below, a tenth of the text is for validation, else 0.5 % of the documents
RECIPE = (  # the options that decide what is written
    *("source", "weights", "vocab_size", "tokenizer", "tokenizer_bytes", "special_tokens", "val_source"),
    *("clean", "min_chars", "split_documents", "separator", "stories_bytes", "seed"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare(Reading, Machines):
    """Turn a corpus into token files: train.bin, val.bin, meta.json and tokenizer.json.

    After an interruption the same command continues from the last full part.
    """

    out: Path
    """The folder for the token files."""
    source: tuple[str, ...] = ("stories",)
    """stories (built in), tinystories, tinystories-v2, hf:NAME[:CONFIG][:SPLIT][#COLUMN], text:GLOB, jsonl:GLOB#FIELD,
    parquet:GLOB#COLUMN, csv:GLOB#COLUMN; several are read one after another, or mixed with --weights."""
    weights: tuple[float, ...] = ()
    """Mix the sources, one weight each: shares of the text in bytes. The mixture ends when one source does."""
    vocab_size: int | None = None
    """Train a tokenizer with this many tokens, including special tokens."""
    tokenizer: str | None = None
    """Use an existing tokenizer instead: gpt2, or the path of a tokenizer.json or of its folder."""
    tokenizer_bytes: int = 50_000_000
    """How much text the tokenizer is trained on, from the beginning of the corpus."""
    special_tokens: tuple[Literal["bos", "pad", "sep", "unk"], ...] = ()
    """Special tokens to add to <|endoftext|> in a trained tokenizer. With bos, <|bos|> opens each document."""
    val_fraction: float | None = None
    """Fraction of the documents kept for validation, selected by a hash of their text: 0.2 for 80/20. Default 0.005;
    for a corpus known to be smaller than 4 MB, enough documents to hold a tenth of the text."""
    val_source: str | None = None
    """Take the validation documents from this source instead; "own": the dataset's own validation split."""
    clean: bool = False
    """Repair mis-decoded characters, normalize Unicode; drop control characters, short and duplicate documents."""
    min_chars: int = 20
    """With --clean: documents with fewer characters are too short."""
    workers: int | None = None
    """Processes that encode. Default: one for each core, or one for a corpus known to be small."""
    part_bytes: int = 64_000_000
    """Text in a part, the most that an interruption loses."""
    overwrite: bool = False
    """Replace another corpus, or an unfinished one, in the folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_machines()
        if (self.vocab_size is None) == (self.tokenizer is None):
            raise ValueError(
                "give either --vocab-size N to train a tokenizer or --tokenizer gpt2|PATH to use one"
            )
        if self.tokenizer and self.special_tokens:
            raise ValueError(
                "--special-tokens can only be added to a tokenizer that is trained: use --vocab-size"
            )
        if self.vocab_size is not None:
            self._check_special_tokens(self.vocab_size)
        if self.weights and (len(self.weights) != len(self.source) or min(self.weights) <= 0):
            raise ValueError(f"--weights needs a number above 0 for each of the {len(self.source)} sources")
        if self.val_fraction is not None and self.val_source is not None:
            raise ValueError("--val-fraction and --val-source exclude each other: give one of them")
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise ValueError(
                f"--val-fraction must be above 0 and below 1, not {self.val_fraction}: training measures the loss on "
                f"documents kept for validation, if need be those of --val-source"
            )
        for name in ("tokenizer_bytes", "workers", "part_bytes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {value}")

    def _check_special_tokens(self, vocab_size: int) -> None:
        special = ("endoftext", *self.special_tokens)
        if len(set(special)) < len(special):
            raise ValueError(f"--special-tokens holds a name twice: {' '.join(self.special_tokens)}")
        if vocab_size < 256 + len(special):
            raise ValueError(
                f"--vocab-size {vocab_size} is too small: 256 bytes and {len(special)} special tokens need at least "
                f"{256 + len(special)}"
            )

    @property
    def encoder_settings(self) -> dict[str, Any]:
        """Return the arguments of Encoder after its tokenizer."""
        return {"cleaning": self.clean, "min_chars": self.min_chars if self.clean else 0}


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The sources of a preparation and the fraction of their documents that is for validation."""

    sources: list[Source]
    weights: tuple[float, ...]
    validation: Source | None
    fraction: float

    @classmethod
    def open(cls, options: Prepare) -> "Corpus":
        """Open the sources; the errors are those of open_source."""
        sources = [open_source(spec, options) for spec in options.source]
        for source in sources:
            if source.notice:
                print(source.notice)
        validation = _validation_source(options, sources)
        sizes = [source.num_bytes for source in sources]
        corpus = cls(sources, options.weights, validation, options.val_fraction or 0.0)
        if options.val_fraction is not None or validation:
            return corpus
        small = None not in sizes and sum(sizes) < SMALL
        return dataclasses.replace(corpus, fraction=corpus.fraction_for_a_tenth(options) if small else 0.005)

    def fraction_for_a_tenth(self, options: Prepare) -> float:
        """Return the fraction of all hash values below which documents hold just a tenth of this small corpus.

        A fixed fraction would, by chance, often leave a handful of documents without one for validation.
        """
        reader = Encoder(None, **options.encoder_settings)
        sizes: collections.Counter[int] = collections.Counter()
        for segment in self.train_segments():
            text, reason, _ = reader.read(segment)
            if not reason:
                sizes[text_key(segment, text)] += len(
                    segment.text
                )  # the segments of a document share its key
        kept = sorted(sizes.items())
        if len(kept) < 2:
            return 0.0
        tenth = sum(size for _, size in kept) / 10
        held = itertools.accumulate(size for _, size in kept)
        last = min(next(i for i, size in enumerate(held) if size >= tenth), len(kept) - 2)
        return (kept[last][0] + kept[last + 1][0]) / 2 / 2**64

    def recipe(self, options: Prepare) -> dict[str, Any]:
        """Return everything that decides what is written, as JSON values."""
        recipe = {name: getattr(options, name) for name in RECIPE}
        recipe["val_fraction"] = self.fraction
        if options.tokenizer not in (None, "gpt2"):
            recipe["tokenizer_sha256"] = sha256(json_path(options.tokenizer))
        recipe["inputs"] = [source.fingerprint for source in self.every_source]
        return _as_json(recipe)

    @property
    def every_source(self) -> list[Source]:
        """Return the sources, with that of the validation documents."""
        return [*self.sources, *([self.validation] if self.validation else [])]

    def warnings(self) -> list[str]:
        """Return what was odd in the documents read last, a line each."""
        return [line for source in self.every_source for line in source.warnings()]

    @property
    def num_bytes(self) -> int | None:
        """Return the size of the text if it is known; a mixture may end earlier."""
        sizes = [source.num_bytes for source in self.sources]
        return None if None in sizes or self.weights or self.validation else sum(sizes)

    def train_segments(self) -> Iterator[Segment]:
        """Yield the documents of the sources; each passage of a whole file has a key of its own."""
        if self.weights:
            segments = mix(self.sources, self.weights)
        else:
            segments = itertools.chain.from_iterable(source.documents() for source in self.sources)
        for segment in segments:
            passage = segment.key is None and not (segment.first and segment.ends)
            yield segment._replace(key=text_hash(segment.text)) if passage else segment

    def segments(self) -> Iterator[Segment]:
        """Yield all documents; those of the source of validation documents come last."""
        yield from self._end_at_other_split(self.train_segments())
        if self.validation:
            yield from (segment._replace(validation=True) for segment in self.validation.documents())

    def _end_at_other_split(self, segments: Iterator[Segment]) -> Iterator[Segment]:
        """Yield the segments; where the next passage of a file is for the other split, one document ends there."""
        held: Segment | None = None
        for segment in segments:
            if held is not None:
                if not segment.first and self._side(held) != self._side(segment):
                    held, segment = held._replace(ends=True), segment._replace(first=True)
                yield held
            held = segment
        if held is not None:
            yield held

    def _side(self, segment: Segment) -> bool:
        return bool(self.is_validation(np.uint64(segment.key)))

    def is_validation(self, keys: np.ndarray) -> np.ndarray:
        """Return, for (S,) uint64 hashes, (S,) bool: True if documents with these hashes are for validation."""
        return keys < np.uint64(self.fraction * 2**64)


def _as_json(value: Any) -> Any:
    """Return `value` as it would be read back from JSON: tuples become lists."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value


def _validation_source(options: Prepare, sources: list[Source]) -> Source | None:
    if options.val_source is None:
        return None
    if options.val_source != "own":
        return open_source(options.val_source, options)
    if len(sources) != 1 or sources[0].own_validation is None:
        raise ValueError(
            "--val-source own needs one source that has splits (tinystories, tinystories-v2 or hf:NAME): "
            "name a source of validation documents or leave it out"
        )
    return sources[0].own_validation()
