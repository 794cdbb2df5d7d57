"""The options of a preparation, checked."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from bpe import END_OF_TEXT
from data.sources import Reading


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
