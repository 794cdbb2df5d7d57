"""Reinforcement learning from rewards, on the training loop: what GRPO and PPO have in common.

A step of the loop takes some prompts, samples a group of answers to each, rewards them, and moves the weights by one or
several passes over these answers. Everything else is the loop's: checkpoints, resuming, schedules, several processes.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from alignment import losses, rewards
from alignment.instructions import Prompt, read_prompts
from alignment.lora import Adaptation, Adapting
from alignment.numbered import Numbers
from alignment.rollouts import Rollouts, kl_on_samples, reference_model, sample, token_log_probabilities
from common import files
from data.tokenfile import sha256
from inference import devices
from inference.chat import ChatTemplate
from inference.run import decode
from model import GPT
from training import objective
from training.batching import Batching
from training.checkpoint import Progress
from training.config import TrainConfig
from training.distributed import SINGLE, Processes

B = TypeVar("B", bound="Batch")
SHOWN = 3  # answers in the report
QUICK = 8  # prompts of an estimate that only asks if the weights are sound
# How far, on average, the first pass may be from the log-probabilities that sampling recorded: with float32 products,
# and with those of 16 bits, which the kernels of decoding and training add up in another order.
SAME, ROUGHLY_SAME = 1e-4, 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which prompts, how many answers, and what they earn."""

    prompts: Path | None = None
    """File of prompts with checks. Default: prompts/train.jsonl in --data."""
    reward: str = rewards.CHECKS
    """checks, stories, arithmetic, partial, PATH.py:function, model:RUN or judge:URL."""
    questions: int = 8
    """Prompts in a step, over all processes."""
    group: int = 8
    """Answers sampled to each prompt."""
    max_new_tokens: int = 200
    """Longest answer, in tokens."""
    truncated: Literal["fail", "score", "mask"] = "fail"
    """An answer cut off at that length earns 0, or what the reward says, or nothing is learned from it."""
    explore: float = 1.0
    """Sampling temperature of the answers; probabilities are taken at it, too."""
    passes: int = 1
    """Passes over the answers of a step."""
    minibatches: int = 1
    """Updates of the weights in a pass."""
    clip_low: float = 0.2
    """The ratio of new and old probability counts down to 1 - this …"""
    clip_high: float = 0.2
    """… and up to 1 + this."""
    kl: float = 0.0
    """Weight of the KL divergence from the model that the run began with; 0 never computes it in a step."""
    held_out: int = 64
    """Prompts kept out of the training, for the estimates."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLConfig(TrainConfig, Sampling, Adaptation):
    """Settings that GRPO and PPO share. Dropout is off: it would change the probabilities between two passes."""

    everyday: ClassVar[Mapping[str, type]] = {
        **TrainConfig.everyday,
        "sampling": Sampling,
        "adaptation": Adaptation,
    }

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", dataclasses.replace(self.model, dropout=0.0))
        super().__post_init__()
        if self.init_from is None:
            raise ValueError("there is no model to improve: give --init-from RUN")
        for name in ("questions", "group", "max_new_tokens", "passes", "minibatches", "held_out"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("clip_low", "clip_high", "kl"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} is {getattr(self, name)}: it must not be below 0")
        if not self.explore > 0:
            raise ValueError(f"explore is {self.explore}: greedy answers are all the same, take one above 0")
        if self.questions * self.group % self.minibatches:
            raise ValueError(
                f"{self.questions} x {self.group} answers do not divide into {self.minibatches} minibatches"
            )

    def _check_batch(self) -> None:
        if self.micro_batch != "auto" and not self.micro_batch > 0:
            raise ValueError(f"micro_batch is {self.micro_batch}: it must be above 0, or auto")

    @property
    def step_tokens(self) -> int:
        """Return the tokens of a step if every answer filled the context."""
        return self.questions * self.group * self.model.block_size

    @property
    def prompts_file(self) -> Path:
        """Return the file of prompts."""
        return self.prompts or self.data / "prompts" / "train.jsonl"


@dataclasses.dataclass(frozen=True)
class Batch:
    """Answers to learn from, N rows of T tokens; see rollouts.Rollouts. GRPO and PPO add what they need."""

    ids: Tensor
    mask: Tensor
    old: Tensor
    """(N, T) log-probabilities with which the answers were sampled."""
    fresh: Tensor
    """(N,) bool: True before the first update, where old and new probabilities must be equal."""


class Reinforcement(Adapting):
    """Sample, reward, learn. A subclass says what an answer's tokens are worth (`prepare`) and what the loss is."""

    log_every = 1

    def __init__(self, config: RLConfig) -> None:
        self.config = config
        self.template = ChatTemplate.load(config.data)
        self.reward = rewards.make_reward(config.reward)
        self.train, self.val = self._read_prompts()
        rewards.probe(self.reward, list(self.train[0].messages), self.train[0].check)
        self._reference: GPT | None = None
        self._figures: dict[str, float] = {}

    def _read_prompts(self) -> tuple[list[Prompt], list[Prompt]]:
        """Return the prompts to train on and those held out; say once how many are too long."""
        config, path = self.config, self.config.prompts_file
        task = rewards.task_of(config.reward)
        wanted = [prompt for prompt in read_prompts(path) if task in (None, prompt.check.get("task"))]
        fitting = [p for p in wanted if len(self._ids(p)) < config.model.block_size]
        if len(fitting) < len(wanted):
            print(
                f"{path}: {len(wanted) - len(fitting):,} prompts fill the context of {config.model.block_size} tokens: "
                "they are left out",
                file=sys.stderr,
            )
        if len(fitting) <= config.held_out:
            raise ValueError(
                f"{path} has {len(fitting)} prompts for the reward {config.reward}, of which {config.held_out} are "
                "held out (--held-out): give more prompts"
            )
        return fitting[config.held_out :], fitting[: config.held_out]

    def _ids(self, prompt: Prompt) -> list[int]:
        return self.template.prompt(prompt.messages)

    def open(self, batching: Batching, processes: Processes = SINGLE) -> Numbers:
        """Return endless batches of the numbers of this process's prompts."""
        config = self.config
        if batching.rows % config.group:
            raise ValueError(
                f"{config.questions} questions cannot be divided among {processes.world_size} processes"
            )
        self.batching, self.world_size = batching, processes.world_size
        count = batching.rows // config.group
        place = config.seed, processes.rank, processes.world_size
        return Numbers(self.train, count, config.model.block_size, *place, digest=sha256(config.prompts_file))

    # A step

    def updates(self, model: GPT, batch: Tensor) -> list[Batch]:
        """Sample a group of answers to each prompt, reward them, and return the batches to learn from."""
        config, start = self.config, time.perf_counter()
        asked = [self.train[number] for number in batch.tolist() for _ in range(config.group)]
        rollouts = self.roll_out(model, asked, config.explore)
        sampled = time.perf_counter()
        earned = self.earned(asked, rollouts)
        scored = time.perf_counter()
        self._figures = _describe(rollouts, earned, config.group)
        prepared = self.prepare(model, rollouts, earned)
        parts = _shortest_first(self.worth_learning(prepared), config.minibatches)
        self._sampled = int(rollouts.mask.sum())
        self._figures |= {
            "sampling_seconds": sampled - start,
            "reward_seconds": scored - sampled,
            "preparing_seconds": time.perf_counter() - scored,
        }
        later = [dataclasses.replace(part, fresh=torch.zeros_like(part.fresh)) for part in parts]
        return [parts[0], *later[1:], *later * (config.passes - 1)]

    def roll_out(self, model: GPT, asked: Sequence[Prompt], temperature: float) -> Rollouts:
        """Return an answer to each prompt."""
        ids = [self._ids(prompt) for prompt in asked]
        return sample(model, self.template, ids, self.config.max_new_tokens, temperature)

    def earned(self, asked: Sequence[Prompt], rollouts: Rollouts) -> Tensor:
        """Return the rewards (N,) of answers; one that was cut off earns 0 unless --truncated score."""
        prompts, checks = [list(each.messages) for each in asked], [each.check for each in asked]
        found = torch.tensor(self.reward(prompts, rollouts.answers, checks), device=rollouts.ids.device)
        if self.config.truncated == "score":
            return found
        return found.where(rollouts.finished, found.clamp(max=0.0))

    def learned(self, rollouts: Rollouts) -> Tensor:
        """Return the mask (N, T) of the tokens to learn from: none of a cut-off answer with --truncated mask."""
        if self.config.truncated != "mask":
            return rollouts.mask
        return rollouts.mask * rollouts.finished[:, None]

    def prepare(self, model: GPT, rollouts: Rollouts, earned: Tensor) -> Batch:
        """Return the answers with what their tokens are worth."""
        raise NotImplementedError

    def worth_learning(self, batch: B) -> B:
        """Return the answers of which something can be learned; all, unless a subclass knows better."""
        return batch

    def fresh(self, rollouts: Rollouts) -> Tensor:
        """Return a mark (N,) for every answer: nothing has been learned from it."""
        return torch.ones(len(rollouts.ids), dtype=torch.bool, device=rollouts.ids.device)

    def ratio_checked(self, new: Tensor, batch: Batch) -> Tensor:
        """Return new log-probabilities; ValueError if they are not the old ones though nothing has been learned."""
        if batch.fresh.all():
            off = losses.masked_mean((new.detach() - batch.old).abs(), batch.mask).item()
            if off > (ROUGHLY_SAME if torch.is_autocast_enabled(new.device.type) else SAME):
                raise ValueError(
                    f"at the first pass the ratio of new and old probabilities is e^±{off:.2g}, not 1: the answers "
                    "were sampled by another model, at another temperature or with other dropout than is trained"
                )
        return new

    def reference(self, device: torch.device) -> GPT:
        """Return the model that the run began with, which is read once."""
        if self._reference is None:
            self._reference = reference_model(self.config, device)
        return self._reference

    @torch.no_grad()
    def reference_log_probabilities(self, rollouts: Rollouts) -> Tensor:
        """Return the log-probabilities (N, T) of the model that the run began with."""
        model, rows = self.reference(rollouts.ids.device), self.batching.micro_batch
        parts = zip(rollouts.ids.split(rows), rollouts.mask.split(rows), strict=True)
        return torch.cat([token_log_probabilities(model, *part, self.config.explore) for part in parts])

    def tokens(self, updates: Sequence[Batch]) -> int:
        """Return the tokens of the answers of a step."""
        return self.world_size * self._sampled

    def figures(self) -> dict[str, float]:
        """Return rewards, lengths, entropy and more of the last step's answers."""
        return self._figures

    # Evaluation

    def estimate(self, model: GPT, batches: int, *, val_only: bool = False) -> dict[str, float]:
        """Return the mean reward of greedy answers to the held-out prompts, and as "val_loss" its negative."""
        if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
            return {"val_loss": math.nan}
        asked = self.val[:QUICK] if val_only else self.val
        rollouts = self.roll_out(model, asked, 0.0)
        earned = self.earned(asked, rollouts)
        passed = (earned >= 1).float().mean().item()
        found = {"val_loss": -earned.mean().item(), "val_reward": earned.mean().item(), "val_passed": passed}
        return found if val_only else found | {"val_kl": self._kl(model)}

    def _kl(self, model: GPT) -> float:
        """Return the KL divergence per token from the model that the run began with, on a few sampled answers."""
        prompts = [self._ids(prompt) for prompt in self.val[:QUICK]]
        reference = self.reference(model.wte.weight.device)
        longest, seed = self.config.max_new_tokens, self.config.seed
        return kl_on_samples(model, reference, self.template, prompts, longest, seed)

    def answers(self, model: GPT, count: int) -> list[tuple[str, str]]:
        """Return the last messages of held-out prompts, and greedy answers to them."""
        asked = self.val[:count]
        answers = self.roll_out(model, asked, 0.0).answers
        return [(each.messages[-1].content, answer) for each, answer in zip(asked, answers, strict=True)]

    def sample(self, model: GPT) -> dict[str, str]:
        """Return a greedy answer to the first held-out prompt."""
        ((asked, answer),) = self.answers(model, 1)
        return {"request": asked, "answer": answer}

    def text(self, batch: Batch) -> str:
        """Return the text of the batch's first row, for an error message."""
        return decode(self.template.tokenizer, batch.ids[0].tolist())

    def report(self, progress: Progress, device: torch.device, precision: torch.dtype) -> "Report":
        """Evaluate RUN/best on the held-out prompts."""
        peak = devices.peak_memory_mb(device)
        best = GPT.from_pretrained(files.whole_directory(self.config.run_directory / "best")).to(device)
        with devices.autocast(device, precision):
            found, answers = self.estimate(best, 1), self.answers(best, SHOWN)
        return Report(
            reward=found["val_reward"],
            passed=found["val_passed"],
            kl=found["val_kl"],
            steps=progress.step,
            tokens=progress.tokens,
            seconds=progress.seconds,
            peak_memory_mb=peak,
            answers=answers,
        )


@dataclasses.dataclass(frozen=True)
class Report(objective.Report):
    """RUN/report.json of reinforcement learning, of the best weights on held-out prompts."""

    reward: float
    """Mean of greedy answers."""
    passed: float
    """Fraction of greedy answers with a reward of 1 or more."""
    kl: float
    """KL divergence from the model that the run began with, in nats per token."""
    steps: int
    tokens: int
    """Tokens sampled in training."""
    seconds: float
    """Time of sampling and training, without evaluations."""
    peak_memory_mb: float
    answers: list[tuple[str, str]]

    def lines(self, run: Path) -> list[str]:
        """Return the figures and some answers."""
        lines = [
            f"reward           {self.reward:.3f} on held-out prompts, {self.passed:.1%} of the answers earn all of it",
            f"distance         {self.kl:.3f} nats per token from where the run began",
            f"sampled          {self.tokens:,} tokens in {self.seconds:.0f} s, {self.steps} steps",
            f"peak memory      {self.peak_memory_mb:,.0f} MB",
            f"written to       {run}",
        ]
        for asked, answer in self.answers:
            lines += ["", asked, answer]
        return lines


def _describe(rollouts: Rollouts, earned: Tensor, group: int) -> dict[str, float]:
    """Return what the log says of a step's answers. The entropy is estimated by the drawn tokens' own surprise."""
    lengths, groups = rollouts.lengths.float(), earned.view(-1, group)
    low, high = lengths.quantile(lengths.new_tensor([0.05, 0.95])).tolist()
    return {
        "reward": earned.mean().item(),
        "passed": (earned >= 1).float().mean().item(),
        "entropy": -losses.masked_mean(rollouts.log_probabilities, rollouts.mask).item(),
        "length": lengths.mean().item(),
        "length_5": low,
        "length_95": high,
        "cut_off": 1 - rollouts.finished.float().mean().item(),
        "no_signal": (groups == groups[:, :1]).all(1).float().mean().item(),
    }


def _shortest_first(batch: B, parts: int) -> list[B]:
    """Return a batch divided into `parts`, each ordered by length so that a micro-batch has little padding.

    Every part gets answers of all lengths.
    """
    order = batch.mask.flip(1).argmax(1).neg().argsort()  # by the place of an answer's last token
    return [rows_of(batch, order[part::parts]) for part in range(parts)]


def rows_of(batch: B, rows: Tensor) -> B:
    """Return some rows of a batch, by their numbers (N,)."""
    return dataclasses.replace(batch, **{name: tensor[rows] for name, tensor in vars(batch).items()})
