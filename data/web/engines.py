"""Who does the work: this process, processes of this machine, or a Ray cluster. All return results in the order of
the jobs.
"""

import contextlib
from collections.abc import Iterator
from typing import Protocol

from common.workers import ordered_map, sensible_workers
from data.web.dedup import Mapper


class Choice(Protocol):
    """The options that name an engine."""

    workers: int | None
    engine: str
    address: str | None


@contextlib.contextmanager
def open_engine(choice: Choice, num_jobs: int) -> Iterator[Mapper]:
    """Yield map(call, shared, jobs), which yields call(shared, job) in the order of the jobs."""
    workers = min(sensible_workers(choice.workers, None), max(num_jobs, 1))
    yield lambda call, shared, jobs: ordered_map(call, shared, jobs, workers)
