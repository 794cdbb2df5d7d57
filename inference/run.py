"""Read what a training run left: its weights, its tokenizer, its settings."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bpe import Tokenizer
from common import files

GPT2_FILES = ("vocab.json", "merges.txt")
TOKENIZER_CONFIG = (
    "tokenizer_config.json"  # transformers' settings: the chat template, what special tokens are for
)
DECIDING = (
    "vocab",
    "merges",
    "special_tokens",
    "added_tokens",
    "nfc",
    "ignore_merges",
)  # which ids a text has


def weights_directory(directory: Path) -> Path:
    """Return the directory with a model's weights: the best of a run, or the directory itself."""
    best = files.whole_directory(directory / "best")
    return best if best.is_dir() else directory


def settings(run: Path) -> dict[str, Any]:
    """Return what the config.toml of a run, or of the run that a checkpoint belongs to, says, field by field."""
    for directory in (run, run.parent):
        if (path := directory / "config.toml").is_file():
            return tomllib.loads(path.read_text(encoding="utf-8"))
    raise FileNotFoundError(f"{run} is no run of train.py (it has no config.toml): give the directory of one")


def tokenizer_directory(weights: Path) -> Path | None:
    """Return the directory with the tokenizer of a run, of one of its checkpoints, or of a Hugging Face model.

    This is its tokenizer.json, or GPT-2's vocab.json and merges.txt; None if there is neither.
    """
    checkpoint_of = [weights.parent] if (weights.parent / "config.toml").is_file() else []
    for directory in (weights, *checkpoint_of):
        if (directory / "tokenizer.json").is_file() or all(
            (directory / name).is_file() for name in GPT2_FILES
        ):
            return directory
    return None


def load_tokenizer(weights: Path) -> Tokenizer:
    """Return the tokenizer of a run, of one of its checkpoints, or of a Hugging Face model."""
    directory = tokenizer_directory(weights)
    if directory is None:
        raise FileNotFoundError(
            f"{weights} holds no tokenizer.json: copy it from where the model was trained"
        )
    if (directory / "tokenizer.json").is_file():
        return _with_end(Tokenizer.load(directory / "tokenizer.json"), directory / TOKENIZER_CONFIG)
    return Tokenizer.from_gpt2(*(directory / name for name in GPT2_FILES))


def _with_end(tokenizer: Tokenizer, config: Path) -> Tokenizer:
    """Return a tokenizer that names no end of text with that of transformers' tokenizer_config.json, if there is one.

    transformers leaves our own note of it out of the tokenizer.json that it saves.
    """
    if tokenizer.end_of_text is not None or not config.is_file():
        return tokenizer
    end = files.read_json(config).get("eos_token")
    end = end.get("content") if isinstance(end, dict) else end
    return tokenizer.with_special_tokens([], end) if end in tokenizer.special_tokens else tokenizer


def same_tokenizer(one: Path, other: Path, *, or_extended: bool = False) -> bool:
    """True if the tokenizers of two directories, maybe written by different programs, give texts the same ids.

    Also if the other one has further special tokens, if it may be `or_extended`.
    """
    paths = [directory / "tokenizer.json" for directory in (one, other)]
    if all(path.is_file() for path in paths) and paths[0].read_bytes() == paths[1].read_bytes():
        return True
    a, b = (load_tokenizer(directory) for directory in (one, other))
    names = [name for name in b.special_tokens if name not in a.special_tokens]
    if or_extended and names:
        a = a.with_special_tokens(names)
    return all(getattr(a, name) == getattr(b, name) for name in DECIDING) and a.pattern.text == b.pattern.text


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of ids that a model drew, without those of rows that only pad the model's vocabulary."""
    return b"".join(tokenizer.vocab.get(id, b"") for id in ids).decode("utf-8", "replace")


def check_seed(seed: int) -> None:
    """Raise ValueError for a seed that some random generator cannot take, or from which others are counted up."""
    if not 0 <= seed < 1 << 62:
        raise ValueError(f"seed is {seed}: it must be 0 or more, and below 2^62")
