"""What a run leaves to read: log.jsonl, loss.png, report.json."""

import dataclasses
import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch
from rich.console import Console

from bpe import Tokenizer
from common import files, plots
from data.stories import coherence
from evaluation import losses
from inference import devices
from model import GPT
from training import run
from training.checkpoint import Progress
from training.config import TrainConfig
from training.watch import Tracker, scalars


class Log:
    """RUN/log.jsonl: one JSON object a line, of training steps and of evaluations."""

    def __init__(self, path: Path, *, keep_before: int = 0, trackers: Sequence[Tracker] = ()) -> None:
        """Opens the log; lines of `keep_before` steps and later, from a run that went further, are dropped."""
        self.path, self._trackers = path, trackers
        self.records = [r for r in read_log(path) if r["step"] < keep_before] if keep_before else []
        files.write_text(path, "".join(json.dumps(record) + "\n" for record in self.records))
        self._file: IO[str] = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def add(self, **record: Any) -> None:
        """Appends a record, which has a step, and flushes it."""
        self.records.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.log(record["step"], scalars(record))

    def close(self) -> None:
        """Closes the file and the trackers."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


class NoLog:
    """The log of a process that is not the one that writes."""

    records: tuple[dict[str, Any], ...] = ()

    def add(self, **record: Any) -> None:
        """Drops the record."""

    def close(self) -> None:
        """Nothing to close."""


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line cut off by a crash is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def plot_loss(records: list[dict[str, Any]], path: Path) -> None:
    """Draws the loss of every logged step and of both splits at every evaluation."""
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
    """RUN/report.json; `coherence` is None where the corpus is not the built-in one."""

    val_loss: float
    """Nats per token over the validation file."""
    train_loss: float
    """Nats per token over as much of the training file."""
    bits_per_byte: float
    """Of the validation text."""
    coherence: float | None
    """Share of sampled stories that the story checker passes."""
    tokens: int
    """Trained on, counted once per use."""
    seconds: float
    """Spent training, evaluations and sampling apart."""
    tokens_per_second: float
    peak_memory_mb: float
    """Of the GPU where one was used, else of the process."""
    parameters: int
    stories: list[str]

    def write(self, path: Path) -> None:
        """Writes report.json."""
        files.write_json(path, dataclasses.asdict(self))

    def print(self, run: Path, console: Console | None = None) -> None:
        """Prints the figures and three of the stories."""
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
        for number, story in enumerate(self.stories, 1):
            lines += ["", f"--- story {number} ---", story]
        console.print("\n".join(lines), markup=False, highlight=False)


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MB: allocated by torch on a GPU, resident in the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


SHOWN_STORIES = 3
PASS_TOKENS = 32_768  # in an evaluation pass, where --micro-batch does not say


def judge(config: TrainConfig, progress: Progress, device: torch.device, precision: torch.dtype) -> Report:
    """Reads RUN/best and evaluates it on the whole validation file and as much of the training file.

    Peak memory is that of the training, up to here.
    """
    peak = peak_memory_mb(device)
    directory = config.run_directory
    train_file, val_file = (run.open_split(config, split) for split in ("train", "val"))
    best = GPT.from_pretrained(
        files.whole_directory(directory / "best"),
        attention=devices.choose_kernels(config.kernels, config.model, device).attention,
    ).to(device)
    rows = config.micro_batch
    if rows == "auto":
        rows = max(1, PASS_TOKENS // config.model.block_size)
    with devices.autocast(device, precision):
        train_loss, val_loss = (
            losses.full_loss(best, file, config.batches, rows, limit=len(val_file))
            for file in (train_file, val_file)
        )
    meta = val_file.meta
    built_in = all(source.split(":")[0] == "stories" for source in meta.source)
    count = max(config.coherence_stories, SHOWN_STORIES) if built_in else SHOWN_STORIES
    tokenizer = Tokenizer.load(directory / "tokenizer.json")
    told = losses.tell_stories(best, tokenizer, count, temperature=config.temperature, seed=config.seed)
    return Report(
        val_loss=val_loss,
        train_loss=train_loss,
        bits_per_byte=losses.bits_per_byte(val_loss, meta.tokens["val"], meta.bytes["val"]),
        coherence=coherence(told) if built_in else None,
        tokens=progress.tokens,
        seconds=progress.seconds,
        tokens_per_second=progress.tokens / progress.seconds,
        peak_memory_mb=peak,
        parameters=sum(p.numel() for p in best.parameters()),
        stories=told[:SHOWN_STORIES],
    )
