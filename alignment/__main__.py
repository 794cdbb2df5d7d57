"""python -m alignment data | sft: from a base model to one that follows instructions.

data       conversations as token files, and prompts with checks
sft        supervised fine-tuning on them
"""

from collections.abc import Sequence

from alignment.prepare import Data, prepare
from common import cli
from common.cli import Module

COMMANDS = {
    "data": (Data, prepare),
    "sft": Module("alignment.sft", "fine-tune on conversations: the first stage"),
    "grpo": Module("alignment.grpo", "learn from rewards, compared within a group of answers"),
}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names."""
    cli.dispatch(COMMANDS, argv, prog="python -m alignment")


if __name__ == "__main__":
    main()
