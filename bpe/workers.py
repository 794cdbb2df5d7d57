"""Worker processes for counting and for batches, started by spawn; a user's script needs no guard."""

import contextlib
import multiprocessing
import os
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

MAX_WORKERS = 16
WORTH_A_WORKER = 4_000_000  # characters: below this, starting a process takes longer than it saves


def sensible_workers(num_workers: int | None, size: int | None, worth: int = WORTH_A_WORKER) -> int:
    """How many processes to use for `size` characters (None: unknown, taken as large); 1 means this process
    only.

    A number that was asked for is taken, except in a daemon process, which may not have children.
    """
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers is {num_workers}: give 1 or more, or None to have it chosen")
    if multiprocessing.current_process().daemon:
        return 1
    if num_workers is not None:
        return num_workers
    most = MAX_WORKERS if size is None else size // worth
    return max(1, min(most, MAX_WORKERS, _available_cores()))


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ordered_map(
    call: Callable[[Any, Any], Any], shared: Any, jobs: Iterable[Any], num_workers: int
) -> Iterator[Any]:
    """`call(shared, job)` for each job, in order, over processes; `shared` is sent to each of them once.

    Only a few jobs are in flight, so `jobs` may be an endless stream. One worker means this process.
    """
    if num_workers == 1:
        yield from (call(shared, job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, _keep, (call, shared))
    in_flight: deque[Future[Any]] = deque()
    try:
        for job in jobs:
            with _no_main_module():
                in_flight.append(pool.submit(_run, job))
            if len(in_flight) > 2 * num_workers:
                yield in_flight.popleft().result()
        while in_flight:
            yield in_flight.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process ended at once, most often for want of memory: try num_workers=1"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_kept: tuple[Callable[[Any, Any], Any], Any]


def _keep(call: Callable[[Any, Any], Any], shared: Any) -> None:
    """In a worker, before its first job."""
    global _kept
    _kept = call, shared


def _run(job: Any) -> Any:
    call, shared = _kept
    return call(shared, job)


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """While processes start, hides the user's script, which multiprocessing would run again in each of them.

    Workers import what they need from this package. So a script without `if __name__ == "__main__"`, a
    program read from standard input and an interactive session can all use workers.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
