"""python -m experiments ablate | compare | sweep | scaling: experiments with many runs.

ablate     how much data a model needs
compare    several runs side by side
sweep      runs over a grid of settings
scaling    scaling laws: run | fit | predict | transfer
"""

from collections.abc import Sequence

from common import cli
from experiments.ablation import Ablate, ablate
from experiments.compare import Compare, compare
from experiments.scaling import command as scaling
from experiments.sweep import Sweep, sweep

COMMANDS = {
    "ablate": (Ablate, ablate),
    "compare": (Compare, compare),
    "sweep": (Sweep, sweep),
    "scaling": scaling.COMMANDS,
}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names."""
    cli.dispatch(COMMANDS, argv, prog="python -m experiments")


if __name__ == "__main__":
    main()
