"""Preferences of a human: python -m alignment rate RUN shows two answers, you pick the better one.

Each choice is appended to a file of preferences at once, so that nothing is lost whenever you stop. From there to
python -m alignment reward-model or dpo.
"""

import dataclasses
import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
import tyro

from alignment.instructions import Preference, Prompt, preference_row, read_prompts
from alignment.rollouts import sample
from common import cli
from inference import devices
from inference.chat import ChatTemplate
from inference.run import weights_directory
from model import GPT

HELP = "1 or 2: the better one; s: skip; q: stop"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    """Show two answers of a model to each prompt, and append which one you prefer to a file."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run whose model answers."""
    prompts: Path = Path("tokens/chat/prompts/train.jsonl")
    """File of prompts."""
    out: Path = Path("preferences.jsonl")
    """File of preferences; what it holds stays."""
    temperature: float = 1.0
    """Sampling temperature."""
    max_new_tokens: int = 200
    """Longest answer, in tokens."""
    seed: int | None = None
    """Seed of the prompts' order and of the answers. Default: another one each time."""


def rate(options: Rate) -> None:
    """Ask until there is no prompt left, or the user stops."""
    template = ChatTemplate.load(options.run)
    prompts = read_prompts(options.prompts)
    model = GPT.from_pretrained(weights_directory(options.run)).to(devices.choose_device("auto"))
    if options.seed is not None:
        torch.manual_seed(options.seed)
    random.Random(options.seed).shuffle(prompts)
    rated = 0
    for prompt in prompts:
        answers = _two(model, template, prompt, options)
        if len(set(answers)) < 2 or not all(answer.strip() for answer in answers):
            continue
        choice = _choose(prompt, answers)
        if choice == "q":
            break
        if choice in ("1", "2"):
            chosen, rejected = answers if choice == "1" else reversed(answers)
            append(options.out, Preference(prompt.messages, chosen, rejected))
            rated += 1
    print(f"{options.out}: {rated} preferences added")


def _two(model: GPT, template: ChatTemplate, prompt: Prompt, options: Rate) -> list[str]:
    ids = template.prompt(prompt.messages)
    return sample(model, template, [ids, ids], options.max_new_tokens, options.temperature).answers


def _choose(prompt: Prompt, answers: list[str]) -> str:
    """Show two answers and return 1, 2, s or q; the end of the input is q."""
    for message in prompt.messages:
        print(f"\n{message.role}: {message.content}")
    for number, answer in enumerate(answers, 1):
        print(f"\n--- {number} ---\n{answer}")
    return next((word for word in _words() if word in ("1", "2", "s", "q")), "q")


def _words() -> Iterator[str]:
    while True:
        try:
            yield input(f"\n{HELP} > ").strip().lower()
        except EOFError:
            return


def append(path: Path, preference: Preference) -> None:
    """Append a preference to a file as one line, flushed to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(preference_row(preference), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Do what `argv` says."""
    rate(cli.parse(Rate, argv, prog="python -m alignment rate"))
