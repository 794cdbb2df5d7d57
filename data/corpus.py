"""The sources of a preparation as one stream of documents, and which of them are for validation."""

import collections
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bpe import END_OF_TEXT
from data.encode import Encoder, text_key
from data.sources import Reading, Source, mix, open_source
from data.splitting import Piece
from data.tokenfile import sha256

SMALL = 4_000_000  # bytes; below, a tenth of the text is for validation, else 0.5 % of the documents
RECIPE = (  # the options that decide what is written
    *("source", "weights", "vocab_size", "tokenizer", "tokenizer_bytes", "special_tokens", "val_source"),
    *("clean", "min_chars", "split_documents", "separator", "stories_bytes", "seed"),
)


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Turns a corpus into token files: train.bin, val.bin, meta.json and tokenizer.json.

    Interrupted at any moment, the same command goes on from the last full part.
    """

    out: Path
    """The folder for the token files."""
    source: tuple[str, ...] = ("stories",)
    """stories (built in), tinystories, tinystories-v2, hf:NAME[:CONFIG][:SPLIT][#COLUMN], text:GLOB, jsonl:GLOB#FIELD,
    parquet:GLOB#COLUMN, csv:GLOB#COLUMN; several are read one after another, or mixed with --weights."""
    weights: tuple[float, ...] = ()
    """Mix the sources, a weight each: shares of the text in bytes. The mixture ends when one source does."""
    vocab_size: int | None = None
    """Train a tokenizer of so many tokens, special tokens included."""
    tokenizer: str | None = None
    """Use a tokenizer there is instead: gpt2, or the path of a tokenizer.json."""
    tokenizer_bytes: int = 50_000_000
    """How much text the tokenizer is trained on, from the beginning of the corpus."""
    special_tokens: tuple[Literal["bos", "pad", "sep", "unk"], ...] = ()
    """Special tokens beside <|endoftext|> for a tokenizer that is trained. With bos, <|bos|> opens each document."""
    val_fraction: float | None = None
    """Share of the documents kept for validation, chosen by a hash of their text: 0.2 for 80/20. Default 0.005; for
    a corpus known to be smaller than 4 MB, so many that they hold a tenth of the text."""
    val_source: str | None = None
    """Take the validation documents from this source instead; "own": the validation split that a dataset has."""
    clean: bool = False
    """Repair mis-decoded characters, normalize Unicode, drop control characters, short and duplicate documents."""
    min_chars: int = 20
    """With --clean: documents with fewer characters are too short."""
    split_documents: Literal["auto", "separator", "line", "break", "whole"] = "auto"
    """Where documents end in text files: at --separator, at every line break, at single line breaks (blank lines
    separate paragraphs), at the end of the file, or what fits the first megabyte."""
    separator: str = END_OF_TEXT
    """What stands between two documents of a text file."""
    stories_bytes: int = 10_000_000
    """How much of the built-in corpus to make."""
    seed: int = 0
    """Seed of the built-in corpus."""
    local_files_only: bool = False
    """Never ask the network, as with HF_HUB_OFFLINE=1: datasets of the hub come from the cache."""
    workers: int | None = None
    """Processes that encode. Default: one for each core, or one for a corpus known to be small."""
    part_bytes: int = 64_000_000
    """Text in a part: what an interruption loses at most."""
    overwrite: bool = False
    """Replace another corpus, or an unfinished one, in the folder."""

    def __post_init__(self) -> None:
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
    def reading(self) -> Reading:
        """The options that say how sources are read."""
        return Reading(
            self.stories_bytes, self.seed, self.separator, self.split_documents, self.local_files_only
        )

    @property
    def encoder_settings(self) -> dict[str, Any]:
        """What an Encoder is made with, beside its tokenizer."""
        return {"cleaning": self.clean, "min_chars": self.min_chars if self.clean else 0}


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The sources of a preparation and the share of them that is for validation."""

    sources: list[Source]
    weights: tuple[float, ...]
    validation: Source | None
    fraction: float

    @classmethod
    def open(cls, options: Prepare) -> "Corpus":
        """Opens the sources; the errors are those of open_source."""
        sources = [open_source(spec, options.reading) for spec in options.source]
        for source in sources:
            if source.notice:
                print(source.notice)
        validation = _validation_source(options, sources)
        sizes = [source.num_bytes for source in sources]
        corpus = cls(sources, options.weights, validation, options.val_fraction or 0.0)
        if options.val_fraction is not None or validation:
            return corpus
        small = None not in sizes and sum(sizes) < SMALL
        return dataclasses.replace(corpus, fraction=corpus.share_for_a_tenth(options) if small else 0.005)

    def share_for_a_tenth(self, options: Prepare) -> float:
        """The share of all hashes below which documents of this small corpus hold just a tenth of its text.

        A fixed share would, by chance, often leave a handful of documents without one for validation.
        """
        reader = Encoder(None, **options.encoder_settings)
        sizes: collections.Counter[int] = collections.Counter()
        for piece in self.train_pieces():
            text, reason, _ = reader.read(piece)
            if not reason:
                sizes[text_key(piece, text)] += len(piece.text)  # the pieces of a document share its key
        kept = sorted(sizes.items())
        if len(kept) < 2:
            return 0.0
        tenth = sum(size for _, size in kept) / 10
        held = itertools.accumulate(size for _, size in kept)
        last = min(next(i for i, size in enumerate(held) if size >= tenth), len(kept) - 2)
        return (kept[last][0] + kept[last + 1][0]) / 2 / 2**64

    def recipe(self, options: Prepare) -> dict[str, Any]:
        """All that decides what is written, as JSON has it."""
        recipe = {name: getattr(options, name) for name in RECIPE}
        every = [*self.sources, *([self.validation] if self.validation else [])]
        recipe["val_fraction"] = self.fraction
        if options.tokenizer not in (None, "gpt2"):
            recipe["tokenizer_sha256"] = sha256(options.tokenizer)
        recipe["inputs"] = [source.fingerprint for source in every]
        return _as_json(recipe)

    @property
    def num_bytes(self) -> int | None:
        """The size of the text, as far as it is known; a mixture may end before."""
        sizes = [source.num_bytes for source in self.sources]
        return None if None in sizes or self.weights or self.validation else sum(sizes)

    def train_pieces(self) -> Iterator[Piece]:
        """The documents of the sources."""
        if self.weights:
            return mix(self.sources, self.weights)
        return itertools.chain.from_iterable(source.documents() for source in self.sources)

    def pieces(self) -> Iterator[Piece]:
        """All documents, those of the source of validation documents last."""
        yield from self.train_pieces()
        if self.validation:
            yield from (piece._replace(validation=True) for piece in self.validation.documents())

    def is_validation(self, keys: np.ndarray) -> np.ndarray:
        """(P,) uint64 hashes -> (P,) bool: whether documents with these hashes are for validation."""
        return keys < np.uint64(self.fraction * 2**64)


def _as_json(value: Any) -> Any:
    """What comes back when `value` is written as JSON: tuples become lists."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value


def _validation_source(options: Prepare, sources: list[Source]) -> Source | None:
    if options.val_source is None:
        return None
    if options.val_source != "own":
        return open_source(options.val_source, options.reading)
    if len(sources) != 1 or sources[0].own_validation is None:
        raise ValueError(
            "--val-source own needs one source that has splits (tinystories, tinystories-v2 or hf:NAME): "
            "name a source of validation documents or leave it out"
        )
    return sources[0].own_validation()
