"""--profile: a trace of a few steps for chrome://tracing or ui.perfetto.dev, and the ten costliest operations."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile, schedule

WAIT, WARM_UP, RECORDED = 2, 1, 3  # the first steps allocate and compile: they say little about the others
COSTLIEST = 10


@contextlib.contextmanager
def profiled(directory: Path, device: torch.device, *, wanted: bool) -> Iterator[Callable[[], None]]:
    """Yields what to call after each step; does nothing unless `wanted`."""
    if not wanted:
        yield lambda: None
        return
    directory.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    plan = schedule(wait=WAIT, warmup=WARM_UP, active=RECORDED, repeat=1)
    order = f"self_{device.type if device.type == 'cuda' else 'cpu'}_time_total"

    def write(profiler: profile) -> None:
        profiler.export_chrome_trace(str(directory / "trace.json"))
        table = profiler.key_averages().table(sort_by=order, row_limit=COSTLIEST)
        (directory / "operations.txt").write_text(table, encoding="utf-8")
        Console(stderr=True).print(table, markup=False, highlight=False, soft_wrap=True)

    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        yield profiler.step
