"""python -m kernels COMMAND: tools for the kernels."""

from collections.abc import Sequence

from common import cli
from common.cli import Module

COMMANDS = {
    "doctor": Module("kernels.workbench.doctor", "report what was built, what runs and why"),
    "bench": Module("kernels.workbench.bench", "time the ops and PyTorch's own"),
    "smoke": Module("kernels.workbench.smoke", "call every kernel once and compare with the reference"),
    "ladder": Module("kernels.ladder.measure", "measure each step from the naive kernel to the shipped one"),
    "trace": Module("kernels.workbench.trace", "show what each lane of a CUDA kernel holds, on the emulator"),
    "resources": Module(
        "kernels.workbench.resources", "report registers and spills of each CUDA kernel (needs nvcc)"
    ),
    "issue": Module(
        "kernels.workbench.issue", "count what attention's main loops issue for each product (needs nvcc)"
    ),
    "mutate": Module(
        "kernels.workbench.mutation.report",
        "change the CUDA kernels and count which changes the tests notice",
    ),
}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names."""
    cli.dispatch(COMMANDS, argv, prog="python -m kernels")


if __name__ == "__main__":
    main()
