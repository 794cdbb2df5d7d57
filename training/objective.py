"""What a run learns: the part of the loop that differs between pretraining, fine-tuning and reinforcement learning."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from torch import Tensor

from common import files
from data.batches import Sampler
from model import GPT
from training.batching import Batching
from training.checkpoint import Progress
from training.config import TrainConfig
from training.distributed import Processes


class Report:
    """The report on a finished run; a subclass is a dataclass of what RUN/report.json holds."""

    def write(self, path: Path) -> None:
        """Write report.json."""
        files.write_json(path, dataclasses.asdict(self))

    def lines(self, run: Path) -> list[str]:
        """Return the lines to print."""
        raise NotImplementedError

    def print(self, run: Path, console: Console | None = None) -> None:
        """Print the figures and some texts."""
        (console or Console()).print("\n".join(self.lines(run)), markup=False, highlight=False)


class Objective(Protocol):
    """What a run learns. A batch is a tensor, or a tuple, dict or dataclass of batches, with the same number of rows.

    The loop divides a batch into micro-batches of rows, takes the loss of each and averages them by weight over all
    micro-batches and processes: the gradient is that of the loss of the whole batch, however it is divided.
    """

    config: TrainConfig
    log_every: int = 10
    """Steps between two lines of the log."""

    def open(self, batching: Batching, processes: Processes) -> Sampler:
        """Return endless, resumable batches of this process's rows of a step; ValueError for too little data."""

    def adapt(self, model: GPT) -> GPT:
        """Return the model to train, given the configured one: with adapters or a second head, for example."""
        return model

    def updates(self, model: GPT, batch: Any) -> Sequence[Any]:
        """Return the batches of a step, one for each update of the weights, given the one that `open` gave.

        Reinforcement learning samples answers to a batch of prompts here, and learns from them several times.
        """
        return [batch]

    def loss(self, model: Callable[..., Any], batch: Any) -> Tensor:
        """Return the mean loss over a micro-batch; 0 if its weight is 0. Call `model` as a GPT, once."""

    def weight(self, batch: Any) -> float:
        """Return how much a micro-batch's mean counts, such as the number of tokens that it is the mean over."""

    def tokens(self, updates: Sequence[Any]) -> int:
        """Return the tokens of a step over all processes, as far as they are counted; by default as configured."""
        return self.config.step_tokens

    def figures(self) -> dict[str, float]:
        """Return what the objective measured in the last step, for the log."""
        return {}

    def estimate(self, model: GPT, batches: int, *, val_only: bool = False) -> dict[str, float]:
        """Return figures for the log, equal in all processes; by the lowest "val_loss" RUN/best is chosen."""

    def sample(self, model: GPT) -> dict[str, str]:
        """Return texts of the model for the log, by name; only rank 0 asks."""

    def save(self, model: GPT, directory: Path) -> None:
        """Write what belongs to the weights in `directory` (RUN/best, RUN/last), such as adapters."""

    def text(self, batch: Any) -> str:
        """Return the beginning of a batch, for an error message."""

    def report(self, progress: Progress, device: torch.device, precision: torch.dtype) -> Report:
        """Return the report on RUN/best; only rank 0 asks."""
