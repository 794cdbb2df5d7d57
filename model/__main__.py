"""python -m model count PRESET | embeddings RUN | export RUN DIR: what a model costs, what it has learned about
words, and its weights for other people's tools.
"""

import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from common import cli, files
from kernels.dispatch import Kernels
from model.config import GPTConfig


@dataclass(frozen=True)
class Count:
    """Count parameters, operations and bytes of training before anything is trained."""

    preset: tyro.conf.Positional[str]
    """A preset's name, or a directory that holds a config.json."""
    changes: tyro.conf.Positional[tuple[str, ...]] = ()
    """Fields of the config to change, such as n_expert=8 or layers=aamm."""
    batch_size: int = 8
    """Sequences of block_size tokens per step."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """The precision of autocast; weights, gradients and optimizer stay in float32."""
    kernels: Kernels = "auto"
    """Whose attention and norms: torch's, ours (fused), or our CUDA on the CPU (emulated)."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass."""


@dataclass(frozen=True)
class Embeddings:
    """Print each word's nearest neighbours by cosine, and draw the embeddings."""

    run: tyro.conf.Positional[Path]
    """A run of train.py, such as runs/quickstart."""
    words: tuple[str, ...] = ()
    """Words to find the neighbours of (none: the most common ones)."""
    neighbours: int = 8
    """Neighbours per word."""
    plot: Path | None = None
    """Where to draw: words in two dimensions, and the three kinds of positions as heat maps."""
    labels: int = 150
    """Words in the plot."""


@dataclass(frozen=True)
class Export:
    """Write a run's best weights and its tokenizer in the layout of another library."""

    run: tyro.conf.Positional[Path]
    """A run of train.py, such as runs/quickstart."""
    directory: tyro.conf.Positional[Path]
    """A new directory, which sample.py --run reads too if the layout is GPT-2's or our own."""
    to: Literal["hf"] = "hf"
    """hf: Hugging Face's, for transformers' AutoModelForCausalLM and AutoTokenizer."""


def count(options: Count) -> None:
    """Print the tables of model.accounting."""
    changes = dict(map(parse_change, options.changes))
    config = dataclasses.replace(read_config(options.preset), **changes)
    again = options.checkpoint_activations or config.checkpoint_activations
    config = dataclasses.replace(config, checkpoint_activations=again)
    import kernels
    from model.accounting import report

    with kernels.use(options.kernels):
        report(config, " ".join([options.preset, *options.changes]), options.batch_size, options.precision)


def export(options: Export) -> None:
    """Write weights and tokenizer, and print which libraries can run them: theirs cannot run every variant."""
    from model import layouts
    from model.gpt import GPT
    from model.pretrained import is_gpt2

    tokenizer = options.run / "tokenizer.json"
    if not tokenizer.is_file():
        raise FileNotFoundError(
            f"there is no {tokenizer}: give the directory of a run, such as runs/quickstart"
        )
    if options.directory.exists():
        raise ValueError(f"{options.directory} is there already: give a new directory, or remove it first")
    gpt = GPT.from_pretrained(files.whole_directory(options.run / "best"))
    layout = layouts.layout(gpt.config)
    with files.atomic_directory(options.directory) as aside:
        if layout:
            layouts.save(aside, gpt.config, gpt.state_dict(), tokenizer)
        else:
            gpt.save_pretrained(aside, tokenizer)
    if layout:
        readers = f"transformers, as a {layout}"
    elif is_gpt2(gpt.config):
        readers = "transformers and sample.py"
    else:
        readers = "sample.py (GPT-2's code cannot run it)"
    print(f"written to {options.directory}, for {readers}")


def parse_change(text: str) -> tuple[str, Any]:
    """Return the field and the value of one change; a value that is no number and no true or false is a word.

    >>> parse_change("n_expert=8"), parse_change("layers=am")
    (('n_expert', 8), ('layers', 'am'))
    """
    name, equals, value = text.partition("=")
    if not equals or name not in {field.name for field in dataclasses.fields(GPTConfig)}:
        raise ValueError(f"{text!r} changes no field of the config: give FIELD=VALUE, such as n_expert=8")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def read_config(name: str) -> GPTConfig:
    """Return the config of a preset or of a directory."""
    from model import pretrained

    if Path(name).is_dir():
        return pretrained.read_config(Path(name))
    return GPTConfig.preset(name)


def embeddings(options: Embeddings) -> None:
    """Print and draw what model.embeddings finds."""
    from model.embeddings import show

    show(options.run, options.words, options.neighbours, options.plot, options.labels)


COMMANDS = {"count": (Count, count), "embeddings": (Embeddings, embeddings), "export": (Export, export)}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the commands."""
    cli.dispatch(COMMANDS, argv, prog="python -m model")


if __name__ == "__main__":
    main()
