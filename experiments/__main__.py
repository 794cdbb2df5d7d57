"""python -m experiments ablate | compare | sweep: what many runs tell.

ablate     how much data a model needs
compare    several runs side by side
sweep      runs over a grid of settings
"""

from collections.abc import Sequence

from common import cli
from experiments.ablation import Ablate, ablate
from experiments.compare import Compare, compare
from experiments.sweep import Sweep, sweep

COMMANDS = {"ablate": (Ablate, ablate), "compare": (Compare, compare), "sweep": (Sweep, sweep)}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names."""
    cli.dispatch(COMMANDS, argv, prog="python -m experiments")


if __name__ == "__main__":
    main()
