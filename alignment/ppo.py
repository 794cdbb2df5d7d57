"""Proximal policy optimization with a critic (Schulman et al. 2017): what GRPO leaves out.

    python -m alignment ppo [--init-from RUN] [--reward NAME] [--run RUN] …      every flag of train.py

A second head of the model says after every token what reward it expects. A token's advantage is how much better things
turned out than that (GAE), so that, unlike in GRPO, the tokens of one answer can differ, and one answer to a prompt is
enough. The price: another loss to balance, and a critic that is wrong at first.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from alignment import losses
from alignment.heads import Headed, at_last
from alignment.reinforcement import Batch, Reinforcement, RLConfig
from alignment.rollouts import Rollouts, after, trimmed
from alignment.stage import learn
from common import cli
from model import GPT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Critic:
    """How the critic looks ahead, and how much its loss counts."""

    gamma: float = 1.0
    """Discount of a reward for each token that it comes later."""
    lam: float = 0.95
    """GAE's lambda: 0 trusts the critic at once, 1 waits for what really came."""
    value_weight: float = 0.1
    """Weight of the critic's loss."""
    value_clip: float = 0.2
    """How far a value may move from that of the rollout before its loss no longer shrinks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOConfig(RLConfig, Critic):
    """All settings of PPO."""

    everyday: ClassVar[Mapping[str, type]] = {**RLConfig.everyday, "critic": Critic}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be from 0 to 1")
        for name in ("value_weight", "value_clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")
        if self.compile:
            raise ValueError("--compile is not for a model with a critic: leave it out")


@dataclasses.dataclass(frozen=True)
class Valued(Batch):
    """Answers with advantages, values and returns, each (N, T) at the answer's tokens."""

    advantages: Tensor
    values: Tensor
    """The critic's expectation before each token, in the rollout."""
    returns: Tensor


class PPO(Reinforcement):
    """The loss is the clipped ratio times each token's advantage, plus the critic's clipped squared error."""

    config: PPOConfig

    def adapt(self, model: GPT) -> GPT:
        """Return the model with a critic's head."""
        return Headed(super().adapt(model))

    def save(self, model: GPT, directory: Path) -> None:
        """Write the critic's head, and the adapters if there are any."""
        super().save(model, directory)
        model.save_head(directory)

    def prepare(self, model: GPT, rollouts: Rollouts, earned: Tensor) -> Valued:
        """Return the answers with each token's advantage; the KL divergence is paid for token by token."""
        config, mask, old = self.config, self.learned(rollouts), rollouts.log_probabilities
        rewards = at_last(earned, rollouts.mask)
        if config.kl:
            apart = losses.kl(old, self.reference_log_probabilities(rollouts), "k1") * rollouts.mask
            self._figures["kl"] = losses.masked_mean(apart, rollouts.mask).item()
            rewards = rewards - config.kl * apart
        values = self._values(model, rollouts)
        advantages, returns = losses.gae(rewards, values, rollouts.mask, config.gamma, config.lam)
        white = losses.whiten(advantages, mask)
        return Valued(rollouts.ids, mask, old, self.fresh(rollouts), white, values, returns)

    @torch.no_grad()
    def _values(self, model: Headed, rollouts: Rollouts) -> Tensor:
        """Return what the critic expects before each token of the answers, (N, T)."""
        parts = [model.values(ids[:, :-1]) for ids in rollouts.ids.split(self.batching.micro_batch)]
        return after(torch.cat(parts)) * rollouts.mask

    def loss(self, model: Callable[..., Any], batch: Valued) -> Tensor:
        """Return the loss of a micro-batch: the mean over its tokens."""
        config, batch = self.config, trimmed(batch)
        logits, values = model(batch.ids[:, :-1])
        new = after(losses.token_log_probabilities(logits, batch.ids[:, 1:], config.explore)) * batch.mask
        new = self.ratio_checked(new, batch)
        loss = losses.clipped(new, batch.old, batch.advantages, config.clip_low, config.clip_high)
        critic = losses.clipped_value(after(values), batch.values, batch.returns, config.value_clip)
        return losses.masked_mean(loss + config.value_weight * critic, batch.mask)

    def weight(self, batch: Valued) -> float:
        """Return the tokens that the loss is the mean over."""
        return batch.mask.sum().item()


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Improve a model as `argv` says and print the report."""
    learn(argv, "ppo", "alignment/ppo", PPOConfig, PPO)
