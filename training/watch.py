"""Watching a run while it goes: the progress bar, TensorBoard, Weights & Biases."""

import contextlib
import importlib.util
import secrets
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.profiler import ProfilerActivity, profile, schedule

from common import files
from training.config import TrainConfig

COLUMNS = {
    "loss": "loss {:.3f}",
    "val_loss": "val {:.3f}",
    "learning_rate": "lr {:.1e}",
    "gradient_norm": "grad {:.2f}",
    "tokens_per_second": "{:,.0f} tok/s",
    "mfu": "MFU {:.0%}",
    "memory_mb": "{:,.0f} MB",
}


class Bar:
    """One line with the newest value of each column and the time left; silent where `shown` is False."""

    def __init__(self, steps: int, done: int, *, shown: bool = True) -> None:
        self._values: dict[str, Any] = {}
        self.console = Console(stderr=True, quiet=not shown)
        self._progress = Progress(
            BarColumn(bar_width=10),
            TextColumn("{task.completed}/{task.total} left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
            refresh_per_second=2,
            disable=not shown,
        )
        self._task = self._progress.add_task("", total=steps, completed=done, figures="")

    def show(self, done: int, **figures: Any) -> None:
        """Moves the bar to `done` steps and takes over the figures that have a column."""
        self._values |= figures
        text = " ".join(
            form.format(self._values[name]) for name, form in COLUMNS.items() if name in self._values
        )
        self._progress.update(self._task, completed=done, figures=text)

    def tell(self, step: int, story: str) -> None:
        """Prints a story above the bar."""
        self.console.print(f"after {step} steps: {story}\n", markup=False, highlight=False)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class Tracker(Protocol):
    """A service that takes scalars by step; made with the run's configuration and the first step to come."""

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Takes the scalars of a step."""

    def close(self) -> None:
        """Sends what is left."""


class _TensorBoard:
    def __init__(self, config: TrainConfig, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What a killed run had drawn after its last checkpoint is drawn again: the older points go.
        self._writer = SummaryWriter(str(config.run_directory / "tensorboard"), purge_step=first_step)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, config: TrainConfig, first_step: int) -> None:
        import wandb

        run = config.run_directory
        with _wandb_errors():
            self._run = wandb.init(
                project="slm",
                id=_identifier(run),
                name=run.name,
                dir=str(run),
                mode=config.wandb,
                resume="allow",
                config=tomllib.loads(config.to_toml()),
            )

    def log(self, step: int, scalars: dict[str, float]) -> None:
        self._run.log(scalars, step=step)

    def close(self) -> None:
        self._run.finish()


def _identifier(run: Path) -> str:
    """What a run's curves are known by. It lies in the run's directory, so that a resumed run goes on in them."""
    path = run / "wandb-id"
    if not path.is_file():
        files.write_text(path, secrets.token_hex(8))
    return path.read_text(encoding="utf-8")


@contextlib.contextmanager
def _wandb_errors() -> Iterator[None]:
    """Names the way out of what the service refuses: no key, no connection."""
    import wandb

    try:
        yield
    except wandb.Error as error:
        raise ValueError(f"Weights & Biases says: {error} Mend that, or give --wandb offline") from error


def wanted_trackers(config: TrainConfig, *, main: bool = True) -> list[type[Tracker]]:
    """The trackers that the flags name; ValueError where a package is not installed, or there is no login.

    The `main` process, which alone writes, is logged in to Weights & Biases.
    """
    wanted = {"tensorboard": config.tensorboard, "wandb": config.wandb != "off"}
    for package, asked in wanted.items():
        if asked and importlib.util.find_spec(package) is None:
            raise ValueError(f"--{package} needs a package that is not installed: pip install {package}")
    if config.wandb == "online" and main:
        import wandb

        with _wandb_errors():
            wandb.login()
    classes = {"tensorboard": _TensorBoard, "wandb": _WandB}
    return [classes[package] for package, asked in wanted.items() if asked]


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """What of a log record can be drawn over steps.

    >>> scalars({"step": 3, "loss": 2.5, "story": "Once"})
    {'loss': 2.5}
    """
    return {k: v for k, v in record.items() if k != "step" and isinstance(v, int | float)}


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
