"""Best of n, or expert iteration: the simplest way to learn from a reward, and the one to read first.

    python -m alignment best-of [--init-from RUN] [--run RUN] [--group 8]

Sample several answers to each prompt, keep one that earns the full reward, fine-tune on what was kept. Nothing but
supervised learning; the model is pulled towards the best that it can do already. Again from the result: iteration.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from alignment import prepare, rewards, sft
from alignment.instructions import chat_row, read_prompts, write_rows
from alignment.rollouts import sample
from common import cli
from inference import devices
from inference.chat import ChatTemplate, Message
from inference.run import weights_directory
from model import GPT
from training.config import flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOf:
    """Expert iteration: sample, keep what earns the full reward, fine-tune on it."""

    init_from: Path = Path("runs/sft")
    """The run to improve."""
    run: Path = Path("runs/best-of")
    """The run to write."""
    data: Path = Path("tokens/best-of")
    """The folder of instruction data to write, and DATA.jsonl: the answers kept."""
    prompts: Path = Path("tokens/chat/prompts/train.jsonl")
    """File of prompts with checks."""
    reward: str = rewards.CHECKS
    """The reward of an answer, as for grpo; those that earn 1 or more are kept."""
    count: int = 1000
    """Prompts to answer."""
    group: int = 8
    """Answers to each."""
    max_new_tokens: int = 200
    """Longest answer, in tokens."""
    temperature: float = 0.7
    """Sampling temperature."""
    steps: int = 100
    """Steps of fine-tuning."""
    seed: int = 1
    """Seed of the sampling and the fine-tuning."""
    overwrite: bool = False
    """Replace the run and the data."""

    def __post_init__(self) -> None:
        for name in ("count", "group", "max_new_tokens", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}: it must be at least 1"
                )
        for path in (self.run, self.data):
            if path.exists() and not self.overwrite:
                raise ValueError(f"{path} exists already: choose another one, or replace it with --overwrite")


def best_of(options: BestOf) -> None:
    """Sample, filter, fine-tune.

    ValueError if fewer than two prompts have an answer to keep, and for what cannot be written or read.
    """
    prompts = read_prompts(options.prompts)[: options.count]
    reward = rewards.make_reward(options.reward)
    template = ChatTemplate.load(options.init_from)
    model = GPT.from_pretrained(weights_directory(options.init_from)).to(devices.choose_device("auto"))
    torch.manual_seed(options.seed)

    asked = [prompt for prompt in prompts for _ in range(options.group)]
    ids = [template.prompt(prompt.messages) for prompt in asked]
    answers = sample(model, template, ids, options.max_new_tokens, options.temperature).answers
    earned = reward([list(each.messages) for each in asked], answers, [each.check for each in asked])
    kept = {
        prompt.messages: answer
        for prompt, answer, value in zip(asked, answers, earned, strict=True)
        if value >= 1 and answer.strip()
    }
    print(f"kept an answer to {len(kept):,} of {len(prompts):,} prompts")
    if len(kept) < 2:
        raise ValueError("fewer than two prompts have an answer that earns 1: raise --group or --count")

    file = options.data.with_name(f"{options.data.name}.jsonl")
    write_rows(file, (chat_row([*messages, Message("assistant", text)]) for messages, text in kept.items()))
    prepare.prepare(
        prepare.Data(
            base=options.init_from,
            out=options.data,
            source=(str(file),),
            val_fraction=0.1,
            overwrite=options.overwrite,
        )
    )
    names = ("init_from", "data", "run", "seed", "steps", "overwrite")
    flags = [word for name in names for word in flag(name, getattr(options, name))]
    sft.main(["--preset", "alignment/best-of", *flags])


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Do what `argv` says."""
    best_of(cli.parse(BestOf, argv, prog="python -m alignment best-of"))
