"""python -m training evaluate | ablate | compare | sweep: what to do with runs, beside making one with train.py.

evaluate   what a trained model can do
ablate     how much data it needs for that
compare    several runs side by side
sweep      runs over a grid of settings
"""

from collections.abc import Sequence

from common import cli
from training.ablation import Ablate, ablate
from training.assessment import Evaluate, evaluate
from training.compare import Compare, compare
from training.sweep import Sweep, sweep

COMMANDS = {
    "evaluate": (Evaluate, evaluate),
    "ablate": (Ablate, ablate),
    "compare": (Compare, compare),
    "sweep": (Sweep, sweep),
}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of python -m training."""
    cli.dispatch(COMMANDS, argv, prog="python -m training")


if __name__ == "__main__":
    main()
