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


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOf:
    """Expert iteration: sample, keep what earns the full reward, fine-tune on it."""

    init_from: Path = Path("runs/sft")
    """The run to improve."""
    run: Path = Path("runs/best-of")
    """The run to write; the answers kept go to tokens/NAME of it."""
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
    temperature: float = 1.0
    """Sampling temperature."""
    steps: int = 100
    """Steps of fine-tuning."""
    seed: int = 1
    """Seed of the sampling and the fine-tuning."""


def best_of(options: BestOf) -> None:
    """Sample, filter, fine-tune."""
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

    data = Path("tokens") / options.run.name
    file = data.with_name(f"{data.name}.jsonl")
    write_rows(file, (chat_row([*messages, Message("assistant", text)]) for messages, text in kept.items()))
    prepare.prepare(prepare.Data(base=options.init_from, out=data, source=(str(file),), val_fraction=0.1))
    flags = {"--init-from": options.init_from, "--data": data, "--run": options.run, "--seed": options.seed}
    sft.main([*(str(word) for flag in flags.items() for word in flag), "--steps", str(options.steps)])


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Do what `argv` says."""
    best_of(cli.parse(BestOf, argv, prog="python -m alignment best-of"))
