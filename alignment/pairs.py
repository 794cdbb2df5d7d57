"""Pairs of answers, the better one first: from a file to batches, and made by a verifier.

python -m alignment pairs RUN [--prompts FILE] [--out FILE]      the answers of a run, told apart by their checks
"""

import dataclasses
import itertools
import math
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment.instructions import Preference, preference_row, read_preferences, read_prompts, write_rows
from alignment.lora import Adaptation, Adapting
from alignment.numbered import Numbers
from alignment.rewards import CHECKS, make_reward
from alignment.rollouts import sample
from common import cli
from data.tokenfile import sha256
from inference import devices
from inference.chat import ChatTemplate, Message
from inference.run import weights_directory
from model import GPT
from model.gpt import evaluating
from training.batching import Batching
from training.config import TrainConfig
from training.distributed import SINGLE, Processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preferences:
    """Which pairs of answers."""

    preferences: Path = Path("tokens/chat/preferences.jsonl")
    """File of preferences: prompt, chosen, rejected; python -m alignment pairs or rate makes one."""
    held_out: int = 64
    """Pairs kept out of the training, for the estimates."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairConfig(TrainConfig, Preferences, Adaptation):
    """Settings of an objective that learns from pairs. Dropout is off, as the reference has none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", dataclasses.replace(self.model, dropout=0.0))
        super().__post_init__()
        if self.init_from is None:
            raise ValueError("there is no model to start from: give --init-from RUN")
        if self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}: it must be at least 1")


@dataclasses.dataclass(frozen=True)
class Pair:
    """The ids of a prompt with each of two answers, up to and including the end of the turn."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclasses.dataclass(frozen=True)
class PairBatch:
    """B pairs, padded on the right; masks are 1 at the answers' tokens."""

    chosen: Tensor
    """(B, T) int64."""
    chosen_mask: Tensor
    rejected: Tensor
    rejected_mask: Tensor
    reference: Tensor
    """(B, 2): the reference's log-probabilities of both answers; zeros where none is needed."""

    def both(self) -> tuple[Tensor, Tensor]:
        """Return ids and mask (2 B, T): the chosen answers, then the rejected ones."""
        return torch.cat([self.chosen, self.rejected]), torch.cat([self.chosen_mask, self.rejected_mask])


def read_pairs(path: Path, template: ChatTemplate, block_size: int) -> list[Pair]:
    """Return the pairs of a file that fit the context; say once how many do not."""
    pairs = [encode(preference, template) for preference in read_preferences(path)]
    fitting = [pair for pair in pairs if max(len(pair.chosen), len(pair.rejected)) <= block_size]
    if len(fitting) < len(pairs):
        print(
            f"{path}: {len(pairs) - len(fitting):,} pairs are longer than the context of {block_size} tokens: they are "
            "left out",
            file=sys.stderr,
        )
    return fitting


def encode(preference: Preference, template: ChatTemplate) -> Pair:
    """Return a preference as ids."""
    asked = list(preference.prompt)
    answers = (
        template.encode([*asked, Message("assistant", text)])[0]
        for text in (preference.chosen, preference.rejected)
    )
    return Pair(template.prompt(asked), *answers)


def pad(rows: Sequence[list[int]], starts: Sequence[int], width: int) -> tuple[Tensor, Tensor]:
    """Return ids (B, width) with padding on the right, and a mask of what comes from `starts` on."""
    ids, mask = (
        torch.zeros(len(rows), width, dtype=torch.long),
        torch.zeros(len(rows), width, dtype=torch.long),
    )
    for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, start : len(row)] = 1
    return ids, mask


def batch_of(pairs: Sequence[Pair], reference: Tensor, device: torch.device) -> PairBatch:
    """Return pairs as tensors on a device, with the reference's log-probabilities (B, 2)."""
    width = max(max(len(pair.chosen), len(pair.rejected)) for pair in pairs)
    starts = [len(pair.prompt) for pair in pairs]
    chosen = pad([pair.chosen for pair in pairs], starts, width)
    rejected = pad([pair.rejected for pair in pairs], starts, width)
    return PairBatch(*(tensor.to(device) for tensor in (*chosen, *rejected, reference)))


class FromPairs(Adapting):
    """Base of the objectives on pairs: reading, batches, estimates. A subclass has losses and margins."""

    def __init__(self, config: PairConfig) -> None:
        self.config = config
        self.template = ChatTemplate.load(config.data)
        pairs = read_pairs(config.preferences, self.template, config.model.block_size)
        if len(pairs) <= config.held_out:
            raise ValueError(
                f"{config.preferences} has {len(pairs)} pairs that fit, of which {config.held_out} are held out "
                "(--held-out): give more pairs"
            )
        self.train, self.val = pairs[config.held_out :], pairs[: config.held_out]
        self._figures: dict[str, float] = {}

    def open(self, batching: Batching, processes: Processes = SINGLE) -> Numbers:
        """Return endless batches of the numbers of this process's pairs."""
        place = self.config.seed, processes.rank, processes.world_size
        self.batching = batching
        digest = sha256(self.config.preferences)
        return Numbers(self.train, batching.rows, self.config.model.block_size, *place, digest=digest)

    def updates(self, model: GPT, batch: Tensor) -> list[PairBatch]:
        """Return the pairs of these numbers as tensors."""
        pairs, device = [self.train[number] for number in batch.tolist()], model.wte.weight.device
        return [batch_of(pairs, self.known(pairs, device), device)]

    def known(self, pairs: Sequence[Pair], device: torch.device) -> Tensor:
        """Return the reference's log-probabilities (B, 2) of pairs; zeros for an objective without a reference."""
        return torch.zeros(len(pairs), 2)

    def weight(self, batch: PairBatch) -> float:
        """Return the number of pairs."""
        return float(len(batch.chosen))

    def figures(self) -> dict[str, float]:
        """Return the margin and accuracy of the last micro-batch."""
        return self._figures

    def losses_and_margins(self, model: Callable[..., Any], batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Return the losses (B,) of pairs, and how much better the chosen answer is judged to be (B,)."""
        raise NotImplementedError

    def loss(self, model: Callable[..., Any], batch: PairBatch) -> Tensor:
        """Return the mean loss of a micro-batch."""
        found, margins = self.losses_and_margins(model, batch)
        self._figures = describe(margins.detach())
        return found.mean()

    @torch.no_grad()
    def estimate(self, model: GPT, batches: int, *, val_only: bool = False) -> dict[str, float]:
        """Return loss, margin and accuracy on the held-out pairs; only some of them if val_only."""
        rows, device = self.batching.micro_batch, model.wte.weight.device
        pairs = self.val[:rows] if val_only else self.val
        parts = [pairs[first : first + rows] for first in range(0, len(pairs), rows)]
        with evaluating(model):
            found = [
                self.losses_and_margins(model, batch_of(part, self.known(part, device), device))
                for part in parts
            ]
        losses, margins = (torch.cat(each) for each in zip(*found, strict=True))
        named = {f"val_{name}": value for name, value in describe(margins).items()}
        return {"val_loss": losses.mean().item(), **named}

    def text(self, batch: PairBatch) -> str:
        """Return the first pair's chosen conversation, for an error message."""
        return self.template.tokenizer.decode(batch.chosen[0].tolist())


def describe(margins: Tensor) -> dict[str, float]:
    """Return the mean margin (B,), and the fraction of pairs whose better answer is judged to be better.

    >>> describe(torch.tensor([1.0, -2.0]))
    {'margin': -0.5, 'accuracy': 0.5}
    """
    return {"margin": margins.mean().item(), "accuracy": (margins > 0).float().mean().item()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Make:
    """Make preferences: sample answers to prompts, and pair one that passes its check with one that does not."""

    run: Path = Path("runs/sft")
    """The run whose model answers."""
    prompts: Path = Path("tokens/chat/prompts/train.jsonl")
    """File of prompts with checks."""
    out: Path = Path("tokens/chat/preferences.jsonl")
    """File to write."""
    count: int = 2000
    """Prompts to answer."""
    group: int = 8
    """Answers to each."""
    max_new_tokens: int = 200
    """Longest answer, in tokens."""
    temperature: float = 0.7
    """Sampling temperature: at 1 most faults are slips that greedy answers do not make."""
    reward: str = CHECKS
    """The reward: an answer that earns most is chosen, one that earns least rejected."""
    seed: int = 1
    """Seed of the sampling."""
    device: str = "auto"
    """cpu, cuda, …"""
    overwrite: bool = False
    """Replace the file."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.group < 2:
            raise ValueError(
                f"count is {self.count} and group {self.group}: they must be at least 1 and 2, as a pair has two"
            )


def make(options: Make) -> None:
    """Write preferences among a run's own answers; prompts whose answers all earn the same give none."""
    if options.out.exists() and not options.overwrite:
        raise ValueError(
            f"{options.out} exists already: choose another --out, or replace it with --overwrite"
        )
    prompts = read_prompts(options.prompts)[: options.count]
    reward = make_reward(options.reward)
    template = ChatTemplate.load(options.run)
    model = GPT.from_pretrained(weights_directory(options.run)).to(devices.choose_device(options.device))
    torch.manual_seed(options.seed)
    asked = [prompt for prompt in prompts for _ in range(options.group)]
    ids = [template.prompt(prompt.messages) for prompt in asked]
    answers = sample(model, template, ids, options.max_new_tokens, options.temperature).answers
    earned = reward([list(p.messages) for p in asked], answers, [p.check for p in asked])
    found = []
    for first in range(0, len(asked), options.group):
        group = range(first, first + options.group)
        usable = {answers[i]: earned[i] for i in group if answers[i].strip()}
        pair = part_last(usable)
        if pair:
            found.append(Preference(asked[first].messages, *pair))
    if not found:
        raise ValueError("no prompt has both a better and a worse answer: raise --group or --temperature")
    write_rows(options.out, map(preference_row, found))
    share = len(found) / len(prompts)
    print(f"{options.out}: {len(found):,} preferences, from {share:.0%} of {len(prompts):,} prompts")
    if math.isclose(share, 0, abs_tol=0.05):
        print("few prompts have both: the model passes nearly all checks, or nearly none", file=sys.stderr)


def part_last(earned: Mapping[str, float]) -> tuple[str, str] | None:
    """Return a best and a worst of the answers that differ as late as two of them do; None if all earned the same.

    What two answers begin with cancels in DPO's margin. From two that part early much is learned that has nothing to
    do with what one of them did wrong.

    >>> part_last({"The fox ran.": 1.0, "A hen ran.": 1.0, "The fox sat.": 0.0})
    ('The fox ran.', 'The fox sat.')
    """
    most, least = max(earned.values(), default=0), min(earned.values(), default=0)
    if most == least:
        return None
    best, worst = ([text for text, value in earned.items() if value == kind] for kind in (most, least))
    return max(itertools.product(best, worst), key=lambda pair: _in_common(*pair))


def _in_common(one: str, other: str) -> int:
    """Return the characters that two texts have in common before they part.

    >>> _in_common("The fox", "The hen")
    4
    """
    return sum(1 for _ in itertools.takewhile(bool, map(operator.eq, one, other)))


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Do what `argv` says."""
    make(cli.parse(Make, argv, prog="python -m alignment pairs"))
