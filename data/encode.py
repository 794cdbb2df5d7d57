"""Documents to token ids, in this process or in several; results arrive in the order of the documents."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from bpe import Tokenizer
from common.workers import ordered_map
from data.clean import clean
from data.splitting import Segment, text_hash

BEGIN = "<|bos|>"
SURROGATES = re.compile("[\ud800-\udfff]")
JOB_BYTES = 1 << 20  # of text that a worker gets at a time
JOB_SEGMENTS = 4096


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The segments of a job that were kept, S of them, and their ids, concatenated."""

    ids: np.ndarray  # (N,) uint16 or uint32, N = lengths.sum()
    lengths: np.ndarray  # (S,) tokens of each segment
    num_bytes: np.ndarray  # (S,) bytes of UTF-8 of each segment
    hashes: np.ndarray  # (S,) uint64 of each segment's text
    keys: np.ndarray  # (S,) uint64 that decides the split
    ends: np.ndarray  # (S,) bool: True if a document ends here
    whole: np.ndarray  # (S,) bool: True if the segment is a whole document
    validation: np.ndarray  # (S,) bool: True if it comes from the source of validation documents
    removed: collections.Counter[str]  # documents left out, by reason
    changed: collections.Counter[str]  # segments altered, by rule
    segments_read: int
    bytes_read: int


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Cleans (if `cleaning`) and encodes; the tokenizer's `end_of_text` closes each document."""

    tokenizer: Tokenizer | None  # None: for `read` alone
    cleaning: bool = False
    min_chars: int = 0

    def __call__(self, segments: list[Segment]) -> Encoded:
        removed: collections.Counter[str] = collections.Counter()
        changed: collections.Counter[str] = collections.Counter()
        kept: list[Segment] = []
        for segment in segments:
            text, reason, rules = self.read(segment)
            if reason and segment.first and segment.ends:
                removed[reason] += 1
            else:
                changed.update(rules)
                kept.append(segment if text is segment.text else segment._replace(text=text))
        ids, lengths = self._encode(kept)
        hashes = [text_hash(segment.text) for segment in kept]
        keys = [
            own if segment.key is None else segment.key for segment, own in zip(kept, hashes, strict=True)
        ]
        return Encoded(
            ids=ids,
            lengths=lengths,
            num_bytes=np.array([len(segment.text) for segment in kept], np.int64),
            hashes=np.array(hashes, np.uint64),
            keys=np.array(keys, np.uint64),
            ends=np.array([segment.ends for segment in kept], bool),
            whole=np.array([segment.first and segment.ends for segment in kept], bool),
            validation=np.array([segment.validation for segment in kept], bool),
            removed=removed,
            changed=changed,
            segments_read=len(segments),
            bytes_read=sum(len(segment.text) for segment in segments),
        )

    def read(self, segment: Segment) -> tuple[bytes, str, list[str]]:
        """Return a segment's text, the reason to leave it out ("" if none), and the rules that changed it."""
        text, rules = segment.text, []
        if self.cleaning or not text.isascii():
            try:
                characters = text.decode()
            except UnicodeDecodeError:
                characters = replace_surrogates(text)
                if characters is None:
                    return text.decode(errors="replace").encode(), "undecodable", ["undecodable"]
                text, rules = characters.encode(), ["surrogate"]
            if self.cleaning:
                characters, applied = clean(characters)
                text = characters.encode() if applied else text
                rules = [*rules, *applied]
        if segment.fault:
            return text, segment.fault, rules
        if not text.strip():
            return text, "empty", rules
        short = len(text) < 4 * self.min_chars and len(text.decode()) < self.min_chars  # 4 bytes at most each
        return text, "short" if short else "", rules

    def _encode(self, segments: list[Segment]) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of all segments, concatenated, and how many each has."""
        special, end_of_text = self.tokenizer.special_tokens, self.tokenizer.end_of_text
        begin, end = BEGIN.encode() if BEGIN in special else b"", end_of_text.encode()
        joined = b"".join([(begin if segment.first else b"") + segment.text + end for segment in segments])
        dtype = self.tokenizer.dtype.newbyteorder("<")
        opened = sum(segment.first for segment in segments) if begin else 0
        if joined.count(end) != len(segments) or (begin and joined.count(begin) != opened):
            # a special token that is spelled out in a document is plain text
            each = [self._encode_one(segment, dtype) for segment in segments]
            return np.concatenate(each), np.array([len(ids) for ids in each], np.int64)
        ids = self.tokenizer.encode_to_numpy(
            joined.decode(), allowed_special={end_of_text, BEGIN} & special.keys()
        )
        ends = np.flatnonzero(ids == special[end_of_text])
        unfinished = np.array([not segment.ends for segment in segments], bool)
        if unfinished.any():
            ids = np.delete(ids, ends[unfinished])
        return ids.astype(dtype, copy=False), np.diff(ends, prepend=-1) - unfinished

    def _encode_one(self, segment: Segment, dtype: np.dtype) -> np.ndarray:
        special = self.tokenizer.special_tokens
        before = [special[BEGIN]] if segment.first and BEGIN in special else []
        after = [special[self.tokenizer.end_of_text]] if segment.ends else []
        return np.array([*before, *self.tokenizer.encode(segment.text.decode()), *after], dtype)


def replace_surrogates(text: bytes) -> str | None:
    """Return the text with U+FFFD for halves of surrogate pairs, encoded as if they were characters; else None."""
    try:
        return SURROGATES.sub("\ufffd", text.decode(errors="surrogatepass"))
    except UnicodeDecodeError:
        return None


def text_key(segment: Segment, text: bytes) -> int:
    """Return the hash that decides the split of a segment with this (cleaned) text."""
    return text_hash(text) if segment.key is None else segment.key


def jobs(segments: Iterable[Segment]) -> Iterator[list[Segment]]:
    """Yield consecutive segments, about a megabyte at a time."""
    job: list[Segment] = []
    size = 0
    for segment in segments:
        job.append(segment)
        size += len(segment.text)
        if size >= JOB_BYTES or len(job) >= JOB_SEGMENTS:
            yield job
            job, size = [], 0
    if job:
        yield job


def encoded(segments: Iterable[Segment], tokenizer: Path, settings: dict, workers: int) -> Iterator[Encoded]:
    """Yield the results of all jobs in order, encoded by `workers` processes (1: this one).

    Only a few jobs are in flight, so memory does not grow with the corpus.
    Raises ChildProcessError if a worker dies.
    """
    encoder = Encoder(Tokenizer.load(tokenizer), **settings)
    try:
        yield from ordered_map(_encode_job, encoder, jobs(segments), workers)
    except ChildProcessError as error:
        raise ChildProcessError(
            "a worker process died, perhaps for lack of memory: the same command continues from the last "
            "full part; try it with fewer --workers"
        ) from error


def _encode_job(encoder: Encoder, segments: list[Segment]) -> Encoded:
    return encoder(segments)
