"""Read what a training run left: its weights, its tokenizer, its settings."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bpe import Tokenizer
from common import files


def weights_directory(directory: Path) -> Path:
    """Return the directory with a model's weights: the best of a run, or the directory itself."""
    best = files.whole_directory(directory / "best")
    return best if best.is_dir() else directory


def settings(run: Path) -> dict[str, Any]:
    """Return what a run's config.toml says, field by field."""
    return tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))


def same_tokenizer(one: Path, other: Path) -> bool:
    """True if two tokenizer.json, maybe written by different programs, give texts the same ids."""
    if one.read_bytes() == other.read_bytes():
        return True
    a, b = Tokenizer.load(one), Tokenizer.load(other)
    return (a.vocab, a.merges, a.special_tokens) == (b.vocab, b.merges, b.special_tokens)


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of ids that a model drew, without those of rows that only pad the model's vocabulary."""
    return b"".join(tokenizer.vocab.get(id, b"") for id in ids).decode("utf-8", "replace")
