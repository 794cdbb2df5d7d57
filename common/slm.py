"""The console command `slm`: one name in front of every command of the project.

slm train --steps 100        is    python train.py --steps 100
slm data prepare …           is    python -m data prepare …
"""

import importlib
import sys
from collections.abc import Sequence

from common import cli

# Name -> the module whose main(argv) it runs, and what it is for. Modules are imported when they are called.
COMMANDS = {
    "train": ("train", "token files -> a trained model"),
    "sample": ("sample", "a trained model -> text"),
    "bpe": ("bpe.__main__", "train, use and compare tokenizers"),
    "data": ("data.__main__", "corpora -> token files"),
    "kernels": ("kernels.__main__", "what is built, how fast it is, and how it works"),
    "model": ("model.__main__", "count a model's parameters and FLOPs, export it, map its embeddings"),
    "evaluate": ("evaluation.__main__", "what a trained model can do"),
    "experiments": ("experiments.__main__", "many runs: sweep, ablate, compare"),
}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names, with the arguments behind it."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: slm COMMAND [--help] …")
        for command, (_, purpose) in COMMANDS.items():
            print(f"  {command:12} {purpose}")
        return
    if name not in COMMANDS:
        cli.fail(f"no command {name!r}: slm {' | '.join(COMMANDS)} (each with --help)")
    importlib.import_module(COMMANDS[name][0]).main(rest)
