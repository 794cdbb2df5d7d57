"""A reward model: a GPT that has learned from preferences how good an answer is (Ouyang et al. 2022).

    python -m alignment reward-model [--init-from RUN] [--preferences FILE] [--run RUN] …

Its score is a second head's value at the token that ends the answer. It is right about answers like those that it has
seen; an optimizer looks for others. So the report also takes the best of n answers by this model, n growing, and has
them checked by the true verifier: the score keeps rising, the truth does not (Gao et al. 2022, "Scaling laws for reward
model overoptimization").
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from alignment import heads, losses
from alignment.heads import Headed, last_values
from alignment.instructions import Prompt, read_prompts
from alignment.lora import Adaptation
from alignment.pairs import FromPairs, PairBatch, PairConfig, Preferences, pad
from alignment.rewards import Check, Reward, verified
from alignment.rollouts import reference_model, sample
from alignment.stage import learn
from common import cli
from inference import devices
from inference.chat import ChatTemplate, Message
from model import GPT
from training import objective
from training.checkpoint import Progress
from training.config import TrainConfig

ROWS = 64  # answers judged at once
LONGEST = 200  # tokens of the answers whose best is taken


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overoptimizing:
    """How the report shows over-optimization."""

    prompts: Path | None = None
    """File of prompts with checks whose answers are judged. Default: prompts/train.jsonl in --data, if it is there."""
    best_of: int = 32
    """The most answers to a prompt of which the best is taken."""
    asked: int = 32
    """Prompts to answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig(PairConfig, Overoptimizing):
    """All settings of a reward model."""

    everyday: ClassVar[Mapping[str, type]] = {
        **TrainConfig.everyday,
        "preferences": Preferences,
        "overoptimizing": Overoptimizing,
        "adaptation": Adaptation,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.best_of < 1 or self.asked < 1:
            raise ValueError(f"best_of is {self.best_of} and asked {self.asked}: they must be at least 1")
        if self.compile:
            raise ValueError("--compile is not for a model with a second head: leave it out")


class RewardModel(FromPairs):
    """The loss is -log P(chosen is preferred), by Bradley and Terry's model of two scores."""

    config: RewardConfig

    def adapt(self, model: GPT) -> GPT:
        """Return the model with a head for the score."""
        return Headed(super().adapt(model))

    def save(self, model: GPT, directory: Path) -> None:
        """Write the head, and the adapters if there are any."""
        super().save(model, directory)
        model.save_head(directory)

    def losses_and_margins(self, model: Callable[..., Any], batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Return the losses (B,), and the differences of the scores."""
        ids, mask = batch.both()
        _, values = model(ids)
        chosen, rejected = last_values(values, mask).view(2, -1)
        return losses.bradley_terry(chosen, rejected), chosen - rejected

    def sample(self, model: GPT) -> dict[str, str]:
        """Return no text: a reward model judges, it does not talk."""
        return {}

    def report(self, progress: Progress, device: torch.device, precision: torch.dtype) -> "Report":
        """Evaluate RUN/best on the held-out pairs, and by the best of n answers of the model of --init-from."""
        peak = devices.peak_memory_mb(device)
        best = heads.load(self.config.run_directory).to(device)
        with devices.autocast(device, precision):
            found, curve = self.estimate(best, 1), self._best_of(best)
        figures = {name.removeprefix("val_"): value for name, value in found.items()}
        return Report(
            **figures, steps=progress.step, seconds=progress.seconds, peak_memory_mb=peak, best_of=curve
        )

    def _best_of(self, best: Headed) -> list[dict[str, float]]:
        """Return score and true reward of the best of n answers by score, for n = 1, 2, 4, …; none without prompts."""
        config = self.config
        path = config.prompts or config.data / "prompts" / "train.jsonl"
        if not path.is_file():
            return []
        prompts = read_prompts(path)[: config.asked]
        asked = [prompt for prompt in prompts for _ in range(config.best_of)]
        model = reference_model(config, best.wte.weight.device)
        ids = [self.template.prompt(prompt.messages) for prompt in asked]
        answers = sample(model, self.template, ids, LONGEST, 1.0).answers
        return best_of_n(*_judged(best, self.template, asked, answers), config.best_of)


def _judged(
    best: Headed, template: ChatTemplate, asked: Sequence[Prompt], answers: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Return the reward model's scores and the verifier's rewards, (N,) each."""
    messages, checks = [list(each.messages) for each in asked], [each.check for each in asked]
    scores = _reward(best, template)(messages, list(answers), checks)
    return torch.tensor(scores), torch.tensor(verified(messages, list(answers), checks))


def best_of_n(scores: Tensor, truths: Tensor, most: int) -> list[dict[str, float]]:
    """Return for n = 1, 2, 4, … the mean score and true reward of the best of n by score.

    scores, truths (N,): `most` answers in a row to each prompt. Each group of n in a row counts once.

    >>> best_of_n(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]), 2)[1]
    {'n': 2, 'score': 2.0, 'reward': 0.0}
    """
    found, n = [], 1
    while n <= most:
        groups = scores.view(-1, most)[:, : most // n * n].reshape(-1, n)  # (prompts, most) -> (groups, n)
        truth = truths.view(-1, most)[:, : most // n * n].reshape(-1, n)
        best = groups.argmax(1, keepdim=True)
        score, reward = (each.gather(1, best).mean().item() for each in (groups, truth))
        found.append({"n": n, "score": score, "reward": reward})
        n *= 2
    return found


@torch.no_grad()
def scored(model: Headed, rows: Sequence[list[int]]) -> list[float]:
    """Return the score of each conversation's ids, read at its last one."""
    found: list[float] = []
    for first in range(0, len(rows), ROWS):
        part = rows[first : first + ROWS]
        ids, mask = pad(part, [0] * len(part), max(map(len, part)))
        device = model.wte.weight.device
        found += last_values(model.values(ids.to(device)), mask.to(device)).tolist()
    return found


def load_reward(run: Path) -> Reward:
    """Return the reward function of a run of python -m alignment reward-model."""
    return _reward(heads.load(run), ChatTemplate.load(run))


def _reward(model: Headed, template: ChatTemplate) -> Reward:
    """Return a reward function that scores by a model. An empty answer, and what fills the context, is cut to fit."""

    def reward(prompts: list[list[Message]], answers: list[str], checks: list[Check]) -> list[float]:
        size = model.config.block_size - 1
        rows = [
            [*[*template.prompt(prompt), *template.tokenizer.encode(answer)][:size], template.end_of_turn]
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return scored(model, rows)

    return reward


@dataclasses.dataclass(frozen=True)
class Report(objective.Report):
    """RUN/report.json of a reward model, of the best weights on held-out pairs."""

    loss: float
    margin: float
    """Difference of the scores of chosen and rejected answers."""
    accuracy: float
    """Fraction of pairs whose chosen answer has the higher score."""
    steps: int
    seconds: float
    peak_memory_mb: float
    best_of: list[dict[str, float]]
    """Score and true reward of the best of n answers by score."""

    def lines(self, run: Path) -> list[str]:
        """Return the figures."""
        lines = [
            f"preferences      {self.accuracy:.1%} of held-out pairs the right way round, margin {self.margin:.2f}",
            f"trained          {self.steps} steps in {self.seconds:.0f} s",
            f"peak memory      {self.peak_memory_mb:,.0f} MB",
            f"written to       {run}",
        ]
        if self.best_of:
            lines += ["", "best of n answers, by this model:    n   score   true reward"]
            lines += [f"{row['n']:38} {row['score']:7.2f} {row['reward']:13.3f}" for row in self.best_of]
        return lines


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Train a reward model as `argv` says and print the report."""
    learn(argv, "reward-model", "alignment/reward-model", RewardConfig, RewardModel)
