"""Many texts to ids, over processes that stay ready between calls.

One process encodes about 100 MB a second, so transfer has to be cheap. A pipe would copy everything several times,
through the kernel; here texts and ids are in blocks of shared memory, which are reused, and the pipe carries only
names and lengths. The calling process encodes, too: what it does itself needs no transfer.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from multiprocessing.shared_memory import SharedMemory
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bpe.pretokenize import blocks
from common.workers import Pool, settle

if TYPE_CHECKING:
    from bpe import Tokenizer

BATCH = 1 << 19  # characters that a process gets at once
SHARED = "/dev/shm"  # where Linux keeps shared memory
LARGEST = 1 << 23  # bytes in a block of shared memory, of which there may not be much; more goes by the pipe
IN_FLIGHT = 4  # batches of each worker: enough while this process encodes one and its caller makes lists
AHEAD = 16  # batches that may be finished before the one that is next

Part = tuple[str, bool]  # a text, or a part of a long one, and whether the text ends with it


class Job(NamedTuple):
    """Texts in `encoding`, one after another in the block `name`, or in `data`."""

    name: str
    data: bytes
    lengths: list[int]  # bytes of each
    encoding: str
    special_tokens: Sequence[str]


class Reply(NamedTuple):
    """Packed ids of each text of a job, one after another in its block from `start` on, or in `data`."""

    start: int
    data: bytes
    lengths: list[int]  # bytes of each


class BatchEncoder:
    """Encodes in `num_workers` processes, of which this one is the first."""

    def __init__(self, tokenizer: Tokenizer, num_workers: int) -> None:
        self.num_workers = num_workers
        self._itemsize = tokenizer.dtype.itemsize
        self.pool = Pool(_encode_job, tokenizer, num_workers - 1)

    def encode(
        self, tokenizer: Tokenizer, texts: Iterable[str], special_tokens: Sequence[str]
    ) -> Iterator[np.ndarray]:
        """Yield the ids of each text, an array (n,), in order."""
        ids = bytearray()
        with contextlib.closing(self._packed(tokenizer, texts, special_tokens)) as found:
            for packed, last in found:
                ids += packed
                if last:
                    yield np.frombuffer(ids, tokenizer.dtype)
                    ids = bytearray()

    def _packed(
        self, tokenizer: Tokenizer, texts: Iterable[str], special_tokens: Sequence[str]
    ) -> Iterator[tuple[memoryview, bool]]:
        """Yield the packed ids of each part, and True if a text ends with it."""
        waiting: deque[_Sent] = deque()
        with contextlib.ExitStack() as stack, self.pool.explained():
            free = _Blocks(stack)
            stack.callback(lambda: settle(sent.reply for sent in waiting))  # before the blocks go
            for batch in _batches(_parts(texts, special_tokens, tokenizer.pattern.name is not None)):
                busy = sum(not sent.reply.done() for sent in waiting)
                if busy < IN_FLIGHT * self.pool.num_workers:
                    waiting.append(self._send(batch, special_tokens, free))
                else:
                    waiting.append(_encode_here(tokenizer, batch, special_tokens))
                # One at most: what the caller does with it takes time, and the workers need new batches first.
                if waiting[0].reply.done() or len(waiting) > AHEAD * self.num_workers:
                    yield from free.read(waiting.popleft())
            while waiting:
                yield from free.read(waiting.popleft())

    def _send(self, batch: list[Part], special_tokens: Sequence[str], free: _Blocks) -> _Sent:
        # Python has strings in one of these forms: making UTF-8 of what is not ASCII, and reading it, takes five times
        # as long as copying, a sixth of the time of encoding.
        encoding = "ascii" if all(text.isascii() for text, _ in batch) else "utf-16-le"
        texts = [text.encode(encoding, "surrogatepass") for text, _ in batch]
        data, lengths, block = b"".join(texts), [len(text) for text in texts], None
        if (
            len(data) * (1 + 1.5 * self._itemsize) <= LARGEST
        ):  # an id for each of the three bytes of two in UTF-16
            block = free.take()
        if block:
            block.buf[: len(data)] = data
        job = Job(block.name if block else "", b"" if block else data, lengths, encoding, special_tokens)
        return _Sent(self.pool.submit(job), [last for _, last in batch], block)


class _Sent(NamedTuple):
    """A batch on its way."""

    reply: Future[Reply]
    ends: list[bool]
    block: SharedMemory | None = None


def _room() -> int:
    """Return how many blocks shared memory can hold: a container has 64 MB of it, and writing to more is fatal."""
    return shutil.disk_usage(SHARED).free // LARGEST if os.path.isdir(SHARED) else sys.maxsize


class _Blocks:
    """Blocks of shared memory that are reused; `stack` removes them in the end."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._free: list[SharedMemory] = []
        self._stack = stack
        self._room = _room()

    def take(self) -> SharedMemory | None:
        """Return a block that is not in use, or None if there is no room for another one."""
        if self._free:
            return self._free.pop()
        if not self._room:
            return None
        self._room -= 1
        block = SharedMemory(create=True, size=LARGEST)
        self._stack.callback(block.unlink)
        self._stack.callback(block.close)
        return block

    def read(self, sent: _Sent) -> Iterator[tuple[memoryview, bool]]:
        """Yield the packed ids of each part of a batch; then its block is free."""
        reply = sent.reply.result()
        start = reply.start
        with memoryview(sent.block.buf if sent.block else reply.data) as source:
            for length, last in zip(reply.lengths, sent.ends, strict=True):
                with source[start : start + length] as packed:
                    yield packed, last
                start += length
        if sent.block:
            self._free.append(sent.block)


def _parts(texts: Iterable[str], special_tokens: Sequence[str], named: bool) -> Iterator[Part]:
    """Yield the texts, a long one in parts that can be encoded apart."""
    for text in texts:
        part = ""
        for after in blocks([text], special_tokens, BATCH) if named and len(text) > 2 * BATCH else [text]:
            if part:
                yield part, False
            part = after
        yield part, True


def _batches(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Yield consecutive parts of about BATCH characters together."""
    batch: list[Part] = []
    size = 0
    for part in parts:
        batch.append(part)
        size += len(part[0])
        if size >= BATCH // 2:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode_each(tokenizer: Tokenizer, texts: Iterable[str], special_tokens: Sequence[str]) -> Reply:
    ids = [tokenizer.encode_to_numpy(text, special_tokens).data for text in texts]
    return Reply(0, b"".join(ids), [packed.nbytes for packed in ids])


def _encode_here(tokenizer: Tokenizer, batch: list[Part], special_tokens: Sequence[str]) -> _Sent:
    done: Future[Reply] = Future()
    done.set_result(_encode_each(tokenizer, [text for text, _ in batch], special_tokens))
    return _Sent(done, [last for _, last in batch])


def _encode_job(tokenizer: Tokenizer, job: Job) -> Reply:
    """Do a job, in a worker."""
    block = _attached(job.name) if job.name else None
    source = block.buf if block else memoryview(job.data)
    reply = _encode_each(tokenizer, _read_texts(source, job), job.special_tokens)
    if block is None:
        return reply
    start = sum(job.lengths)
    block.buf[start : start + len(reply.data)] = reply.data
    return Reply(start, b"", reply.lengths)


def _read_texts(source: memoryview, job: Job) -> Iterator[str]:
    start = 0
    for length in job.lengths:
        yield str(source[start : start + length], job.encoding, "surrogatepass")
        start += length


@functools.lru_cache(maxsize=8)
def _attached(name: str) -> SharedMemory:
    """Return a block of another process; mapping it again for every job would cost a page fault per 4 KiB."""
    return SharedMemory(name)
