"""Base models that have learned nothing, or next to it, with instruction data, prompts and preferences, made once."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment import prepare
from alignment.__main__ import main
from alignment.grpo import GRPOConfig
from inference.run import load_tokenizer
from model import GPT, GPTConfig, pretrained

NAMES = "Lily", "Tom", "Mia", "Max", "Amy", "Ben", "Sue", "Zoe", "Sam", "Pip", "Dot", "Jim"
SIZES = ["--count", "60", "--arithmetic", "0.9", "--prompts", "20", "--tests", "10", "--val-fraction", "0.1"]


@pytest.fixture(scope="session")
def base(corpus, tmp_path_factory) -> Path:
    """Return a one-layer model with a context of 96 tokens and the tokenizer of the tiny corpus."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("runs") / "base"
    gpt = GPT(GPTConfig(vocab_size=384, block_size=96, n_layer=1, n_head=2, n_embd=32))
    for parameter in gpt.parameters():  # so large that one token's loss is not that of another
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    gpt.save_pretrained(directory, corpus / "tokenizer.json")
    return directory


@pytest.fixture(scope="session")
def chat_data(base, tmp_path_factory) -> Path:
    """Return 60 conversations, most of them about arithmetic."""
    out = tmp_path_factory.mktemp("tokens") / "chat"
    main(["data", "--base", str(base), "--out", str(out), *SIZES])
    return out


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(name: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": name}]


@pytest.fixture(scope="session")
def chat(babble: Path, tmp_path_factory) -> Path:
    """Return chat data of a babbling model: conversations, prompts that ask for sums, preferences."""
    folder = tmp_path_factory.mktemp("chat")
    conversations = [
        {"messages": [*asked(f"Hi {name}"), {"role": "assistant", "content": f"I am {name}."}]}
        for name in NAMES
    ]
    source = write_rows(folder / "conversations.jsonl", conversations)
    data = folder / "data"
    prepare.prepare(prepare.Data(base=babble, out=data, source=(str(source),), val_fraction=0.2))
    sums = [
        {"messages": asked(f"{a} + 1?"), "check": {"task": "arithmetic", "a": a, "op": "+", "b": 1}}
        for a in range(12)
    ]
    write_rows(data / "prompts" / "train.jsonl", sums)
    pairs = [{"prompt": asked(name), "chosen": f"I am {name}.", "rejected": "No no no."} for name in NAMES]
    write_rows(data / "preferences.jsonl", pairs)
    return data


@pytest.fixture
def letters(tmp_path: Path) -> str:
    """Return a reward: the fraction of the letter e in the answer, which a few steps can raise."""
    path = tmp_path / "letters.py"
    path.write_text(
        "def reward(prompts, answers, checks):\n    return [a.count('e') / max(1, len(a)) for a in answers]\n"
    )
    return f"{path}:reward"


def settings(babble: Path, chat: Path, run: Path) -> dict[str, Any]:
    """Return what every stage of the tiny model has in common."""
    model = dataclasses.replace(
        pretrained.read_config(babble / "best"), vocab_size=load_tokenizer(chat).vocab_size
    )
    return {
        "model": model,
        "data": chat,
        "run": run,
        "init_from": babble,
        "steps": 4,
        "micro_batch": 8,
        "batch_tokens": 8 * model.block_size,
        "learning_rate": 3e-3,
        "weight_decay": 0.0,
        "warmup_steps": 1,
        "eval_every": 2,
        "eval_batches": 1,
        "checkpoint_every": 2,
        "precision": "float32",
        "device": "cpu",
        "held_out": 4,
    }


@pytest.fixture
def config(babble, chat, letters, tmp_path) -> GRPOConfig:
    """Return four steps of GRPO with the reward `letters`."""
    return GRPOConfig(
        **settings(babble, chat, tmp_path / "run"),
        reward=letters,
        questions=4,
        group=4,
        max_new_tokens=12,
        truncated="score",
    )
