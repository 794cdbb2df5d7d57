"""Direct preference optimization: learn from pairs of answers without a reward model (Rafailov et al. 2023).

    python -m alignment dpo [--init-from RUN] [--preferences FILE] [--run RUN] …      every flag of train.py

The reference is the model that the run begins with. Its log-probabilities of all answers are computed once.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from alignment import losses
from alignment.lora import Adaptation
from alignment.pairs import FromPairs, Pair, PairBatch, PairConfig, Preferences, batch_of
from alignment.rollouts import kl_on_samples, reference_model, sample, token_log_probabilities
from alignment.stage import learn
from common import cli, files
from inference import devices
from model import GPT
from training import objective
from training.checkpoint import Progress
from training.config import TrainConfig

ASKED = 16  # prompts of the estimate of the KL divergence
LONGEST = 200  # tokens of its answers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preferring:
    """How pairs are learned from."""

    variant: Literal["dpo", "ipo"] = "dpo"
    """The logistic loss of DPO, or IPO's squared one, whose margin has a target."""
    beta: float = 0.1
    """How strongly the model is kept at the reference: low lets it go far."""
    label_smoothing: float = 0.0
    """Fraction of the preferences taken to be the wrong way round; DPO only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPOConfig(PairConfig, Preferring):
    """All settings of DPO."""

    everyday: ClassVar[Mapping[str, type]] = {
        **TrainConfig.everyday,
        "preferences": Preferences,
        "preferring": Preferring,
        "adaptation": Adaptation,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"beta is {self.beta}: it must be above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}: it must be in [0, 0.5)")
        if self.label_smoothing and self.variant == "ipo":
            raise ValueError("--label-smoothing has no effect with --variant ipo: leave it out")


class DPO(FromPairs):
    """The loss is that of the margin by which the model prefers the chosen answer more than the reference does."""

    config: DPOConfig

    def __init__(self, config: DPOConfig) -> None:
        super().__init__(config)
        self._reference: GPT | None = None
        self._known: dict[int, Tensor] = {}

    def known(self, pairs: Sequence[Pair], device: torch.device) -> Tensor:
        """Return the reference's log-probabilities (B, 2), after it has read all pairs once."""
        if not self._known:
            self._read_reference(device)
        return torch.stack([self._known[id(pair)] for pair in pairs])

    @torch.no_grad()
    def _read_reference(self, device: torch.device) -> None:
        """Compute the log-probabilities of both answers of all pairs, by pairs."""
        self._reference = reference_model(self.config, device)
        pairs, rows = [*self.train, *self.val], self.batching.micro_batch
        for first in range(0, len(pairs), rows):
            part = pairs[first : first + rows]
            batch = batch_of(part, torch.zeros(len(part), 2), device)
            for pair, found in zip(part, self._answers(self._reference, batch).T.cpu(), strict=True):
                self._known[id(pair)] = found

    def _answers(self, model: Callable[..., Any], batch: PairBatch) -> Tensor:
        """Return the log-probabilities (2, B) of chosen and rejected answers: their sums, or for IPO their means."""
        ids, mask = batch.both()
        sums = token_log_probabilities(model, ids, mask).sum(1)  # (2 B, T) -> (2 B,)
        found = sums / mask.sum(1) if self.config.variant == "ipo" else sums
        return found.view(2, -1)

    def losses_and_margins(self, model: Callable[..., Any], batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Return the losses (B,), and the margins of DPO's implicit rewards, beta times the log-ratios' difference."""
        config = self.config
        chosen, rejected = self._answers(model, batch)
        known = batch.reference.T  # (B, 2) -> (2, B)
        margins = config.beta * ((chosen - known[0]) - (rejected - known[1]))
        if config.variant == "ipo":
            return losses.ipo(chosen, rejected, *known, config.beta), margins
        return losses.dpo(chosen, rejected, *known, config.beta, config.label_smoothing), margins

    def estimate(self, model: GPT, batches: int, *, val_only: bool = False) -> dict[str, float]:
        """Return loss, margin and accuracy on the held-out pairs, and the KL divergence from the reference."""
        found = super().estimate(model, batches, val_only=val_only)
        return found if val_only else found | {"val_kl": self._kl(model)}

    def _kl(self, model: GPT) -> float:
        prompts = [pair.prompt for pair in self.val[:ASKED]]
        return kl_on_samples(model, self._reference, self.template, prompts, LONGEST, self.config.seed)

    def sample(self, model: GPT) -> dict[str, str]:
        """Return a greedy answer to the first held-out prompt."""
        prompt = self.val[0].prompt
        answer = sample(model, self.template, [prompt], LONGEST, 0.0).answers[0]
        return {"request": self.template.tokenizer.decode(prompt), "answer": answer}

    def report(self, progress: Progress, device: torch.device, precision: torch.dtype) -> "Report":
        """Evaluate RUN/best on the held-out pairs."""
        peak = devices.peak_memory_mb(device)
        best = GPT.from_pretrained(files.whole_directory(self.config.run_directory / "best")).to(device)
        with devices.autocast(device, precision):
            found, shown = self.estimate(best, 1), self.sample(best)
        figures = {name.removeprefix("val_"): value for name, value in found.items()}
        return Report(
            **figures,
            steps=progress.step,
            seconds=progress.seconds,
            peak_memory_mb=peak,
            answer=shown["answer"],
        )


@dataclasses.dataclass(frozen=True)
class Report(objective.Report):
    """RUN/report.json of DPO, of the best weights on held-out pairs."""

    loss: float
    margin: float
    """How much better the chosen answer is, in implicit reward."""
    accuracy: float
    """Fraction of pairs whose chosen answer has the higher implicit reward."""
    kl: float
    """KL divergence from the reference, in nats per token."""
    steps: int
    seconds: float
    peak_memory_mb: float
    answer: str

    def lines(self, run: Path) -> list[str]:
        """Return the figures and an answer."""
        return [
            f"preferences      {self.accuracy:.1%} of held-out pairs the right way round, margin {self.margin:.2f}",
            f"distance         {self.kl:.3f} nats per token from the reference",
            f"trained          {self.steps} steps in {self.seconds:.0f} s",
            f"peak memory      {self.peak_memory_mb:,.0f} MB",
            f"written to       {run}",
            "",
            self.answer,
        ]


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Train on preferences as `argv` says and print the report."""
    learn(argv, "dpo", "alignment/dpo", DPOConfig, DPO)
