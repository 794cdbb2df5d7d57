"""A process that reads pages for us, with a limit of time and memory for each: a page that hangs, eats memory or
crashes the parser costs that page and nothing else.

Pages go to the process in batches, results come back one by one, so the page that is being read is known when the
process has to be killed. A new one takes over with the next page.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from common.workers import no_main_module
from data.web.records import MissingLibrary

BATCH = 64  # items that are sent at a time
BATCH_BYTES = 1 << 21
START_SECONDS = 300  # imports on a busy machine
PATIENCE = 20


class Failure(NamedTuple):
    """Why an item has no result."""

    reason: str


class Ready(NamedTuple):
    """The process has built what it needs."""


class Fatal(NamedTuple):
    """What went wrong for every item alike: a library that is missing."""

    message: str


class Guard:
    """Apply `build(*args)(item)` to items in another process. Use as a context manager."""

    def __init__(self, build: Callable[..., Callable], args: tuple, seconds: float, memory_mb: int) -> None:
        self._settings = (build, args, memory_mb * 1_000_000)
        self._seconds = seconds
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> "Guard":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def map(self, items: Iterable[tuple[Any, int]]) -> Iterator[tuple[Any, Any]]:
        """Yield (item, result or Failure) in order for each (item, size in bytes). The next batch is read meanwhile."""
        waiting: list[Any] = []
        for batch in _batches(items):
            yield from self._replies(waiting)
            self._send(batch)
            waiting = batch
        yield from self._replies(waiting)

    def _replies(self, items: list[Any]) -> Iterator[tuple[Any, Any]]:
        for place, item in enumerate(items):
            reply = self._reply()
            if isinstance(reply, Failure) and self._process is None and items[place + 1 :]:
                self._send(items[place + 1 :])
            yield item, reply

    def _send(self, batch: list[Any]) -> None:
        if self._process is None:
            self._start()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died: the missing reply tells
            self._pipe.send(batch)

    def _reply(self) -> Any:
        """Return the next result; after a Failure of the process itself it is stopped."""
        try:
            if self._answers():
                reply = self._pipe.recv()
                if isinstance(reply, Fatal):
                    raise MissingLibrary(reply.message)
                return reply
            reason = f"took longer than {self._seconds:g} s"
        except (EOFError, OSError):
            self._process.join(5)
            reason = "crashed its process"
        self._stop()
        return Failure(reason)

    def _answers(self) -> bool:
        """True if a reply, or the end of the process, comes before its time is over.

        Its time is that of the processor, so that a page is not given up because the machine is busy with something
        else; a process that only waits has `PATIENCE` times as long.
        """
        start, used = time.monotonic(), cpu_seconds(self._process.pid)
        while not self._pipe.poll(self._seconds / 4):
            waited = time.monotonic() - start
            if cpu_seconds(self._process.pid) - used > self._seconds or waited > PATIENCE * self._seconds:
                return False
        return True

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *self._settings), daemon=True)
        with no_main_module():
            self._process.start()
        theirs.close()
        try:
            first = self._pipe.recv() if self._pipe.poll(START_SECONDS) else Fatal("it took too long")
        except EOFError:
            first = Fatal("it ended")
        if isinstance(first, Fatal):
            self._stop()
            raise MissingLibrary(f"the process that reads pages does not start: {first.message}")

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _batches(items: Iterable[tuple[Any, int]]) -> Iterator[list[Any]]:
    batch, total = [], 0
    for item, size in items:
        batch.append(item)
        total += size
        if len(batch) >= BATCH or total >= BATCH_BYTES:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def _serve(pipe: Connection, build: Callable[..., Callable], args: tuple, memory: int) -> None:
    """Answer batches until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        call = build(*args)
    except (ValueError, OSError) as error:
        pipe.send(Fatal(str(error)))
        return
    limit_memory(memory)
    pipe.send(Ready())
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            for item in pipe.recv():
                pipe.send(_result(call, item))


def _result(call: Callable[[Any], Any], item: Any) -> Any:
    try:
        return call(item)
    except MissingLibrary as error:
        return Fatal(str(error))
    except MemoryError:
        return Failure("took too much memory")
    except Exception as error:  # a parser may raise anything, and no page may end the crawl
        return Failure(f"parser error ({type(error).__name__})")


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process; the time of day where the system does not say, or the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def limit_memory(extra: int) -> None:
    """Let this process take `extra` bytes more than it has now; nothing happens where the system has no such limit."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + extra, resource.RLIM_INFINITY))
