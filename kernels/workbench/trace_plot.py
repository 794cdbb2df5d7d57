"""Plots a traced warp: the fragments of one mma, or the banks that one ldmatrix reads."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common import plots
from kernels.workbench.emulator import Event
from kernels.workbench.programs import values_of

WARP = 32


def first_of(events: Sequence[Event], prefix: str) -> list[Event]:
    """Return the events of the first warp operation with this prefix, by lane; empty if there is none."""
    named = [event for event in events if event.operation.startswith(prefix)]
    if not named:
        return []
    place, warp = named[0].place, named[0].thread // WARP
    lanes: dict[int, Event] = {}
    for event in named:
        if event.place == place and event.thread // WARP == warp:
            lanes.setdefault(event.thread % WARP, event)
    return [lanes[lane] for lane in sorted(lanes)]


def fragments(lanes: Sequence[Event]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return name, values and owning lanes of a, b and the new c."""
    depth = 8 if lanes[0].operation.endswith("tf32") else 16
    pictures = []
    for name, shape, part in (("a", (16, depth), 0), ("b", (depth, 8), 1), ("c", (16, 8), 3)):
        values, owner = np.zeros(shape), np.zeros(shape, dtype=int)
        for lane, event in enumerate(lanes):
            for i, value in enumerate(values_of(event, (), "float32")[part]):
                values[place(name, depth, lane, i)] = value
                owner[place(name, depth, lane, i)] = lane
        pictures.append((name, values, owner))
    return pictures


def place(name: str, depth: int, lane: int, i: int) -> tuple[int, int]:
    """Return row and column of element i of a lane's fragment of a (16, depth), b (depth, 8) or c (16, 8).

    PTX ISA, "Matrix Fragments", with groupID g and threadID_in_group t.

    >>> place("a", 16, lane=5, i=3)
    (9, 3)
    """
    g, t = divmod(lane, 4)
    if name == "c":
        return g + i // 2 * 8, t * 2 + i % 2
    if depth == 8:
        return (g + i % 2 * 8, t + i // 2 * 4) if name == "a" else (t + i * 4, g)
    return (
        (g + i // 2 % 2 * 8, t * 2 + i % 2 + i // 4 * 8) if name == "a" else (t * 2 + i % 2 + i // 2 * 8, g)
    )


def addresses(lanes: Sequence[Event]) -> np.ndarray:
    """Return (matrices, 8): the byte in shared memory where each row of each matrix of an ldmatrix begins."""
    count = {"x1": 1, "x2": 2, "x4": 4}[lanes[0].operation.split(".")[1]]
    return np.array([int(event.memory.rsplit(" ", 1)[1]) for event in lanes[: 8 * count]]).reshape(count, 8)


def unswizzled(rows: np.ndarray, row_bytes: int) -> np.ndarray:
    """Return the addresses that the same rows would have without the swizzle of 16-byte chunks.

    All rows of a matrix read the same chunk; any chunk gives the same banks.

    >>> unswizzled(np.array([[0, 144, 288]]), 128).tolist()
    [[0, 128, 256]]
    """
    return rows // row_bytes * row_bytes + rows[:, :1] % row_bytes


def banks(rows: np.ndarray) -> np.ndarray:
    """Return (matrices, 32): how many of the 8 rows of each matrix use each bank; above 1 they conflict."""
    hits = np.zeros((len(rows), 32), dtype=int)
    for matrix, row in np.ndindex(rows.shape):
        hits[matrix, (rows[matrix, row] // 4 + np.arange(4)) % 32] += 1
    return hits


def pictures(events: Sequence[Event], row_bytes: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Return title, colours and numbers of each plot: of the first mma among the events, else of the first ldmatrix."""
    if lanes := first_of(events, "mma"):
        return [(f"{name}: lane of each element", values, owner) for name, values, owner in fragments(lanes)]
    if lanes := first_of(events, "ldmatrix"):
        rows = addresses(lanes)
        ways = {"as the kernel stores them": rows}
        if row_bytes:
            ways["without a swizzle"] = unswizzled(rows, row_bytes)
        title = "rows of each 8x8 matrix on each bank, "
        return [(title + way, hits, hits) for way, hits in ((way, banks(rows)) for way, rows in ways.items())]
    raise ValueError("nothing to draw: no mma and no ldmatrix on the lines shown, choose others by --line")


def plot(events: Sequence[Event], path: Path, row_bytes: int = 0) -> None:
    """Draw `pictures` next to each other and write them to `path`."""
    drawn = pictures(events, row_bytes)
    figure = plots.figure(7 * len(drawn), 7)
    top = max(values.max() for _, values, _ in drawn)
    for axes, (title, values, numbers) in zip(
        np.atleast_1d(figure.subplots(1, len(drawn))), drawn, strict=True
    ):
        scale = {} if values is not numbers else {"vmin": 0, "vmax": top}
        axes.imshow(values, cmap="viridis", aspect="auto", **scale)
        axes.set_title(title)
        for (row, column), number in np.ndenumerate(numbers):
            axes.text(column, row, str(number), ha="center", va="center", fontsize=6, color="white")
    plots.save(figure, path)
