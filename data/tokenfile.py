"""Token files: what a prepared folder holds, and checks that refuse a wrong file before training.

    DIR/train.bin, DIR/val.bin   flat little-endian token ids, uint16 where the vocabulary fits, else uint32
    DIR/meta.json                what they hold (Meta)
    DIR/tokenizer.json           the tokenizer that made them

The .bin files have no header: np.memmap(path, dtype=np.uint16) reads them, as nanoGPT does.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bpe import END_OF_TEXT
from common.files import read_json

FORMAT_VERSION = 1
SPLITS = ("train", "val")
CHUNK = 1 << 22  # ids scanned at once: 8 or 16 MiB


@dataclasses.dataclass(frozen=True)
class Meta:
    """The contents of meta.json; counts are by split, {"train": …, "val": …}."""

    dtype: str
    vocab_size: int
    tokens: dict[str, int]  # ids in the file, including <|endoftext|>
    documents: dict[str, int]
    bytes: dict[str, int]  # UTF-8 bytes of the documents' text, <|endoftext|> not counted
    special_tokens: dict[str, int]
    tokenizer_sha256: str
    source: list[str]
    removed: dict[str, int] = dataclasses.field(default_factory=dict)  # documents left out, by reason
    changed: dict[str, int] = dataclasses.field(default_factory=dict)  # documents altered, by rule
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)  # the options that decide the content
    document_end: str = END_OF_TEXT  # the special token that closes every document
    format_version: int = FORMAT_VERSION

    @property
    def end_of_text(self) -> int:
        """Return the id that closes every document."""
        return self.special_tokens[self.document_end]

    def bytes_per_token(self, split: str) -> float:
        """Return the mean bytes of a token of `split`: bits per byte = nats per token / ln 2 / bytes per token."""
        return self.bytes[split] / self.tokens[split] if self.tokens[split] else 0.0


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, as hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_meta(directory: str | Path) -> Meta:
    """Read DIR/meta.json; FileNotFoundError and ValueError say what is missing and how to make it."""
    path = Path(directory) / "meta.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: make token files with python -m data prepare --out {directory}"
        )
    found = read_json(path)
    fields = {field.name: field for field in dataclasses.fields(Meta)}
    missing = dataclasses.MISSING
    without_default = {n for n, each in fields.items() if each.default is each.default_factory is missing}
    required = without_default | {"format_version"}
    if not isinstance(found, dict) or not required <= found.keys():
        raise ValueError(f"{path} does not describe token files: prepare {directory} again with --overwrite")
    if found["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {found['format_version']}, this program reads {FORMAT_VERSION}: "
            f"prepare {directory} again with --overwrite"
        )
    if found["dtype"] not in ("uint16", "uint32"):
        raise ValueError(f"{path} names the dtype {found['dtype']!r}; token files are uint16 or uint32")
    return Meta(**{name: value for name, value in found.items() if name in fields})


@dataclasses.dataclass(frozen=True)
class TokenFile:
    """One split of a prepared folder, mapped into memory: a page is read when it is first used."""

    path: Path
    tokens: np.memmap  # (N,) uint16 or uint32
    meta: Meta

    def check_there(self) -> None:
        """Raise OSError if the file was removed or cut: reading the map would end the process with a bus error."""
        if os.stat(self.path).st_size < self.tokens.nbytes:
            raise OSError(f"{self.path} has become shorter")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def vocab_size(self) -> int:
        """Return the number of ids; every id of the file is below it."""
        return self.meta.vocab_size

    @classmethod
    def open(cls, directory: str | Path, split: str) -> "TokenFile":
        """Open DIR/SPLIT.bin after checking it against meta.json and tokenizer.json.

        Raises FileNotFoundError for a missing file, ValueError for a tokenizer other than the one that made
        the file, a size that does not match meta.json, an empty split, an id beyond the vocabulary.
        """
        directory = Path(directory)
        meta = read_meta(directory)
        if split not in meta.tokens:
            raise ValueError(f"{directory} has no split {split!r}: it has {', '.join(meta.tokens)}")
        _check_tokenizer(directory, meta)
        path = directory / f"{split}.bin"
        _check_size(path, meta, split)
        tokens = np.memmap(path, dtype=np.dtype(meta.dtype).newbyteorder("<"), mode="r")
        _check_ids(path, tokens, meta.vocab_size)
        return cls(path, tokens, meta)


def open_mask(file: TokenFile) -> np.memmap:
    """Return which tokens of a file are learned, (N,) uint8 of 0 and 1: DIR/SPLIT.mask, which instruction data adds.

    FileNotFoundError and ValueError say what is wrong with it.
    """
    path = file.path.with_suffix(".mask")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: make it with python -m alignment data --out {path.parent}"
        )
    if (size := path.stat().st_size) != len(file):
        raise ValueError(
            f"{path} holds {size} bytes, but {file.path} {len(file)} tokens: make both again with --overwrite"
        )
    mask = np.memmap(path, dtype=np.uint8, mode="r")
    if not {0, 1} >= {int(mask.min()), int(mask.max())}:
        raise ValueError(f"{path} holds other bytes than 0 and 1: make it again with --overwrite")
    return mask


def chunks(tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (position, ids) of consecutive chunks, so that a scan needs little memory."""
    for start in range(0, len(tokens), CHUNK):
        yield start, np.asarray(tokens[start : start + CHUNK])


def _check_tokenizer(directory: Path, meta: Meta) -> None:
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: restore it or prepare {directory} again with --overwrite"
        )
    if sha256(path) != meta.tokenizer_sha256:
        raise ValueError(
            f"{path} is not the tokenizer that made these token files (its SHA-256 differs from meta.json): "
            f"restore it or prepare {directory} again with --overwrite"
        )


def _check_size(path: Path, meta: Meta, split: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: prepare {path.parent} again with --overwrite")
    size, width, tokens = path.stat().st_size, np.dtype(meta.dtype).itemsize, meta.tokens[split]
    again = f"prepare {path.parent} again with --overwrite"
    if size % width:
        raise ValueError(f"{path} has {size} bytes, which is not a whole number of {meta.dtype} ids: {again}")
    if size != tokens * width:
        raise ValueError(
            f"{path} holds {size // width} tokens but meta.json says {tokens}: "
            f"it is {'cut short' if size < tokens * width else 'another file'}; {again}"
        )
    if not size:
        raise ValueError(f"{path} is empty: prepare with more text or a larger --val-fraction")


def _check_ids(path: Path, tokens: np.ndarray, vocab_size: int) -> None:
    if vocab_size > np.iinfo(tokens.dtype).max:
        return  # every value of the type is an id
    for start, ids in chunks(tokens):
        if int(ids.max()) >= vocab_size:
            where = start + int(np.argmax(ids >= vocab_size))
            raise ValueError(
                f"{path} holds the id {int(tokens[where])} at token {where}, beyond the vocabulary "
                f"of {vocab_size}: prepare {path.parent} again with --overwrite"
            )
