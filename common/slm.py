"""The console command `slm`: one name in front of every command of the project.

slm train --steps 100        is    python train.py --steps 100
slm data prepare …           is    python -m data prepare …
"""

from collections.abc import Sequence

from common import cli
from common.cli import Module

COMMANDS = {
    "train": Module("train", "token files -> a trained model"),
    "sample": Module("sample", "a trained model -> text"),
    "bpe": Module("bpe.__main__", "train, use and compare tokenizers"),
    "data": Module("data.__main__", "corpora -> token files"),
    "kernels": Module("kernels.__main__", "what is built, how fast it is, and how it works"),
    "model": Module("model.__main__", "count a model's parameters and FLOPs, export it"),
    "inference": Module("inference.__main__", "what a model has learned about words: its embeddings"),
    "evaluate": Module("evaluation.__main__", "what a trained model can do"),
    "lens": Module("lens.__main__", "one page that shows what is inside your model"),
    "align": Module("alignment.__main__", "from a base model to one that follows instructions"),
    "serve": Module("serving.__main__", "a trained model behind OpenAI's API"),
    "experiments": Module("experiments.__main__", "many runs: sweep, ablate, compare, scaling laws"),
}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names, with the arguments after it."""
    cli.dispatch(COMMANDS, argv, prog="slm")
