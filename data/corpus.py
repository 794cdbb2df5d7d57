"""The sources of a preparation as one stream of documents, and which of them are for validation."""

import collections
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from data.encode import Encoder, text_key
from data.options import Prepare
from data.sources import Source, mix, open_source
from data.splitting import Piece
from data.tokenfile import sha256

SMALL = 4_000_000  # bytes; below, a tenth of the text is for validation, else 0.5 % of the documents
RECIPE = (  # the options that decide what is written
    *("source", "weights", "vocab_size", "tokenizer", "tokenizer_bytes", "special_tokens", "val_source"),
    *("clean", "min_chars", "split_documents", "separator", "stories_bytes", "seed"),
)


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
