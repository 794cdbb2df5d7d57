"""Worker processes for counting and for batches, started by spawn; a user's script needs no guard."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextvars import ContextVar
from typing import Any

MAX_WORKERS = 16
WORTH_A_WORKER = 4_000_000  # characters: below this, starting a process takes longer than it saves


def sensible_workers(num_workers: int | None, size: int | None, worth: int = WORTH_A_WORKER) -> int:
    """Return how many processes to use for `size` characters (None: unknown, taken as large); 1 is this one only.

    A number that was asked for is taken, except in a daemon process, which may not have children.
    """
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers is {num_workers}: give 1 or more, or None to have it chosen")
    if multiprocessing.current_process().daemon:
        return 1
    if num_workers is not None:
        return num_workers
    most = MAX_WORKERS if size is None else size // worth
    return max(1, min(most, MAX_WORKERS, available_cores()))


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Pool:
    """`call(shared, job)` over processes that stay ready for the next jobs until the pool is dropped.

    `shared` is sent to each process once. The processes begin at the first job, and end with this one.
    """

    def __init__(self, call: Callable[[Any, Any], Any], shared: Any, num_workers: int) -> None:
        self.num_workers = num_workers
        self.owner = os.getpid()  # a forked process cannot use the pool
        # As bytes, so that nothing that owns a pool is kept by it.
        self._settings = (pickle.dumps((call, shared)),)
        self._executor: ProcessPoolExecutor | None = None

    def submit(self, job: Any) -> Future[Any]:
        """Start one job and return its future; wait for it inside `explained`."""
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self.num_workers, context, _keep, self._settings)
        with no_main_module():
            return self._executor.submit(_run, job)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Raise ChildProcessError if a process dies; the next job starts new ones."""
        try:
            yield
        except BrokenProcessPool as error:
            self._executor = None
            raise ChildProcessError(
                "a worker process died, most often because memory ran out: try fewer workers"
            ) from error

    def map(self, jobs: Iterable[Any]) -> Iterator[Any]:
        """Yield the results in the order of the jobs. Only a few jobs are in flight, so they may be endless."""
        in_flight: deque[Future[Any]] = deque()
        try:
            with self.explained():
                for job in jobs:
                    in_flight.append(self.submit(job))
                    if len(in_flight) > 2 * self.num_workers:
                        yield in_flight.popleft().result()
                while in_flight:
                    yield in_flight.popleft().result()
        finally:
            settle(in_flight)


def settle(futures: Iterable[Future[Any]]) -> None:
    """Cancel the jobs that have not begun and wait for the others."""
    wait([future for future in futures if not future.cancel()])


Map = Callable[[Callable[[Any, Any], Any], Any, Iterable[Any]], Iterator[Any]]
_elsewhere: ContextVar[Map | None] = ContextVar("elsewhere", default=None)


@contextlib.contextmanager
def mapping_by(elsewhere: Map) -> Iterator[None]:
    """Let `ordered_map` call `elsewhere(call, shared, jobs)` in this block, as for a cluster (common/cluster.py)."""
    token = _elsewhere.set(elsewhere)
    try:
        yield
    finally:
        _elsewhere.reset(token)


def ordered_map(
    call: Callable[[Any, Any], Any], shared: Any, jobs: Iterable[Any], num_workers: int
) -> Iterator[Any]:
    """Yield `call(shared, job)` for each job, in order, over processes that end with the last one.

    One worker means this process. Inside `mapping_by` the jobs go elsewhere.
    """
    if (elsewhere := _elsewhere.get()) is not None:
        return elsewhere(call, shared, jobs)
    return (
        Pool(call, shared, num_workers).map(jobs) if num_workers > 1 else (call(shared, job) for job in jobs)
    )


_kept: tuple[Callable[[Any, Any], Any], Any]


def _keep(settings: bytes) -> None:
    """Prepare a worker: it ignores Ctrl-C, which is for its parent, and ends with its parent."""
    global _kept
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    _kept = pickle.loads(settings)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(job: Any) -> Any:
    call, shared = _kept
    return call(shared, job)


@contextlib.contextmanager
def no_main_module() -> Iterator[None]:
    """Hide the user's script while processes start: multiprocessing would run it again in each of them.

    Workers import what they need from this package. So a script without `if __name__ == "__main__"`, a
    program read from standard input and an interactive session can all use workers.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
