"""What nvcc gives each CUDA kernel, registers and spills, and how long it takes. Needs the toolkit, no GPU.

    python -m kernels.workbench.resources [sm_80 sm_90 …]

compiles the files of csrc/cuda that hold kernels and prints one line for each kernel, and one for each file.
"""

import dataclasses
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from common import cli
from kernels import toolchain

# Of the compiler's report on one kernel: its name, its architecture, then the figures.
_REPORT = re.compile(
    r"Compiling entry function '(\S+)' for '(sm_\w+)'.*?"
    r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Resources:
    """One kernel on one architecture; registers are those of a thread, spilled are bytes stored and loaded."""

    kernel: str
    architecture: str
    registers: int
    spilled: int


def sources() -> list[Path]:
    """The CUDA files that hold kernels and know no torch."""
    return sorted(path for path in (toolchain.CSRC / "cuda").glob("*.cu") if path.stem != "bindings")


@dataclasses.dataclass(frozen=True)
class Compilation:
    """One file for one architecture: its kernels, and the CPU time of the compiler."""

    kernels: list[Resources]
    seconds: float


def compile_for(source: Path, architecture: str) -> Compilation:
    """As compile_kernels, for one architecture and timed."""
    before = os.times()
    kernels = compile_kernels(source, [architecture])
    after = os.times()
    spent = [getattr(after, part) - getattr(before, part) for part in ("children_user", "children_system")]
    return Compilation(kernels, sum(spent))


def compile_kernels(source: Path, architectures: list[str]) -> list[Resources]:
    """Compiles `source` for each of `architectures` ("sm_80"); RuntimeError with nvcc's words where that fails."""
    nvcc = toolchain.nvcc()
    targets = [f"-gencode=arch={name.replace('sm', 'compute')},code={name}" for name in architectures]
    with tempfile.TemporaryDirectory() as folder:
        flags = ["-std=c++17", "-O3", "-Werror=all-warnings", "-Xptxas=-v", f"-I{toolchain.CSRC / 'cuda'}"]
        done = subprocess.run(
            [nvcc, *flags, *targets, "-c", source, "-o", Path(folder) / "kernels.o"],
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(f"{source.name} does not compile:\n{done.stderr}")
    return reports(done.stderr)


def reports(words: str) -> list[Resources]:
    """Return what `nvcc -Xptxas=-v` says of each kernel."""
    return [
        Resources(readable(name), architecture, int(registers), int(stored) + int(loaded))
        for name, architecture, stored, loaded, registers in _REPORT.findall(words)
    ]


def readable(symbol: str) -> str:
    """The kernel's name and template arguments; the symbol itself where c++filt is missing."""
    if not shutil.which("c++filt"):
        return symbol
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout.strip()
    return name.removeprefix("void ").replace("slm::cuda::", "").split("(")[0]


@dataclasses.dataclass(frozen=True)
class Options:
    """Prints what nvcc gives each CUDA kernel: registers, spills and its own time."""

    architectures: Annotated[tuple[str, ...], tyro.conf.Positional] = ("sm_80", "sm_90")
    """What to compile for."""


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line for each kernel and architecture, and one for each file."""
    options = cli.parse(Options, argv, prog="python -m kernels.workbench.resources")
    known = toolchain.output(toolchain.nvcc(), "--list-gpu-code")
    for name in options.architectures:
        if name not in known:
            raise ValueError(f"nvcc knows no architecture {name!r}: choose among {', '.join(known)}")
    for source in sources():
        for architecture in options.architectures:
            compiled = compile_for(source, architecture)
            for found in compiled.kernels:
                spills = f"{found.spilled} bytes spilled" if found.spilled else ""
                print(f"{architecture}  {found.registers:3d} registers  {found.kernel}  {spills}".rstrip())
            print(f"{architecture}  {compiled.seconds:.1f} s  {source.name}", flush=True)


if __name__ == "__main__":
    main()
