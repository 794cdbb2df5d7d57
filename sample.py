"""Tells stories with a trained model: python sample.py --run DIR [--prompt TEXT] [--temperature T] …"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common import cli, files

if TYPE_CHECKING:
    from bpe import Tokenizer
    from model import GPT

END_OF_TEXT = "<|endoftext|>"


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Continue a prompt, or tell a story from nothing."""

    run: Path = Path("runs/quickstart")
    """Directory of a training run; its best weights are used."""
    prompt: str = ""
    """Text to continue; empty starts a new story."""
    num_samples: int = 3
    """How many continuations."""
    max_new_tokens: int = 300
    """Tokens to add at most; a sample also ends at <|endoftext|>."""
    temperature: float = 0.7
    """Divides the logits: 0 always takes the likeliest token, 1 samples as the model believes."""
    top_k: int | None = None
    """Sample among the k likeliest tokens only."""
    seed: int = 1234
    """The same seed tells the same stories."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature is {self.temperature}: it must be 0 (greedy) or above")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}: it must be at least 1")
        for name in ("num_samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")


def load_run(run: Path, device: str) -> tuple["GPT", "Tokenizer"]:
    """The best weights of a run and its tokenizer."""
    from bpe import Tokenizer
    from model import GPT
    from training.devices import choose_device

    best = files.whole_directory(run / "best")
    if not best.is_dir():
        raise FileNotFoundError(
            f"{run} holds no trained model (no {run / 'best'}): train one with python train.py --run {run}"
        )
    return GPT.from_pretrained(best).to(choose_device(device)).eval(), Tokenizer.load(run / "tokenizer.json")


def prompt_ids(config: SampleConfig, model: "GPT", tokenizer: "Tokenizer") -> list[int]:
    """The prompt's tokens behind `<|endoftext|>`, where every document of the training data starts."""
    ids = [tokenizer.special_tokens[END_OF_TEXT], *tokenizer.encode(config.prompt)]
    if len(ids) >= model.config.block_size:
        raise ValueError(
            f"the prompt has {len(ids)} tokens, the model's context {model.config.block_size}: give a shorter prompt"
        )
    return ids


def samples(config: SampleConfig) -> Iterator[Iterator[str]]:
    """Each sample as pieces of text, as they come."""
    from model import generate

    model, tokenizer = load_run(config.run, config.device)
    ids = prompt_ids(config, model, tokenizer)
    for number in range(config.num_samples):
        new = generate.stream(
            model,
            ids,
            config.max_new_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            stop=ids[0],
            seed=config.seed + number,
        )
        yield tokenizer.decode_stream(new)


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Samples as `argv` says, printing text as it comes."""
    config = cli.parse(SampleConfig, argv, prog="sample.py")
    for number, pieces in enumerate(samples(config), 1):
        print(f"--- sample {number} ---\n{config.prompt}", end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print("\n")


if __name__ == "__main__":
    main()
