"""python -m kernels COMMAND: what runs here and why, how fast, by which steps, what a lane holds, which fault shows."""

import importlib
import sys
from collections.abc import Sequence

from common import cli

# Where the command's main(argv) is.
_COMMANDS = {
    "doctor": "kernels.workbench.doctor",
    "bench": "kernels.workbench.bench",
    "ladder": "kernels.ladder.measure",
    "trace": "kernels.workbench.trace",
    "issue": "kernels.workbench.issue",
    "mutate": "kernels.workbench.mutation.report",
}
_USAGE = f"usage: python -m kernels {' | '.join(_COMMANDS)} [--help]"


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command that the first argument names."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if name in ("-h", "--help"):
        print(_USAGE)
        return
    if name not in _COMMANDS:
        raise ValueError(f"no command {name!r}; {_USAGE}")
    importlib.import_module(_COMMANDS[name]).main(rest)


if __name__ == "__main__":
    main()
