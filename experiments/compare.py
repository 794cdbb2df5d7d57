"""python -m experiments compare RUN RUN …: validation loss of several runs over tokens and over time, and a table.

Losses are in bits per byte, which compare across tokenizers; nats per token do not: longer tokens are harder to guess.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from common import plots
from data.tokenfile import read_meta
from evaluation.losses import bits_per_byte
from inference.run import settings
from training.watch import read_log

AXES = {"tokens": "tokens", "seconds": "seconds of training"}


@dataclasses.dataclass(frozen=True)
class Compare:
    """Draw the losses of several runs over tokens and over time, and list their last values."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories of runs, finished or not."""
    nats: bool = False
    """Compare nats per token, for runs whose data are gone; all must have the same tokenizer."""
    out: Path = Path("compare.png")
    """The plot: .png, .svg or .pdf."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """The evaluations of a run so far, losses in the unit of the comparison."""

    name: str
    evaluations: list[dict[str, Any]]

    @property
    def best(self) -> float:
        """Return the lowest validation loss."""
        return min(record["val_loss"] for record in self.evaluations)

    @property
    def end(self) -> dict[str, Any]:
        """Return the last evaluation."""
        return self.evaluations[-1]


def read_curve(run: Path, nats: bool) -> Curve:
    """Read the evaluations in RUN/log.jsonl, in bits per byte or in nats per token."""
    log = run / "log.jsonl"
    if not log.is_file():
        raise FileNotFoundError(
            f"{run} holds no run (no log.jsonl): give directories that train.py has written"
        )
    evaluations = [record for record in read_log(log) if "val_loss" in record and "seconds" in record]
    if not evaluations:
        raise ValueError(f"{run} has not been evaluated yet: wait for its first --eval-every steps")
    scale = 1.0 if nats else _bits_per_nat(run)
    return Curve(run.name, [record | {"val_loss": scale * record["val_loss"]} for record in evaluations])


def _bits_per_nat(run: Path) -> float:
    """Return how many bits per byte of the run's validation text one nat per token is."""
    try:
        meta = read_meta(Path(settings(run)["data"]))
    except FileNotFoundError as error:
        raise ValueError(
            f"the data of {run} say how long its tokens are, and are gone ({error}): restore them, or compare runs of "
            "one tokenizer with --nats"
        ) from error
    return bits_per_byte(1.0, meta.tokens["val"], meta.bytes["val"])


def compare(options: Compare) -> None:
    """Read all runs, then draw and print."""
    curves = [read_curve(run, options.nats) for run in options.runs]
    if not curves:
        raise ValueError("name at least one run: python -m experiments compare RUN RUN …")
    unit = "nats per token" if options.nats else "bits per byte"
    draw(curves, unit, options.out)
    table = Table("run", "steps", "tokens", "seconds", "tokens/s", f"best, {unit}", f"last, {unit}")
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


def draw(curves: list[Curve], unit: str, path: Path) -> None:
    """Draw two panels, one for each axis, with a curve for each run."""
    figure = plots.figure(11, 4)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (axis, label) in zip(panels, AXES.items(), strict=True):
        for curve in curves:
            points = [(record[axis], record["val_loss"]) for record in curve.evaluations]
            panel.plot(*zip(*points, strict=True), marker=".", label=curve.name)
        panel.set(xlabel=label)
        plots.log_losses(panel)
        panel.grid(alpha=0.3)
    panels[0].set(ylabel=f"validation loss, {unit}")
    panels[1].legend()
    plots.save(figure, path)
