"""The former names of commands that moved: python -m training evaluate | ablate | compare | sweep."""

import importlib
import sys
from collections.abc import Sequence

from common import cli

MOVED = {
    "evaluate": ("evaluation", ()),
    "ablate": ("experiments", ("ablate",)),
    "compare": ("experiments", ("compare",)),
    "sweep": ("experiments", ("sweep",)),
}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run a command under its former name, and say the new one."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if name not in MOVED:
        raise ValueError(
            "python -m training has no commands: train with python -m train; see python -m evaluation --help"
        )
    room, first = MOVED[name]
    print(f"python -m training {name} is now python -m {' '.join((room, *first))}", file=sys.stderr)
    importlib.import_module(f"{room}.__main__").main([*first, *rest])


if __name__ == "__main__":
    main()
