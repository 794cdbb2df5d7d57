"""Supervised fine-tuning: learn the answers of conversations, and nothing else.

    python -m alignment sft [--init-from RUN] [--data DIR] [--run RUN] …      every flag of train.py

The loss is that of pretraining, taken over the tokens that the mask names: the answers and the tokens that end them.
Conversations are packed into rows without seeing each other (data/conversations.py), so a step computes no padding to
speak of. Its loss is the mean over all learned tokens of the step, however many each micro-batch holds.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from alignment.lora import Adaptation, Adapting
from alignment.stage import learn
from common import cli, files
from data.batches import IGNORED
from data.conversations import Conversations, Packed
from evaluation import losses
from inference import devices
from inference.chat import ChatTemplate
from model import GPT, generate
from model.gpt import check_separable
from training import objective
from training.batching import Batching
from training.checkpoint import Progress
from training.config import TrainConfig
from training.distributed import SINGLE, Processes
from training.pretraining import open_split

SHOWN = 3  # answers in the report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """How conversations are read."""

    long: Literal["drop", "truncate"] = "drop"
    """A conversation longer than the context: leave it out, or leave its end out."""
    perturb: float = 0.0
    """Noise on the embedding before the first step, as a share of its deviation: words that the base never had to tell
    apart have equal rows, which only slowly drift apart (docs/alignment.md)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTConfig(TrainConfig, Tuning, Adaptation):
    """All settings of supervised fine-tuning."""

    everyday: ClassVar[Mapping[str, type]] = {
        **TrainConfig.everyday,
        "conversations": Tuning,
        "adaptation": Adaptation,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from is None:
            raise ValueError("there is no model to fine-tune: give --init-from RUN")
        if not (math.isfinite(self.perturb) and self.perturb >= 0):
            raise ValueError(f"perturb is {self.perturb}: it must be 0 or more, such as 0.5")
        if self.perturb and self.lora_rank:
            raise ValueError(
                "perturb and lora_rank exclude each other: adapters leave the embedding as it is"
            )
        if self.compile:
            raise ValueError("--compile would compile every step again, as no two pack alike: leave it out")
        check_separable(self.model)


class SFT(Adapting):
    """The loss is the mean over all learned tokens of -log P(token)."""

    def __init__(self, config: SFTConfig) -> None:
        self.config = config
        self.train_file, self.val_file = (open_split(config, split) for split in ("train", "val"))
        self.template = ChatTemplate.load(config.data)

    def adapt(self, model: GPT) -> GPT:
        """Return the model with its adapters, or with a perturbed embedding, if the configuration asks for it."""
        if self.config.perturb:
            perturb(model, self.config.perturb)
        return super().adapt(model)

    def open(self, batching: Batching, processes: Processes = SINGLE) -> Conversations:
        """Return endless batches of this process's rows; say once how many conversations are too long."""
        config, size = self.config, self.config.model.block_size
        rows = batching.micro_batch if config.micro_batch == "auto" else config.micro_batch
        cut = {"truncate": config.long == "truncate"}
        self._samplers = {
            "train_loss": Conversations(self.train_file, rows, size, **cut),
            "val_loss": Conversations(self.val_file, rows, size, **cut),
        }
        if processes.main:
            print_left_out(self._samplers["train_loss"])
        return Conversations(
            self.train_file, batching.rows, size, config.seed, processes.rank, processes.world_size, **cut
        )

    def loss(self, model: Callable[..., Any], batch: Packed) -> Tensor:
        """Return the mean loss over the learned tokens of a batch, in nats per token; 0 if there is none."""
        return model(batch.x, batch.y, with_logits=False, documents=batch.documents)[1]

    def weight(self, batch: Packed) -> float:
        """Return the number of learned tokens."""
        return (batch.y != IGNORED).sum().item()

    def estimate(self, model: GPT, batches: int, *, val_only: bool = False) -> dict[str, float]:
        """Return the mean loss over some batches, the same at every call, of both splits or of validation only."""
        return {
            name: losses.estimate_loss(model, sampler, batches, self.loss, self.weight)
            for name, sampler in self._samplers.items()
            if name == "val_loss" or not val_only
        }

    def sample(self, model: GPT) -> dict[str, str]:
        """Return an answer to the first validation conversation's request."""
        ((asked, answer),) = self._answers(model, 1)
        return {"request": asked, "answer": answer}

    @functools.cached_property
    def _prompts(self) -> list[list[int]]:
        """Return the ids of the first validation conversations up to their first answer."""
        sampler = self._samplers["val_loss"]
        rows = dataclasses.replace(sampler, batch_size=SHOWN, mode="pad", epochs=1)
        found = next(rows)
        learned = (found.y != IGNORED).int().argmax(1).tolist()
        return [ids[: first + 1] for ids, first in zip(found.x.tolist(), learned, strict=True)]

    def _answers(self, model: GPT, count: int) -> list[tuple[str, str]]:
        """Return requests and the model's answers to them."""
        prompts = self._prompts[:count]
        room = model.config.block_size - max(map(len, prompts))
        answers = generate.generate_batch(
            model,
            prompts,
            room,
            stop=self.template.stops,
            temperature=self.config.temperature,
            seed=self.config.seed,
        )
        text = self.template.tokenizer.decode
        return [(text(ids), self.template.text(answer)) for ids, answer in zip(prompts, answers, strict=True)]

    def text(self, batch: Packed) -> str:
        """Return the text of the batch's first row, for an error message."""
        return self.template.tokenizer.decode(batch.x[0].tolist())

    def report(self, progress: Progress, device: torch.device, precision: torch.dtype) -> "Report":
        """Evaluate RUN/best on all validation conversations and as many of training."""
        peak, config = devices.peak_memory_mb(device), self.config
        best = GPT.from_pretrained(files.whole_directory(config.run_directory / "best")).to(device)
        val = dataclasses.replace(self._samplers["val_loss"], epochs=1)
        batches = sum(1 for _ in dataclasses.replace(val))  # few: conversations are packed
        with devices.autocast(device, precision):
            train_loss, val_loss = (
                losses.estimate_loss(best, sampler, batches, self.loss, self.weight)
                for sampler in (self._samplers["train_loss"], val)
            )
            answers = self._answers(best, SHOWN)
        return Report(
            val_loss=val_loss,
            train_loss=train_loss,
            skipped=progress.skipped,
            tokens=progress.tokens,
            seconds=progress.seconds,
            tokens_per_second=progress.tokens / progress.seconds,
            peak_memory_mb=peak,
            parameters=sum(p.numel() for p in best.parameters()),
            answers=answers,
        )


@torch.no_grad()
def perturb(model: GPT, scale: float) -> None:
    """Add noise to the token embedding, `scale` times as large as its rows deviate from their mean.

    It is what Ash and Adams (2020, section 4) do to all weights, for the rows alone, and nothing is shrunk.
    """
    rows = model.wte.weight  # (V, C)
    deviation = (rows - rows.mean(0)).square().mean().sqrt()
    rows += scale * deviation * torch.randn_like(rows)


@dataclasses.dataclass(frozen=True)
class Report(objective.Report):
    """RUN/report.json of a run on conversations."""

    val_loss: float
    """Nats per learned token of the validation conversations."""
    train_loss: float
    """Nats per learned token of as many training conversations."""
    skipped: int
    """Steps skipped because loss or gradient were not finite."""
    tokens: int
    """Tokens read, counted at each use, learned or not."""
    seconds: float
    """Time spent training, without evaluations and sampling."""
    tokens_per_second: float
    peak_memory_mb: float
    """Peak of the GPU if one was used, else of the process."""
    parameters: int
    answers: list[tuple[str, str]]
    """Requests of validation, and answers to them."""

    def lines(self, run: Path) -> list[str]:
        """Return the figures and some answers."""
        lines = [
            f"validation loss  {self.val_loss:.3f} nats per learned token (train {self.train_loss:.3f})",
            f"trained on       {self.tokens:,} tokens in {self.seconds:.0f} s ({self.tokens_per_second:,.0f} tokens/s)",
            f"peak memory      {self.peak_memory_mb:,.0f} MB",
            f"written to       {run}",
        ]
        for asked, answer in self.answers:
            lines += ["", asked, answer]
        return lines


def print_left_out(conversations: Conversations) -> None:
    """Say how many conversations are longer than the context, and in how many nothing is learned."""
    path, size = conversations.file.path, conversations.block_size
    if conversations.too_long:
        what = "their ends are" if conversations.truncate else "they are"
        print(
            f"{path}: {conversations.too_long:,} conversations are longer than the context of {size} tokens: {what} "
            "left out (--long)",
            file=sys.stderr,
        )
    if conversations.unlearned:
        print(
            f"{path}: {conversations.unlearned:,} conversations without a learned token are left out",
            file=sys.stderr,
        )


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Fine-tune as `argv` says and print the report."""
    learn(argv, "sft", "alignment/sft", SFTConfig, SFT)
