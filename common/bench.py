"""Benchmarks: ours and its peers timed in turn in one process; medians, one table, one JSON layout.

Every row holds our figure, the peer's, and a ratio above 1 if ours is better.
"""

import dataclasses
import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.files import write_json


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a benchmark: `ours` and `peer_value` in `unit`; `peer` names the other side, `goal` a ratio."""

    name: str
    ours: float
    unit: str
    peer: str = ""
    peer_value: float | None = None
    less_is_better: bool = False
    goal: float | None = None  # the ratio to reach
    note: str = ""  # what the figure needs to be judged, such as its spread

    @property
    def ratio(self) -> float | None:
        """Return how many times better ours is; None without a peer."""
        if not self.peer_value or not self.ours:
            return None
        return self.peer_value / self.ours if self.less_is_better else self.ours / self.peer_value


def seconds(call: Callable[[], Any]) -> float:
    """Return the wall-clock seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def medians(
    calls: Mapping[str, Callable[[], Any]], repeat: int = 5, warmup: int = 1, settle: int = 0
) -> dict[str, float]:
    """Return the median seconds of each call; the calls take turns, so that noise hits all of them equally.

    `settle` unmeasured calls precede each measured one, so that no call is timed with the caches of another.
    """
    for _ in range(warmup):
        for call in calls.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeat):
        for name, call in calls.items():
            for _ in range(settle):
                call()
            times[name].append(seconds(call))
    return {name: statistics.median(values) for name, values in times.items()}


# Virtual machines hide a processor's name, not its maker, family and model number, which say how it computes.
GENERATIONS = {
    ("AuthenticAMD", "25", "17"): "Zen 4",
    ("AuthenticAMD", "26", "2"): "Zen 5",
    ("GenuineIntel", "6", "85"): "Skylake",
    ("GenuineIntel", "6", "143"): "Sapphire Rapids",
    ("GenuineIntel", "6", "207"): "Emerald Rapids",
}


def processor() -> tuple[str, str]:
    """Return the processor's name for people, and a short one for file names."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name", platform.processor() or platform.machine())
    number = tuple(facts.get(key, "") for key in ("vendor_id", "cpu family", "model"))
    generation = GENERATIONS.get(number, " ".join(number).strip() or name)
    return f"{name} ({generation})", generation.lower().replace(" ", "-")


def machine() -> str:
    """Describe the processor, its cores, the Python that runs, and the GPU if torch sees one."""
    host = (
        f"{processor()[0]}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    )
    torch = sys.modules.get("torch")
    return f"{host}, {torch.cuda.get_device_name()}" if torch and torch.cuda.is_available() else host


def report(benchmark: str, rows: list[Row], json_path: str | Path | None = None) -> None:
    """Print the rows as a table and, with a path, write them as JSON."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{benchmark} — {machine()}", title_justify="left")
    goals = ("goal",) if any(row.goal for row in rows) else ()
    notes = ("note",) if any(row.note for row in rows) else ()
    for column in ("name", "ours", "unit", "peer", "peer's", "ratio", *goals, *notes):
        table.add_column(column, justify="left" if column in ("name", "unit", "peer", "note") else "right")
    for row in rows:
        values = [row.name, short(row.ours), row.unit, row.peer, short(row.peer_value), short(row.ratio)]
        table.add_row(*values, *([short(row.goal)] if goals else ()), *([row.note] if notes else ()))
    Console().print(table)
    if json_path:
        write(benchmark, rows, json_path)


def write(benchmark: str, rows: list[Row], path: str | Path) -> None:
    """Write the rows as JSON.

    In a folder the file is named after the benchmark and the processor, such as bpe_train-zen-5.json.
    """
    if Path(path).is_dir():
        path = Path(path) / f"{benchmark.replace(' ', '_')}-{processor()[1]}.json"
    write_json(path, as_json(benchmark, rows))


def as_json(benchmark: str, rows: list[Row]) -> dict[str, Any]:
    """Return the layout that every benchmark writes; only rows with a goal or a note have the key "goal" or "note"."""
    return {
        "benchmark": benchmark,
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "rows": [_row(row) for row in rows],
    }


def _row(row: Row) -> dict[str, Any]:
    keys = (
        "name",
        "ours",
        "unit",
        "peer",
        "peer_value",
        "ratio",
        *(name for name in ("goal", "note") if getattr(row, name)),
    )
    return {key: getattr(row, key) for key in keys}


def short(value: float | None) -> str:
    """Format with three digits, or as whole thousands; None is a dash.

    >>> short(12345.6), short(0.01234), short(None)
    ('12,346', '0.0123', '–')
    """
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
