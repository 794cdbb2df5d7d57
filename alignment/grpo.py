"""Group relative policy optimization: reinforcement learning without a critic (Shao et al. 2024, DeepSeekMath).

    python -m alignment grpo [--init-from RUN] [--reward NAME] [--run RUN] …      every flag of train.py

Several answers are sampled to each prompt, and an answer is as good as its reward is above the mean of its group. All
tokens of an answer share this advantage; the loss is PPO's clipped ratio.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from alignment import losses
from alignment.losses import Normalization
from alignment.reinforcement import Batch, Reinforcement, RLConfig, rows_of
from alignment.rollouts import Rollouts, token_log_probabilities, trimmed
from alignment.stage import learn
from common import cli
from model import GPT

NO_SIGNAL = 1e-6  # advantages of equal rewards, up to rounding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grouping:
    """How advantages are computed and tokens averaged."""

    scale: bool = True
    """Divide advantages by the standard deviation of their group (GRPO), or do not (Dr. GRPO)."""
    normalization: Normalization = "dapo"
    """The loss is the mean over answers of the mean over their tokens (grpo), the sum over a constant (dr_grpo), or
    the mean over all tokens (dapo)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPOConfig(RLConfig, Grouping):
    """All settings of GRPO."""

    everyday: ClassVar[Mapping[str, type]] = {**RLConfig.everyday, "grouping": Grouping}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group < 2:
            raise ValueError(
                "group is 1: an answer is compared with the others of its group, sample at least 2"
            )


@dataclasses.dataclass(frozen=True)
class Answers(Batch):
    """Answers with their advantages over the group, and the reference's log-probabilities."""

    advantages: Tensor
    """(N, 1)."""
    reference: Tensor
    """(N, T); zeros, and not used, if --kl is 0."""


class GRPO(Reinforcement):
    """The loss is the clipped ratio of new and old probabilities times the advantage within the group."""

    config: GRPOConfig

    def prepare(self, model: GPT, rollouts: Rollouts, earned: Tensor) -> Answers:
        """Return the answers with their advantages."""
        advantages = losses.group_advantages(earned, self.config.group, scale=self.config.scale)
        old = rollouts.log_probabilities
        reference = self.reference_log_probabilities(rollouts) if self.config.kl else torch.zeros_like(old)
        if self.config.kl:
            self._figures["kl"] = losses.masked_mean(losses.kl(old, reference), rollouts.mask).item()
        return Answers(
            rollouts.ids, self.learned(rollouts), old, self.fresh(rollouts), advantages[:, None], reference
        )

    def worth_learning(self, batch: Answers) -> Answers:
        """Leave out the groups whose answers all earned the same (DAPO, section 3.2), unless too few others are left.

        Their gradient is 0, but for the KL divergence, so half of a step's arithmetic may be spared.
        """
        rows = (batch.advantages[:, 0].abs() > NO_SIGNAL).nonzero()[:, 0]  # (N, 1) -> (rows with signal,)
        if self.config.kl or len(rows) < self.config.minibatches:
            return batch
        return rows_of(batch, rows)

    def loss(self, model: Callable[..., Any], batch: Answers) -> Tensor:
        """Return the loss of a micro-batch, normalized as configured."""
        config, batch = self.config, trimmed(batch)
        new = token_log_probabilities(model, batch.ids, batch.mask, config.explore)
        new = self.ratio_checked(new, batch)
        loss = losses.clipped(new, batch.old, batch.advantages, config.clip_low, config.clip_high)
        if config.kl:
            loss = loss + config.kl * losses.kl(new, batch.reference)
        return losses.normalize(loss, batch.mask, config.normalization, config.max_new_tokens)

    def weight(self, batch: Answers) -> float:
        """Return the tokens or the answers that the loss is the mean over."""
        return losses.normalization_weight(batch.mask, self.config.normalization)


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Improve a model as `argv` says and print the report."""
    learn(argv, "grpo", "alignment/grpo", GRPOConfig, GRPO)
