"""Pretraining, the first objective: predict every next token of the token files.

Its evaluations sample a story; its report judges the best weights on the whole validation file, and on the built-in
corpus by the checker of its stories.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bpe import Tokenizer
from common import files
from data.batches import IGNORED, SAMPLERS, Sampler, TokenFile, document_ids
from evaluation import losses
from inference import devices
from model import GPT
from training import objective
from training.batching import Batching
from training.checkpoint import Progress
from training.config import TrainConfig
from training.distributed import SINGLE, Processes

Batch = tuple[Tensor, Tensor]  # x, y: (B, T) int64, y being x one token later
SHOWN_STORIES = 3
PASS_TOKENS = 32_768  # in an evaluation pass, if --micro-batch does not say


class Pretraining(objective.Objective):
    """The loss is the mean over all tokens of -log P(next token)."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.train_file, self.val_file = (open_split(config, split) for split in ("train", "val"))

    def open(self, batching: Batching, processes: Processes = SINGLE) -> Sampler:
        """Return endless batches of this process's rows; ValueError for files too short for one.

        The windows of the estimates are the same in all processes, so that their losses are equal.
        """
        config, size = self.config, self.config.model.block_size
        rows = batching.micro_batch if config.micro_batch == "auto" else config.micro_batch
        sampler = SAMPLERS[config.batches]
        self._windows = {
            "train_loss": sampler(self.train_file, rows, size),
            "val_loss": sampler(self.val_file, rows, size),
        }
        return sampler(
            self.train_file, batching.rows, size, config.seed, processes.rank, processes.world_size
        )

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """Return the mean loss over a batch, in nats per token; documents that are packed do not see each other."""
        x, y = batch
        packed = self.config.batches == "packed"
        documents = document_ids(y, self.train_file.meta.end_of_text) if packed else None
        return model(x, y, with_logits=False, documents=documents)[1]

    def weight(self, batch: Batch) -> float:
        """Return the number of tokens that the loss is the mean over."""
        return (batch[1] != IGNORED).sum().item()

    def estimate(self, model: GPT, batches: int, *, val_only: bool = False) -> dict[str, float]:
        """Return the mean loss over some batches, the same at every call, of both splits or of validation only."""
        return {
            name: losses.estimate_loss(model, sampler, batches, self.loss, self.weight)
            for name, sampler in self._windows.items()
            if name == "val_loss" or not val_only
        }

    def sample(self, model: GPT) -> dict[str, str]:
        """Return a story for the log."""
        (story,) = losses.sample_stories(
            model, self._tokenizer, 1, temperature=self.config.temperature, seed=self.config.seed
        )
        return {"story": shown(story)}

    def text(self, batch: Batch) -> str:
        """Return the text of the batch's first row, for an error message."""
        return self._tokenizer.decode(batch[0][0].tolist())

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.config.data / "tokenizer.json")

    def report(self, progress: Progress, device: torch.device, precision: torch.dtype) -> "Report":
        """Evaluate RUN/best on the whole validation file and an equally long part of the training file.

        The peak memory is that of the training, up to here.
        """
        peak, config, val = devices.peak_memory_mb(device), self.config, self.val_file
        best = GPT.from_pretrained(files.whole_directory(config.run_directory / "best")).to(device)
        rows = config.micro_batch
        if rows == "auto":
            rows = max(1, PASS_TOKENS // config.model.block_size)
        with devices.autocast(device, precision):
            train_loss, val_loss = (
                losses.full_loss(best, file, config.batches, rows, limit=len(val))
                for file in (self.train_file, val)
            )
        stories, coherence = self._judge(best)
        return Report(
            val_loss=val_loss,
            train_loss=train_loss,
            bits_per_byte=losses.bits_per_byte(val_loss, val.meta.tokens["val"], val.meta.bytes["val"]),
            coherence=coherence,
            skipped=progress.skipped,
            tokens=progress.tokens,
            seconds=progress.seconds,
            tokens_per_second=progress.tokens / progress.seconds,
            peak_memory_mb=peak,
            parameters=sum(p.numel() for p in best.parameters()),
            stories=stories,
        )

    def _judge(self, best: GPT) -> tuple[list[str], float | None]:
        """Return some stories, and the fraction of coherent ones if the corpus has a checker."""
        config = self.config
        checker = losses.coherence_checker(self.val_file.meta.source)
        count = max(config.coherence_stories, SHOWN_STORIES) if checker else SHOWN_STORIES
        tokenizer = Tokenizer.load(config.run_directory / "tokenizer.json")
        stories = losses.sample_stories(
            best, tokenizer, count, temperature=config.temperature, seed=config.seed
        )
        return list(map(shown, stories[:SHOWN_STORIES])), checker(stories) if checker else None


def shown(text: str) -> str:
    """Return a text to look at: one that the end of the context has cut off in a word ends before it.

    >>> shown("A dog ran hom"), shown("A dog ran.")
    ('A dog ran …', 'A dog ran.')
    """
    return f"{text.rpartition(' ')[0]} …" if text[-1:].isalnum() else text


@dataclasses.dataclass(frozen=True)
class Report(objective.Report):
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

    def lines(self, run: Path) -> list[str]:
        """Return the figures and three of the stories."""
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
        return lines


def open_split(config: TrainConfig, split: str) -> TokenFile:
    """Return a token file; ValueError if its vocabulary is larger than the model's."""
    file = TokenFile.open(config.data, split)
    if config.model.vocab_size < file.vocab_size:
        raise ValueError(
            f"vocab_size {config.model.vocab_size} is smaller than the vocabulary of {config.data} "
            f"({file.vocab_size}): leave --vocab-size out, or prepare the data with a smaller vocabulary"
        )
    return file
