"""python -m kernels COMMAND: tools for the kernels.

doctor     report what was built, what runs and why
bench      time the ops and PyTorch's own
smoke      call every kernel once and compare with the reference
ladder     measure each step from the naive kernel to the shipped one
trace      show what each lane of a CUDA kernel holds, on the emulator
resources  report registers and spills of each CUDA kernel (needs nvcc)
mutate     change the CUDA kernels and count which changes the tests notice
"""

import importlib
import sys
from collections.abc import Sequence

from common import cli

# The module that holds each command's main(argv).
_COMMANDS = {
    "doctor": "kernels.workbench.doctor",
    "bench": "kernels.workbench.bench",
    "smoke": "kernels.workbench.smoke",
    "ladder": "kernels.ladder.measure",
    "trace": "kernels.workbench.trace",
    "resources": "kernels.workbench.resources",
    "mutate": "kernels.workbench.mutation.report",
}
_USAGE = f"usage: python -m kernels {' | '.join(_COMMANDS)} [--help]"


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if name in ("-h", "--help"):
        print(_USAGE)
        return
    if name not in _COMMANDS:
        raise ValueError(f"no command {name!r}; {_USAGE}")
    importlib.import_module(_COMMANDS[name]).main(rest)


if __name__ == "__main__":
    main()
