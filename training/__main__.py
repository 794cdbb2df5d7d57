"""python -m training compare | sweep: several runs side by side, and runs over a grid of settings."""

from collections.abc import Sequence

from common import cli
from training.compare import Compare, compare
from training.sweep import Sweep, sweep

COMMANDS = {
    "compare": (Compare, compare),
    "sweep": (Sweep, sweep),
}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of python -m training."""
    cli.dispatch(COMMANDS, argv, prog="python -m training")


if __name__ == "__main__":
    main()
