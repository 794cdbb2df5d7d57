"""Documents to token ids, in this process or in several; the results come in the order of the documents."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from bpe import END_OF_TEXT, Tokenizer
from common.workers import ordered_map
from data.clean import clean
from data.splitting import Piece, text_hash
from data.tokenfile import dtype_for

BEGIN = "<|bos|>"
BATCH_BYTES = 1 << 20  # of text that a worker gets at a time
BATCH_PIECES = 4096


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The pieces of a batch that were kept, P of them, and their ids one after another."""

    ids: np.ndarray  # (N,) uint16 or uint32, N = lengths.sum()
    lengths: np.ndarray  # (P,) tokens of each piece
    num_bytes: np.ndarray  # (P,) bytes of UTF-8 of each piece
    hashes: np.ndarray  # (P,) uint64 of each piece's text
    keys: np.ndarray  # (P,) uint64 that decides the split
    ends: np.ndarray  # (P,) bool: a document is complete
    whole: np.ndarray  # (P,) bool: the piece is a whole document
    validation: np.ndarray  # (P,) bool: the piece comes from the source of validation documents
    removed: collections.Counter[str]
    changed: collections.Counter[str]
    pieces_read: int
    bytes_read: int


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Cleans (where `cleaning` says so) and encodes; `<|endoftext|>` closes each document."""

    tokenizer: Tokenizer | None  # None: for `read` alone
    cleaning: bool = False
    min_chars: int = 0

    def __call__(self, pieces: list[Piece]) -> Encoded:
        removed: collections.Counter[str] = collections.Counter()
        changed: collections.Counter[str] = collections.Counter()
        kept: list[Piece] = []
        for piece in pieces:
            text, reason, broken = self.read(piece)
            if reason and piece.first and piece.ends:
                removed[reason] += 1
            else:
                changed.update(broken)
                kept.append(piece if text is piece.text else piece._replace(text=text))
        ids, lengths = self._encode(kept)
        hashes = [text_hash(piece.text) for piece in kept]
        keys = [own if piece.key is None else piece.key for piece, own in zip(kept, hashes, strict=True)]
        return Encoded(
            ids=ids,
            lengths=lengths,
            num_bytes=np.array([len(piece.text) for piece in kept], np.int64),
            hashes=np.array(hashes, np.uint64),
            keys=np.array(keys, np.uint64),
            ends=np.array([piece.ends for piece in kept], bool),
            whole=np.array([piece.first and piece.ends for piece in kept], bool),
            validation=np.array([piece.validation for piece in kept], bool),
            removed=removed,
            changed=changed,
            pieces_read=len(pieces),
            bytes_read=sum(len(piece.text) for piece in pieces),
        )

    def read(self, piece: Piece) -> tuple[bytes, str, list[str]]:
        """The text of a piece, why it should be left out ("" if not), and what was done to it."""
        text, broken = piece.text, []
        if self.cleaning or not text.isascii():
            try:
                characters = text.decode()
            except UnicodeDecodeError:
                return text.decode(errors="replace").encode(), "undecodable", ["undecodable"]
            if self.cleaning:
                characters, broken = clean(characters)
                text = characters.encode() if broken else text
        if not text.strip():
            return text, "empty", broken
        short = len(text) < 4 * self.min_chars and len(text.decode()) < self.min_chars  # 4 bytes at most each
        return text, "short" if short else "", broken

    def _encode(self, pieces: list[Piece]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all pieces in one array, and how many each has."""
        special = self.tokenizer.special_tokens
        begin, end = BEGIN.encode() if BEGIN in special else b"", END_OF_TEXT.encode()
        joined = b"".join([(begin if piece.first else b"") + piece.text + end for piece in pieces])
        dtype = dtype_for(self.tokenizer.vocab_size)
        opened = sum(piece.first for piece in pieces) if begin else 0
        if joined.count(end) != len(pieces) or (begin and joined.count(begin) != opened):
            # marks of special tokens in the text itself are text
            each = [self._encode_one(piece, dtype) for piece in pieces]
            return np.concatenate(each), np.array([len(ids) for ids in each], np.int64)
        ids = self.tokenizer.encode_to_numpy(
            joined.decode(), allowed_special={END_OF_TEXT, BEGIN} & special.keys()
        )
        ends = np.flatnonzero(ids == special[END_OF_TEXT])
        unfinished = np.array([not piece.ends for piece in pieces], bool)
        if unfinished.any():
            ids = np.delete(ids, ends[unfinished])
        return ids.astype(dtype, copy=False), np.diff(ends, prepend=-1) - unfinished

    def _encode_one(self, piece: Piece, dtype: np.dtype) -> np.ndarray:
        special = self.tokenizer.special_tokens
        before = [special[BEGIN]] if piece.first and BEGIN in special else []
        after = [special[END_OF_TEXT]] if piece.ends else []
        return np.array([*before, *self.tokenizer.encode(piece.text.decode()), *after], dtype)


def text_key(piece: Piece, text: bytes) -> int:
    """The hash that decides the split of a piece with this (cleaned) text."""
    return text_hash(text) if piece.key is None else piece.key


def batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Consecutive pieces, about a megabyte at a time."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_BYTES or len(batch) >= BATCH_PIECES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encoded(pieces: Iterable[Piece], tokenizer: Path, settings: dict, workers: int) -> Iterator[Encoded]:
    """The batches of `pieces`, encoded by `workers` processes (1: here), in order.

    No more than a few batches are under way, so memory does not grow with the corpus.
    Raises ChildProcessError when a worker dies.
    """
    encoder = Encoder(Tokenizer.load(tokenizer), **settings)
    try:
        yield from ordered_map(_encode_batch, encoder, batches(pieces), workers)
    except ChildProcessError as error:
        raise ChildProcessError(
            "a worker process died, perhaps for want of memory: the same command goes on from the last "
            "full part; try it with fewer --workers"
        ) from error


def _encode_batch(encoder: Encoder, pieces: list[Piece]) -> Encoded:
    return encoder(pieces)
