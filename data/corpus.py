"""The options of a preparation, the documents that they name, and which of these are for validation."""

import collections
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.encode import Encoder, text_key
from data.sources import Reading, Source, mix, open_source
from data.splitting import Segment
from data.tokenfile import sha256

SMALL = 4_000_000  # bytes; below, a tenth of the text is for validation, else 0.5 % of the documents
RECIPE = (  # the options that decide what is written
    *("source", "weights", "vocab_size", "tokenizer", "tokenizer_bytes", "special_tokens", "val_source"),
    *("clean", "min_chars", "split_documents", "separator", "stories_bytes", "seed"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare(Reading):
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
    """Use an existing tokenizer instead: gpt2, or the path of a tokenizer.json."""
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
        if (self.vocab_size is None) == (self.tokenizer is None):
            raise ValueError(
                "give either --vocab-size N to train a tokenizer or --tokenizer gpt2|PATH to use one"
            )
        if self.tokenizer and self.special_tokens:
            raise ValueError(
                "--special-tokens can only be added to a tokenizer that is trained: use --vocab-size"
            )
        if self.weights and (len(self.weights) != len(self.source) or min(self.weights) <= 0):
            raise ValueError(f"--weights needs a number above 0 for each of the {len(self.source)} sources")
        if self.val_fraction is not None and self.val_source is not None:
            raise ValueError("--val-fraction and --val-source exclude each other: give one of them")
        if self.val_fraction is not None and not 0 <= self.val_fraction < 1:
            raise ValueError(f"--val-fraction must be at least 0 and below 1, not {self.val_fraction}")
        for name in ("tokenizer_bytes", "workers", "part_bytes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {value}")

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
        every = [*self.sources, *([self.validation] if self.validation else [])]
        recipe["val_fraction"] = self.fraction
        if options.tokenizer not in (None, "gpt2"):
            recipe["tokenizer_sha256"] = sha256(options.tokenizer)
        recipe["inputs"] = [source.fingerprint for source in every]
        return _as_json(recipe)

    @property
    def num_bytes(self) -> int | None:
        """Return the size of the text if it is known; a mixture may end earlier."""
        sizes = [source.num_bytes for source in self.sources]
        return None if None in sizes or self.weights or self.validation else sum(sizes)

    def train_segments(self) -> Iterator[Segment]:
        """Return the documents of the sources."""
        if self.weights:
            return mix(self.sources, self.weights)
        return itertools.chain.from_iterable(source.documents() for source in self.sources)

    def segments(self) -> Iterator[Segment]:
        """Yield all documents; those of the source of validation documents come last."""
        yield from self.train_segments()
        if self.validation:
            yield from (segment._replace(validation=True) for segment in self.validation.documents())

    def is_validation(self, keys: np.ndarray) -> np.ndarray:
        """(S,) uint64 hashes -> (S,) bool: True if documents with these hashes are for validation."""
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
