"""Show how a run goes: log.jsonl, loss.png, the bar, utilization, TensorBoard, Weights & Biases, the profiler."""

import contextlib
import functools
import importlib.util
import json
import secrets
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.profiler import ProfilerActivity, profile, schedule

from common import files, plots
from inference import devices
from model import GPTConfig, accounting
from training.config import TrainConfig


class Log:
    """RUN/log.jsonl: one JSON object per line, for training steps and evaluations."""

    def __init__(
        self,
        path: Path,
        *,
        keep_before: int = 0,
        trackers: Sequence["Tracker"] = (),
        closing: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the log without the lines of step `keep_before` and later, from a run that went further.

        `closing` is called when the log is closed, such as to unlock the run.
        """
        self.path, self._trackers, self._closing = path, trackers, closing
        self.records = [r for r in read_log(path) if r["step"] < keep_before] if keep_before else []
        files.write_text(path, "".join(json.dumps(record) + "\n" for record in self.records))
        self._file: IO[str] = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def add(self, **record: Any) -> None:
        """Append a record, which has a step, and flush it."""
        self.records.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.log(record["step"], scalars(record))

    def close(self) -> None:
        """Close the file and the trackers."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()
        self._closing()


class NoLog:
    """The log of every process but rank 0: it writes nothing."""

    records: tuple[dict[str, Any], ...] = ()

    def add(self, **record: Any) -> None:
        """Drop the record."""

    def close(self) -> None:
        """Do nothing."""


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the records of a log, without a last line that a crash cut off."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def plot_loss(records: list[dict[str, Any]], path: Path) -> None:
    """Draw the loss of every logged step and of both splits at every evaluation."""
    figure = plots.figure(7, 4)
    axes = figure.subplots()
    for key, style in (
        ("loss", {"lw": 0.8, "alpha": 0.5}),
        ("train_loss", {"marker": "."}),
        ("val_loss", {"marker": "."}),
    ):
        points = [(r["step"], r[key]) for r in records if key in r]
        if points:
            axes.plot(*zip(*points, strict=True), label=key.replace("_", " "), **style)
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.xaxis.get_major_locator().set_params(integer=True)
    plots.log_losses(axes)
    axes.grid(alpha=0.3)
    axes.legend()
    plots.save(figure, path)


# In the order of their worth: a narrow terminal has room for the first few.
COLUMNS = {
    "loss": "loss {:.3f}",
    "val_loss": "val {:.3f}",
    "tokens_per_second": "{:,.0f} tok/s",
    "learning_rate": "lr {:.1e}",
    "gradient_norm": "grad {:.2f}",
    "mfu": "MFU {:.0%}",
    "memory_mb": "{:,.0f} MB",
}


BAR_WIDTH = 10


class Bar:
    """One line with the time left and the newest figures, as far as the terminal is wide, and a line an evaluation.

    Silent if `shown` is False. The bar is on standard error; evaluations are on standard output if that is a file.
    """

    def __init__(self, steps: int, done: int, *, shown: bool = True) -> None:
        self._values: dict[str, Any] = {}
        self.console = Console(stderr=True, quiet=not shown)
        self._history = self.console if sys.stdout.isatty() else Console(quiet=not shown)
        self._room = self.console.width - len(f"{steps}/{steps} 0:00:00 left ") - BAR_WIDTH - 1
        self._progress = Progress(
            BarColumn(bar_width=BAR_WIDTH),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            TextColumn("left {task.fields[figures]}"),
            console=self.console,
            refresh_per_second=2,
            disable=not shown,
        )
        self._task = self._progress.add_task("", total=steps, completed=done, figures="")

    def show(self, done: int, **figures: Any) -> None:
        """Move the bar to `done` steps and show the figures that have a column."""
        self._values |= figures
        text = ""
        for name, form in COLUMNS.items():
            if name in self._values:
                longer = f"{text} {form.format(self._values[name])}".lstrip()
                text = longer if len(longer) <= self._room else text
        self._progress.update(self._task, completed=done, figures=text)

    def print_evaluation(self, step: int, figures: Mapping[str, float], texts: Iterable[str]) -> None:
        """Print the figures of an evaluation in one line, and samples of the model's text."""
        named = ", ".join(f"{name.replace('_', ' ')} {value:#.4g}" for name, value in figures.items())
        for text in (f"step {step:,}: {named}", *(f"{text}\n" for text in texts)):
            self._history.print(text, markup=False, highlight=False)

    def working(self, what: str) -> contextlib.AbstractContextManager[Any]:
        """Return a context that says what takes a while after the last step."""
        return self.console.status(what)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class Utilization:
    """How much of the machine a run uses: model FLOPs utilization and memory."""

    def __init__(self, model: GPTConfig, device: torch.device, precision: torch.dtype) -> None:
        self._model, self._device, self._precision = model, device, precision

    @functools.cached_property
    def _peak(self) -> float:
        """Return the operations per second that this device reaches at most."""
        peak = devices.matmul_flops(self._device, self._precision)
        # Its matrices are larger than a small model, and no part of the training.
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        return peak

    def figures(self, tokens_per_second: float) -> dict[str, float]:
        """Return the MFU at this speed of one process, and the peak memory so far."""
        operations = sum(accounting.flops_per_token(self._model).values())
        return {
            "mfu": operations * tokens_per_second / self._peak,
            "memory_mb": devices.peak_memory_mb(self._device),
        }


class Tracker(Protocol):
    """A service that logs scalars by step; constructed with the run's configuration and its next step."""

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Log the scalars of a step."""

    def close(self) -> None:
        """Send what is buffered."""


class _TensorBoard:
    def __init__(self, config: TrainConfig, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # A killed run is resumed from its last checkpoint: points after it are logged again.
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
    """Return the id of the run's curves, kept in its directory so that a resumed run continues them."""
    path = run / "wandb-id"
    if not path.is_file():
        files.write_text(path, secrets.token_hex(8))
    return path.read_text(encoding="utf-8")


@contextlib.contextmanager
def _wandb_errors() -> Iterator[None]:
    """Turn an error of the service, such as no key or no connection, into a ValueError with the remedy."""
    import wandb

    try:
        yield
    except wandb.Error as error:
        raise ValueError(f"Weights & Biases says: {error} Fix that, or give --wandb offline") from error


def wanted_trackers(config: TrainConfig, *, main: bool = True) -> list[type[Tracker]]:
    """Return the trackers that the flags name; ValueError if a package is not installed or the login fails.

    Only the `main` process, which alone writes, logs in to Weights & Biases.
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
    """Return the numbers of a log record, without the step.

    >>> scalars({"step": 3, "loss": 2.5, "story": "Once"})
    {'loss': 2.5}
    """
    return {k: v for k, v in record.items() if k != "step" and isinstance(v, int | float)}


WAIT, WARM_UP, RECORDED = 2, 1, 3  # the first steps allocate and compile: they say little about the others
COSTLIEST = 10


@contextlib.contextmanager
def profiled(directory: Path, device: torch.device, *, wanted: bool) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each step; write the trace and the costliest operations if `wanted`."""
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
