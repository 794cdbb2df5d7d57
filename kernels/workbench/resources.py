"""Reports registers and spills of each CUDA kernel, and nvcc's time. Needs the toolkit, no GPU.

    python -m kernels resources [sm_80 sm_90 …]

compiles the files of csrc/cuda that hold kernels and prints one line per kernel and one per file.
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

# The compiler's report on one kernel: its name, its architecture, then the figures.
_REPORT = re.compile(
    r"Compiling entry function '(\S+)' for '(sm_\w+)'.*?"
    r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Resources:
    """One kernel on one architecture: registers per thread, and bytes of spill stores and loads."""

    kernel: str
    architecture: str
    registers: int
    spilled: int


def sources() -> list[Path]:
    """Return the CUDA files that hold kernels and include no torch."""
    return sorted(path for path in (toolchain.CSRC / "cuda").glob("*.cu") if path.stem != "bindings")


@dataclasses.dataclass(frozen=True)
class Compilation:
    """The kernels of one file for one architecture, and the compiler's CPU time."""

    kernels: list[Resources]
    seconds: float


def compile_for(source: Path, architecture: str) -> Compilation:
    """Compile for one architecture and measure the time."""
    before = os.times()
    kernels = compile_kernels(source, [architecture])
    after = os.times()
    spent = [getattr(after, part) - getattr(before, part) for part in ("children_user", "children_system")]
    return Compilation(kernels, sum(spent))


def compile_kernels(source: Path, architectures: list[str]) -> list[Resources]:
    """Compile `source` for each of `architectures` ("sm_80"); RuntimeError with nvcc's message if that fails."""
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
    """Return the kernel's name and template arguments; the symbol itself if c++filt is missing."""
    if not shutil.which("c++filt"):
        return symbol
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout.strip()
    return name.removeprefix("void ").replace("slm::cuda::", "").split("(")[0]


@dataclasses.dataclass(frozen=True)
class Options:
    """Print registers and spills of each CUDA kernel, and nvcc's time."""

    architectures: Annotated[tuple[str, ...], tyro.conf.Positional] = ("sm_80", "sm_90")
    """Architectures to compile for."""


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Print a line per kernel and architecture, and one per file."""
    options = cli.parse(Options, argv, prog="python -m kernels resources")
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
