"""Token files written by the tests themselves, without the code under test."""

import hashlib
import json
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from bpe import train
from data.stories import corpus

END = 0

hypothesis.settings.register_profile("slm", deadline=None)  # time is not what these tests are about
hypothesis.settings.load_profile("slm")


def _write_tokens(directory: Path, tokens: np.ndarray, vocab_size: int = 1000, split: str = "train") -> Path:
    """Return a prepared folder that holds `tokens` in `split` and in the other split one token."""
    directory.mkdir(parents=True, exist_ok=True)
    dtype = "uint16" if vocab_size <= 65536 else "uint32"
    counts = {}
    for name in ("train", "val"):
        array = np.asarray(tokens if name == split else [END], dtype)
        array.tofile(directory / f"{name}.bin")
        counts[name] = len(array)
    (directory / "tokenizer.json").write_text("{}")
    meta = {
        "format_version": 1,
        "dtype": dtype,
        "vocab_size": vocab_size,
        "tokens": counts,
        "documents": dict.fromkeys(counts, 1),
        "bytes": counts,
        "special_tokens": {"<|endoftext|>": END},
        "tokenizer_sha256": hashlib.sha256(b"{}").hexdigest(),
        "source": ["test"],
    }
    (directory / "meta.json").write_text(json.dumps(meta))
    return directory


@pytest.fixture
def write_tokens():
    """write_tokens(directory, tokens, vocab_size=1000, split="train") -> directory."""
    return _write_tokens


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory) -> str:
    """Return a small tokenizer, trained once."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train(corpus(50_000, seed=9), 400, progress=False).save(path)
    return str(path)
