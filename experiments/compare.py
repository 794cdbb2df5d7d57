"""python -m training compare RUN RUN …: validation loss of several runs over tokens and over time, and a table."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from common import plots
from training.report import read_log

AXES = {"tokens": "tokens", "seconds": "seconds of training"}


@dataclasses.dataclass(frozen=True)
class Compare:
    """Draws the losses of several runs over tokens and over time, and lists where they ended."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of runs, finished or not."""
    out: Path = Path("compare.png")
    """The plot: .png, .svg or .pdf."""


@dataclasses.dataclass(frozen=True)
class Course:
    """What a run's log says, as far as it has come."""

    name: str
    evaluations: list[dict[str, Any]]

    @property
    def best(self) -> float:
        """The lowest validation loss, in nats per token."""
        return min(record["val_loss"] for record in self.evaluations)

    @property
    def end(self) -> dict[str, Any]:
        """The last evaluation."""
        return self.evaluations[-1]


def read_course(run: Path) -> Course:
    """The evaluations in RUN/log.jsonl."""
    log = run / "log.jsonl"
    if not log.is_file():
        raise FileNotFoundError(
            f"{run} holds no run (no log.jsonl): give directories that train.py has written"
        )
    evaluations = [record for record in read_log(log) if "val_loss" in record and "seconds" in record]
    if not evaluations:
        raise ValueError(f"{run} has not been evaluated yet: wait for its first --eval-every steps")
    return Course(run.name, evaluations)


def compare(options: Compare) -> None:
    """Reads all runs, then draws and prints."""
    courses = [read_course(run) for run in options.runs]
    if not courses:
        raise ValueError("name at least one run: python -m training compare RUN RUN …")
    draw(courses, options.out)
    table = Table("run", "steps", "tokens", "seconds", "tokens/s", "best val loss", "last val loss")
    for course in courses:
        end = course.end
        speed = end["tokens"] / end["seconds"]
        table.add_row(
            course.name,
            f"{end['step'] + 1:,}",
            f"{end['tokens']:,}",
            f"{end['seconds']:.1f}",
            f"{speed:,.0f}",
            f"{course.best:.4f}",
            f"{end['val_loss']:.4f}",
        )
    Console().print(table)
    print(f"{options.out}: validation loss over tokens and over time")


def draw(courses: list[Course], path: Path) -> None:
    """Two panels, one for each axis, and a curve for each run in both."""
    figure = plots.figure(11, 4)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (axis, label) in zip(panels, AXES.items(), strict=True):
        for course in courses:
            points = [(record[axis], record["val_loss"]) for record in course.evaluations]
            panel.plot(*zip(*points, strict=True), marker=".", label=course.name)
        panel.set(xlabel=label)
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="validation loss, nats per token")
    panels[1].legend()
    plots.save(figure, path)
