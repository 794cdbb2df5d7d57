"""What a run leaves to read: log.jsonl, loss.png, report.json."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from common import files, plots
from training.watch import Tracker, scalars


class Log:
    """RUN/log.jsonl: one JSON object per line, for training steps and evaluations."""

    def __init__(
        self,
        path: Path,
        *,
        keep_before: int = 0,
        trackers: Sequence[Tracker] = (),
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
    axes.set(xlabel="step", ylabel="nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    plots.save(figure, path)


@dataclasses.dataclass(frozen=True)
class Report:
    """RUN/report.json; `coherence` is None unless the corpus is the built-in one."""

    val_loss: float
    """Nats per token over the validation file."""
    train_loss: float
    """Nats per token over an equally long part of the training file."""
    bits_per_byte: float
    """Of the validation text."""
    coherence: float | None
    """Fraction of sampled stories that the story checker passes."""
    skipped: int
    """Steps skipped because loss or gradient were not finite."""
    tokens: int
    """Tokens trained on, counted at each use."""
    seconds: float
    """Time spent training, without evaluations and sampling."""
    tokens_per_second: float
    peak_memory_mb: float
    """Of the GPU if one was used, else of the process."""
    parameters: int
    stories: list[str]

    def write(self, path: Path) -> None:
        """Write report.json."""
        files.write_json(path, dataclasses.asdict(self))

    def print(self, run: Path, console: Console | None = None) -> None:
        """Print the figures and three of the stories."""
        console = console or Console()
        lines = [
            f"validation loss  {self.val_loss:.3f} nats per token (train {self.train_loss:.3f})",
            f"bits per byte    {self.bits_per_byte:.3f}",
        ]
        if self.coherence is not None:
            lines.append(f"coherence        {self.coherence:.1%} of sampled stories pass the story checker")
        lines += [
            f"trained on       {self.tokens:,} tokens in {self.seconds:.0f} s ({self.tokens_per_second:,.0f} tokens/s)",
            f"peak memory      {self.peak_memory_mb:,.0f} MB",
            f"written to       {run}",
        ]
        if self.skipped:
            lines.append(f"skipped          {self.skipped:,} steps, whose loss or gradient was not finite")
        for number, story in enumerate(self.stories, 1):
            lines += ["", f"--- story {number} ---", story]
        console.print("\n".join(lines), markup=False, highlight=False)
