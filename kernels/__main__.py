"""python -m kernels doctor | bench | ladder: what runs here and why, how fast, and what each step to there cost."""

import sys
from collections.abc import Callable, Sequence

from common import cli
from kernels import bench, doctor
from kernels.ladder import measure

_COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "doctor": doctor.main,
    "bench": bench.main,
    "ladder": measure.main,
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
    _COMMANDS[name](rest)


if __name__ == "__main__":
    main()
