"""Pictures of a traced warp: the fragments of one mma, or the banks that one ldmatrix reads."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common import plots
from kernels.emulator import Event
from kernels.trace import values_of

WARP = 32


def first_of(events: Sequence[Event], prefix: str) -> list[Event]:
    """The 32 lanes of the first warp operation whose name begins so, by lane; empty where there is none."""
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
    """Name, values and owning lanes of a, b and the new c."""
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
    """Row and column of element i of a lane's fragment of a (16, depth), b (depth, 8) or c (16, 8).

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


def banks(lanes: Sequence[Event]) -> np.ndarray:
    """(matrices, 32): how many of the 8 rows of each matrix fall on each bank; above 1 they take turns."""
    count = {"x1": 1, "x2": 2, "x4": 4}[lanes[0].operation.split(".")[1]]
    hits = np.zeros((count, 32), dtype=int)
    for lane, event in enumerate(lanes[: 8 * count]):
        word = int(event.memory.rsplit(" ", 1)[1]) // 4
        hits[lane // 8, (word + np.arange(4)) % 32] += 1
    return hits


def plot(events: Sequence[Event], path: Path) -> None:
    """Draws the first mma among the events, else the first ldmatrix, and writes the picture to `path`."""
    if lanes := first_of(events, "mma"):
        pictures = fragments(lanes)
        titles = [f"{name}: lane of each element" for name, _, _ in pictures]
        cells = [(values, owner) for _, values, owner in pictures]
    elif lanes := first_of(events, "ldmatrix"):
        hits = banks(lanes)
        titles, cells = ["rows of each 8x8 matrix on each bank"], [(hits, hits)]
    else:
        raise ValueError(
            "nothing to draw: no mma and no ldmatrix on the lines shown, choose others by --lines"
        )
    figure = plots.figure(7 * len(cells), 7)
    for axes, title, (values, numbers) in zip(
        np.atleast_1d(figure.subplots(1, len(cells))), titles, cells, strict=True
    ):
        axes.imshow(values, cmap="viridis", aspect="auto")
        axes.set_title(title)
        for (row, column), number in np.ndenumerate(numbers):
            axes.text(column, row, str(number), ha="center", va="center", fontsize=6, color="white")
    plots.save(figure, path)
