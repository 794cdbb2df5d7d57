"""python -m experiments compare RUN RUN …: validation loss of several runs over tokens and over time, and a table."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from common import plots
from training.watch import read_log

AXES = {"tokens": "tokens", "seconds": "seconds of training"}


@dataclasses.dataclass(frozen=True)
class Compare:
    """Draw the losses of several runs over tokens and over time, and list their last values."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of runs, finished or not."""
    out: Path = Path("compare.png")
    """The plot: .png, .svg or .pdf."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """The evaluations of a run so far."""

    name: str
    evaluations: list[dict[str, Any]]

    @property
    def best(self) -> float:
        """Return the lowest validation loss, in nats per token."""
        return min(record["val_loss"] for record in self.evaluations)

    @property
    def end(self) -> dict[str, Any]:
        """Return the last evaluation."""
        return self.evaluations[-1]


def read_curve(run: Path) -> Curve:
    """Read the evaluations in RUN/log.jsonl."""
    log = run / "log.jsonl"
    if not log.is_file():
        raise FileNotFoundError(
            f"{run} holds no run (no log.jsonl): give directories that train.py has written"
        )
    evaluations = [record for record in read_log(log) if "val_loss" in record and "seconds" in record]
    if not evaluations:
        raise ValueError(f"{run} has not been evaluated yet: wait for its first --eval-every steps")
    return Curve(run.name, evaluations)


def compare(options: Compare) -> None:
    """Read all runs, then draw and print."""
    curves = [read_curve(run) for run in options.runs]
    if not curves:
        raise ValueError("name at least one run: python -m experiments compare RUN RUN …")
    draw(curves, options.out)
    table = Table("run", "steps", "tokens", "seconds", "tokens/s", "best val loss", "last val loss")
    for curve in curves:
        end = curve.end
        speed = end["tokens"] / end["seconds"]
        table.add_row(
            curve.name,
            f"{end['step'] + 1:,}",
            f"{end['tokens']:,}",
            f"{end['seconds']:.1f}",
            f"{speed:,.0f}",
            f"{curve.best:.4f}",
            f"{end['val_loss']:.4f}",
        )
    Console().print(table)
    print(f"{options.out}: validation loss over tokens and over time")


def draw(curves: list[Curve], path: Path) -> None:
    """Draw two panels, one for each axis, with a curve for each run."""
    figure = plots.figure(11, 4)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (axis, label) in zip(panels, AXES.items(), strict=True):
        for curve in curves:
            points = [(record[axis], record["val_loss"]) for record in curve.evaluations]
            panel.plot(*zip(*points, strict=True), marker=".", label=curve.name)
        panel.set(xlabel=label)
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="validation loss, nats per token")
    panels[1].legend()
    plots.save(figure, path)
