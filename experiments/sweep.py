"""python -m experiments sweep PRESET --grid learning_rate=1e-3,3e-3 --seeds 3: a run for every setting and seed.

Runs are in OUT/FIELD=VALUE,…/seed-N. Finished ones are kept and an unfinished one continues from its checkpoint, so
the same command can be repeated after a stop, or with a larger grid. A run that diverges counts as an infinite loss
and leaves the reason in its diverged.txt: a learning rate that is too high is a result, too.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from common import files, plots
from training import failures
from training.config import TrainConfig, parse_config

SHORT = {"lr": "learning_rate"}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Train a preset over a grid of settings, each with several seeds; print a table and draw a plot."""

    preset: Annotated[str, tyro.conf.Positional]
    """Name of a preset or path of a .toml file."""
    grid: tuple[str, ...] = ()
    """FIELD=VALUE,VALUE … for one or several fields of train.py; lr is short for learning_rate."""
    seeds: int = 1
    """Runs for each setting, with seeds 1, 2, …"""
    out: Path = Path("runs/sweep")
    """Directory for the runs, table.json and sweep.png."""
    data: Path | None = None
    """Directory of the token files (default: the preset's)."""
    steps: int | None = None
    """Steps of each run (default: the preset's)."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"--seeds is {self.seeds}: it must be at least 1")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One point of the grid and the losses of its seeds."""

    name: str
    losses: list[float]
    """Validation losses by seed, nats per token; infinite if the run diverged."""

    @property
    def mean(self) -> float:
        """Return the mean of the seeds' validation losses, in nats per token."""
        return statistics.fmean(self.losses)

    @property
    def deviation(self) -> float:
        """Return the standard deviation over seeds; 0 for one seed, NaN if one diverged."""
        if self.diverged:
            return math.nan
        return statistics.stdev(self.losses) if len(self.losses) > 1 else 0.0

    @property
    def diverged(self) -> int:
        """Return how many seeds ended without a loss."""
        return sum(not math.isfinite(loss) for loss in self.losses)

    def row(self) -> dict[str, Any]:
        """Return the record for table.json, with null for a missing loss."""
        numbers = {"mean": self.mean, "deviation": self.deviation, "losses": self.losses}
        return {"setting": self.name, **{name: _finite(value) for name, value in numbers.items()}}

    def cells(self) -> tuple[str, str, str, str]:
        """Return the cells of the printed table."""
        seeds = len(self.losses)
        if self.diverged:
            return self.name, "diverged", "", f"{self.diverged} of {seeds}"
        return self.name, f"{self.mean:.4f}", f"{self.deviation:.4f}", str(seeds)


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return value if math.isfinite(value) else None


def parse_grid(grid: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the values of each field.

    >>> parse_grid(("lr=1e-3,3e-3", "optimizer=muon"))
    {'learning_rate': ['1e-3', '3e-3'], 'optimizer': ['muon']}
    """
    fields: dict[str, list[str]] = {}
    for part in grid:
        name, _, values = part.partition("=")
        listed = [value for value in values.split(",") if value]
        if not name or not listed:
            raise ValueError(f"--grid {part!r} is not FIELD=VALUE,VALUE")
        fields[SHORT.get(name, name)] = listed
    return fields


def configurations(options: Sweep) -> Iterator[tuple[str, list[TrainConfig]]]:
    """Yield each setting's name and its configurations, one for each seed; checked before anything is trained."""
    common = ["--preset", options.preset]
    common += ["--data", str(options.data)] if options.data else []
    common += ["--steps", str(options.steps)] if options.steps else []
    grid = parse_grid(options.grid)
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        name = ",".join(f"{field}={value}" for field, value in point.items()) or "preset"
        flags = [word for field, value in point.items() for word in (f"--{field.replace('_', '-')}", value)]
        yield (
            name,
            [
                _configuration(options.out / name, seed, common + flags)
                for seed in range(1, options.seeds + 1)
            ],
        )


def _configuration(folder: Path, seed: int, flags: list[str]) -> TrainConfig:
    run = folder / f"seed-{seed}"
    return parse_config(
        [*flags, "--seed", str(seed), "--run", str(run), *_stopped(run)], prog="python -m experiments sweep"
    )


def _stopped(run: Path) -> list[str]:
    """Return the flag for a run that was stopped: one without a checkpoint starts again."""
    if not run.is_dir() or (run / "report.json").is_file():
        return []
    return ["--resume"] if failures.last_state(run).is_file() else ["--overwrite"]


def sweep(options: Sweep) -> None:
    """Train what is missing, then print, draw and write the table."""
    plan = list(configurations(options))
    settings = [Setting(name, [_loss(config) for config in configs]) for name, configs in plan]
    settings.sort(key=lambda setting: setting.mean)
    files.write_json(options.out / "table.json", [setting.row() for setting in settings])
    draw(settings, options.out / "sweep.png")
    table = Table("setting", "val loss", "± deviation", "seeds", title="best first", title_justify="left")
    for setting in settings:
        table.add_row(*setting.cells())
    Console().print(table)
    print(f"{options.out}: the runs, table.json and sweep.png")


def _loss(config: TrainConfig) -> float:
    """Return the validation loss of a run, after training it unless it is finished."""
    report, diverged = config.run_directory / "report.json", config.run_directory / "diverged.txt"
    if not report.is_file() and not diverged.is_file():
        from training.loop import train

        try:
            train(config)
        except (failures.Diverged, failures.Damaged) as error:
            files.write_text(diverged, f"{error}\n")
            print(f"{config.run_directory}: {error}")
    return files.read_json(report)["val_loss"] if report.is_file() else math.inf


def draw(settings: list[Setting], path: Path) -> None:
    """Draw mean and deviation of every setting, and each seed as a dot."""
    figure = plots.figure(7, 1 + 0.5 * len(settings))
    axes = figure.subplots()
    names = [setting.name for setting in settings]
    axes.errorbar([s.mean for s in settings], names, xerr=[s.deviation for s in settings], fmt="o", capsize=4)
    for setting in settings:
        axes.plot(setting.losses, [setting.name] * len(setting.losses), "k.", alpha=0.4)
    axes.set(xlabel="validation loss, nats per token")
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    plots.save(figure, path)
