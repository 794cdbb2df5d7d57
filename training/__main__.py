"""python -m training evaluate | ablate: what a trained model can do, and how much data it needs for that."""

from collections.abc import Sequence

from common import cli
from training.ablation import Ablate, ablate
from training.assessment import Evaluate, evaluate

COMMANDS = {
    "evaluate": (Evaluate, evaluate),
    "ablate": (Ablate, ablate),
}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of python -m training."""
    cli.dispatch(COMMANDS, argv, prog="python -m training")


if __name__ == "__main__":
    main()
