"""python -m experiments sweep PRESET --grid learning_rate=1e-3,3e-3 --seeds 3: a run for every setting and seed.

Runs are in OUT/FIELD=VALUE,…/seed-N. Finished ones are kept and an unfinished one continues from its checkpoint, so
the same command can be repeated after a stop, or with a larger grid. A result belongs to its whole recipe, all
settings and data: with another one the run is trained again. A run that diverges counts as an infinite loss and
leaves the reason in its diverged.txt: too high a learning rate is a result, too.
"""

import dataclasses
import functools
import hashlib
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
from kernels.dispatch import Kernels
from model import GPTConfig
from training import failures
from training.config import TrainConfig, flag, parse_config
from training.run import fingerprint

SHORT = {"lr": "learning_rate"}
NOT_SWEPT = ("run", "resume", "overwrite", "preset", "source", "init_from")
SETTINGS = (*dataclasses.fields(TrainConfig), *dataclasses.fields(GPTConfig))


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
    kernels: Kernels | None = None
    """Attention and norms by torch's ops, by our kernels (fused), or by our CUDA on the CPU (emulated, slow);
    auto takes ours if they are built (default: the preset's)."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"--seeds is {self.seeds}: it must be at least 1")
        if self.seeds > 1 and any(part.startswith("seed=") for part in self.grid):
            raise ValueError("the seeds are given by --seeds and by --grid: leave one of them out")


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
        name = SHORT.get(name, name).replace("-", "_")
        listed = [value for value in values.split(",") if value]
        if not name or not listed:
            raise ValueError(f"--grid {part!r} is not FIELD=VALUE,VALUE")
        if name in NOT_SWEPT:
            raise ValueError(f"--grid {part!r}: the sweep itself sets {name}, choose another field")
        if name in fields or len(set(listed)) < len(listed):
            raise ValueError(f"--grid {part!r} repeats a field or a value: give each once")
        fields[name] = listed
    return fields


def configurations(options: Sweep) -> Iterator[tuple[str, list[TrainConfig]]]:
    """Yield each setting's name and its configurations, one for each seed; checked before anything is trained."""
    grid = parse_grid(options.grid)
    common = ["--preset", options.preset]
    for field in ("data", "steps", "kernels"):
        if (value := getattr(options, field)) is not None:
            if field in grid:
                raise ValueError(f"{field} is given by --{field} and by --grid: leave one of them out")
            common += [f"--{field}", str(value)]
    seeds = grid.pop("seed", None) or [str(seed) for seed in range(1, options.seeds + 1)]
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        name = ",".join(f"{field}={value}" for field, value in point.items()) or "preset"
        flags = [word for field, value in point.items() for word in _flag(field, value)]
        yield name, [_configuration(options.out / name, seed, common + flags) for seed in seeds]


def _flag(field: str, value: str) -> list[str]:
    """Return the words of train.py's command line that set a field."""
    kinds = {f.name: f.type for f in SETTINGS}
    if kinds.get(field) is not bool:
        return flag(field, value)
    if value not in ("true", "false"):
        raise ValueError(f"--grid {field}={value}: {field} is true or false")
    return flag(field, value == "true")


def _configuration(folder: Path, seed: str, flags: list[str]) -> TrainConfig:
    run = folder / f"seed-{seed}"
    return parse_config([*flags, "--seed", seed, "--run", str(run)], prog="python -m experiments sweep")


def recipe(config: TrainConfig) -> str:
    """Return a hash of everything that a result depends on: all settings, and the tokens of the data."""
    settings = dataclasses.replace(config, run=None, resume=False, overwrite=False).to_toml()
    return hashlib.sha256(f"{settings}\n{_fingerprint(config.data)}".encode()).hexdigest()


_fingerprint = functools.cache(fingerprint)


def sweep(options: Sweep) -> None:
    """Train what is missing, then print, draw and write the table."""
    plan = list(configurations(options))
    settings = [Setting(name, [measure(config) for config in configs]) for name, configs in plan]
    settings.sort(key=lambda setting: setting.mean)
    files.write_json(options.out / "table.json", [setting.row() for setting in settings])
    draw(settings, options.out / "sweep.png")
    table = Table("setting", "val loss", "± deviation", "seeds", title="best first", title_justify="left")
    for setting in settings:
        table.add_row(*setting.cells())
    Console().print(table)
    print(f"{options.out}: the runs, table.json and sweep.png")


def measure(config: TrainConfig) -> float:
    """Return the validation loss of a run, after training it unless it is finished."""
    run = config.run_directory
    report, diverged, kept = run / "report.json", run / "diverged.txt", run.with_name(f"{run.name}.recipe")
    mine = kept.is_file() and kept.read_text(encoding="utf-8") == recipe(config)
    if not mine or not (report.is_file() or diverged.is_file()):
        _train(config, kept, resume=mine and failures.last_state(run).is_file())
    return files.read_json(report)["val_loss"] if report.is_file() else math.inf


def _train(config: TrainConfig, kept: Path, *, resume: bool) -> None:
    """Train or resume a run; set aside what was there of another recipe, or without a checkpoint."""
    from training.loop import train

    run = config.run_directory
    if run.is_dir() and not resume:
        print(
            f"{run}: trained with other settings or data, or without a checkpoint: renamed to {run.name}.previous"
        )
    files.write_text(kept, recipe(config))
    try:
        train(dataclasses.replace(config, resume=resume, overwrite=not resume))
    except (failures.Diverged, failures.Damaged, failures.NothingLearned) as error:
        files.write_text(run / "diverged.txt", f"{error}\n")
        print(f"{run}: {error}")


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
