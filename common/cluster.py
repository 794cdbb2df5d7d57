"""Run jobs in processes of this machine, or on a Ray cluster. The results are the same, in the same order.

    with cluster.engine(machines):                          # machines: Machines
        for result in workers.ordered_map(call, shared, jobs, num_workers): ...

Every call of `ordered_map` inside goes to the cluster: counting for a tokenizer, encoding, pages of the web. Ray (extra
ray) is imported when it is used. A job whose worker or machine dies is done again elsewhere. Files are read and written
by the jobs, so all machines need the same paths, and this project in its place or installed.
"""

import contextlib
import dataclasses
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from common import workers

ROOT = Path(__file__).resolve().parents[1]
RETRIES = 3  # of a job whose worker died
ANSWER_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machines:
    """The options that say where jobs run."""

    engine: Literal["processes", "ray"] = "processes"
    """processes of this machine, or ray: as many machines as a Ray cluster has (extra ray)."""
    address: str | None = None
    """With --engine ray: the cluster, auto or HOST:PORT; by default one is started on this machine."""

    def check_machines(self) -> None:
        """Raise ValueError for an address that nothing would use, or for what is no address."""
        if self.address and self.engine != "ray":
            raise ValueError("--address is for --engine ray: add it, or leave the address out")
        if self.address and self.address != "auto":
            host_and_port(self.address)


def host_and_port(address: str) -> tuple[str, int]:
    """Return the parts of HOST:PORT; ValueError for another text.

    >>> host_and_port("10.0.0.5:6379")
    ('10.0.0.5', 6379)
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isascii() and port.isdigit()):
        raise ValueError(f"--address {address} must be auto or HOST:PORT, such as 10.0.0.5:6379")
    return host, int(port)


@contextlib.contextmanager
def engine(machines: Machines, num_workers: int | None = None) -> Iterator[None]:
    """Send every `ordered_map` in this block to the machines; ValueError if they cannot be reached.

    `num_workers` is how many jobs run at a time on a cluster that is started here, one for each core if None.
    """
    if machines.engine == "processes":
        yield
        return
    ray = connected(machines.address, num_workers)
    try:
        with workers.mapping_by(lambda call, shared, jobs: mapped(ray, call, shared, jobs)):
            yield
    finally:
        ray.shutdown()


def connected(address: str | None, num_workers: int | None) -> Any:
    """Connect to a cluster, or start one on this machine; return the module ray."""
    try:
        import ray
    except ImportError as error:
        raise ValueError(f"--engine ray needs the library ray ({error}): pip install 'slm[ray]'") from error
    if address and address != "auto":
        try:
            socket.create_connection(host_and_port(address), ANSWER_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"no Ray cluster answers at {address} ({error}): start one by ray start --head"
            ) from error
    own = (
        {} if address else {"num_cpus": num_workers or workers.available_cores(), "include_dashboard": False}
    )
    environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    try:
        ray.init(
            address or "local", log_to_driver=False, logging_level="error", runtime_env=environment, **own
        )
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(
            f"no Ray cluster at {address or 'this machine'} ({str(error).splitlines()[0]})"
        ) from error
    return ray


def mapped(ray: Any, call: Callable[[Any, Any], Any], shared: Any, jobs: Iterable[Any]) -> Iterator[Any]:
    """Yield `call(shared, job)` for each job in order; twice as many jobs as cores are under way."""
    remote = ray.remote(max_retries=RETRIES, retry_exceptions=False)(_there)
    kept, folder = ray.put(shared), os.getcwd()
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    in_flight: deque[Any] = deque()
    try:
        for job in jobs:
            in_flight.append(remote.remote(folder, call, kept, job))
            if len(in_flight) > most:
                yield _result(ray, in_flight.popleft())
        while in_flight:
            yield _result(ray, in_flight.popleft())
    finally:
        for reference in in_flight:
            ray.cancel(reference, force=True)


def _there(folder: str, call: Callable[[Any, Any], Any], shared: Any, job: Any) -> Any:
    """Return `call(shared, job)`, called in the folder of the driver, so that relative paths mean the same."""
    os.chdir(folder)
    return call(shared, job)


def _result(ray: Any, reference: Any) -> Any:
    """Return a job's result, or raise what it raised; ChildProcessError if its workers died again and again."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause or error from error
    except ray.exceptions.RayError as error:
        lost = str(error).splitlines()[0]
        raise ChildProcessError(
            f"a job's worker died {RETRIES + 1} times ({lost}): is there memory for it?"
        ) from error
