"""Documents to token files."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bpe import Tokenizer, train
from common.files import atomic, write_json
from data.tokenfile import SPLITS, Meta, dtype_for, read_meta, sha256

__all__ = ["prepare", "read_meta"]

END_OF_TEXT = "<|endoftext|>"


def is_validation(text: str, fraction: float) -> bool:
    """Whether a document belongs to the validation split: decided by a hash of its text alone."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def prepare(documents: Iterator[str], vocab_size: int, out: Path, fraction: float, source: list[str]) -> Meta:
    """Trains a tokenizer and writes the token files."""
    texts = list(documents)
    tokenizer = train(iter(texts), vocab_size)
    return write(texts, tokenizer, out, fraction, source)


def write(texts: list[str], tokenizer: Tokenizer, out: Path, fraction: float, source: list[str]) -> Meta:
    """Encodes the documents of each split into its token file."""
    dtype = dtype_for(tokenizer.vocab_size)
    end = np.array([tokenizer.special_tokens[END_OF_TEXT]], dtype)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(out / "tokenizer.json")
    counts = {key: dict.fromkeys(SPLITS, 0) for key in ("tokens", "documents", "bytes")}
    with atomic(out / "train.bin") as train_bin, atomic(out / "val.bin") as val_bin:
        files = dict(zip(SPLITS, (train_bin, val_bin), strict=True))
        for text in texts:
            split = SPLITS[is_validation(text, fraction)]
            ids = np.concatenate([np.asarray(tokenizer.encode(text), dtype), end])
            files[split].write(ids.tobytes())
            for key, more in (("tokens", len(ids)), ("documents", 1), ("bytes", len(text.encode()))):
                counts[key][split] += more
    meta = {
        "format_version": 1,
        "dtype": dtype.name,
        "vocab_size": tokenizer.vocab_size,
        **counts,
        "special_tokens": tokenizer.special_tokens,
        "tokenizer_sha256": sha256(out / "tokenizer.json"),
        "source": source,
    }
    write_json(out / "meta.json", meta)
    return read_meta(out)
