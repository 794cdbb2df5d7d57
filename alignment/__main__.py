"""python -m alignment data: instruction data for a base model.

data       conversations as token files, and prompts with checks
"""

from collections.abc import Sequence

from alignment.prepare import Data, prepare
from common import cli

COMMANDS = {"data": (Data, prepare)}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names."""
    cli.dispatch(COMMANDS, argv, prog="python -m alignment")


if __name__ == "__main__":
    main()
