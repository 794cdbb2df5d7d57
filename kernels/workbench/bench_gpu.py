"""Times calls on a GPU by device events: a call as torch launches it, and the same call replayed from a CUDA graph.

*Eager* is one call after a flush of the L2 cache, between two events. The flush keeps the GPU busy while Python
queues the call, so the time includes Python's overhead only as far as it exceeds the flush.

*Graph* is the time on the GPU alone: several calls, each on separate inputs, are captured into one CUDA graph and
replayed; the inputs together exceed the L2 cache several times, so that each call reads from memory.

Everything that is captured must be set up on the capturing stream: autograd runs a backward on the stream of its
forward, and the default stream cannot be captured. So everything runs inside `own_stream`.
"""

import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from common import gpus
from common.bench import Row
from kernels.workbench.bench_cases import Turn, first_line

L2_BYTES = 256 << 20  # more than twice the L2 cache of any GPU
WARM_UP = 3


@contextlib.contextmanager
def own_stream(device: str) -> Iterator[None]:
    """Make a new stream the current one if the device is a GPU."""
    if device != "cuda":
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def eager_seconds(turns: Mapping[str, Turn], repeat: int) -> dict[str, float]:
    """Return the median seconds of each turn; the implementations alternate."""
    flush = torch.empty(L2_BYTES, dtype=torch.int8, device="cuda")
    for turn in turns.values():
        for _ in range(WARM_UP):
            turn()
    return _medians(turns, repeat, before=flush.zero_)


def graph_seconds(turns: Mapping[str, Sequence[Turn]], repeat: int) -> dict[str, float]:
    """Return the median seconds of one turn of each sequence, whose turns differ only in their inputs.

    A sequence that cannot be captured is left out with a message on stderr.
    """
    replays = {}
    for name, each in turns.items():
        try:
            replays[name] = Turn(_captured(each).replay)
        except RuntimeError as error:
            print(f"no CUDA graph of {name} ({first_line(error)})", file=sys.stderr)
    for replay in replays.values():
        replay()
    found = _medians(replays, repeat, before=lambda: None)
    return {name: seconds / len(turns[name]) for name, seconds in found.items()}


def _captured(turns: Sequence[Turn]) -> torch.cuda.CUDAGraph:
    """Return one graph of all turns, each with separate outputs: a reused output buffer would be in the cache."""
    for turn in turns:
        for _ in range(WARM_UP):
            turn()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        kept = [turn() for turn in turns]
    del kept
    return graph


def _medians(turns: Mapping[str, Turn], repeat: int, before: Callable[[], object]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(repeat):
        for name, turn in turns.items():
            with turn.around():
                before()
                times[name].append(_event_seconds(turn.call))
    return {name: statistics.median(values) for name, values in times.items()}


def _event_seconds(call: Callable[[], object]) -> float:
    """Return the seconds between two events around one call, on the current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def rotations(bytes_of_one: int) -> int:
    """Return how many sets of inputs a graph needs so that none is in the cache when it is used again.

    >>> rotations(1 << 30), rotations(25 << 20)
    (2, 12)
    """
    return 1 + -(-L2_BYTES // bytes_of_one)


def ceilings(repeat: int) -> list[Row]:
    """Return rows for the peak that this GPU reaches: a copy of 1 GiB and a bfloat16 product of 8192 squared."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = eager_seconds(
        {"copy": Turn(lambda: target.copy_(source)), "product": Turn(lambda: a @ b)}, repeat
    )
    sheet = gpus.datasheet(torch.cuda.get_device_name())
    promised = "datasheet" if sheet else ""
    copied, computed = 2 * source.nbytes / 1e9, 2 * 8192**3 / 1e12
    return [
        Row("GPU memory, copy", copied / times["copy"], "GB/s", promised, sheet and sheet.memory),
        Row(
            "GPU bfloat16 product", computed / times["product"], "TFLOP/s", promised, sheet and sheet.bfloat16
        ),
    ]
