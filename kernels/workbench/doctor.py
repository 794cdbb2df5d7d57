"""Reports what the kernels need, what was built, which backend each op uses, and a fix for each missing thing."""

import dataclasses
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from common import cli
from kernels import decode, dispatch, toolchain

OPS = ("layer_norm", "add_layer_norm", "causal_attention", "causal_attention_qkvpacked")
DECODE_OPS = ("packed_linear", "cached_attention", "decode_step", "likeliest")  # CPU only


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report: the name of a thing, what was found, and the fix if it is missing."""

    name: str
    found: str | None
    fix: str = ""


@dataclasses.dataclass(frozen=True)
class Options:
    """Prints what the kernels need, what was built, and the one-line fix for each thing missing."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; it has no options."""
    cli.parse(Options, argv, prog="python -m kernels doctor")
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    table = Table(
        "name", Column("found", overflow="fold"), title="kernels", title_justify="left", show_header=False
    )
    for finding in findings():
        shown = escape(finding.found) if finding.found else f"[yellow]missing: {escape(finding.fix)}[/]"
        table.add_row(finding.name, shown)
    Console().print(table)


def findings() -> list[Finding]:
    """Return the lines of the report in order."""
    return [*_toolchain(), *_built(), *_choices()]


def _toolchain() -> list[Finding]:
    cxx, home = toolchain.compiler(), toolchain.cuda_home()
    return [
        Finding("Python", platform.python_version()),
        Finding("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none: a CPU build'}"),
        Finding("compiler", cxx and _first(*cxx, "--version"), "install g++ or set CXX"),
        Finding("ninja", _ninja(), "pip install ninja (without it the build takes longer)"),
        Finding(
            "nvcc", home and _nvcc(home), "only for an NVIDIA GPU: install the CUDA toolkit, set CUDA_HOME"
        ),
        Finding("driver", _driver(), "only for an NVIDIA GPU: install its driver"),
        Finding("GPU", _gpu(), "none visible to torch; the kernels run on the CPU"),
    ]


def _first(*command: str) -> str | None:
    return next(iter(toolchain.output(*command)), None)


def _ninja() -> str | None:
    installed = Path(sys.executable).with_name("ninja")
    return _first(str(installed) if installed.exists() else "ninja", "--version")


def _nvcc(home: str) -> str:
    lines = toolchain.output(f"{home}/bin/nvcc", "--version")
    return next((line for line in lines if "release" in line), "does not run")


def _driver() -> str | None:
    return _first("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _gpu() -> str | None:
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, capability {major}.{minor}"


def _built() -> list[Finding]:
    """Report each extension module: its file, its processors, and if its sources have changed since."""
    found = []
    for name, (module, state) in dispatch.modules().items():
        if module is None:
            found.append(Finding(name, None, state))
            continue
        cuda = f", CUDA for {module.CUDA_ARCHITECTURES}" if module.CUDA_ARCHITECTURES else ""
        changed = "" if toolchain.source_hash() == module.SOURCE_HASH else ", changed since: run make setup"
        built = f"{module.CPU_CAPABILITY} on {module.THREADS}{cuda}"
        found.append(Finding(name, f"{built}, sources {module.SOURCE_HASH}{changed}"))
        found.append(Finding("  loaded from", f"{module.__file__}{foreign(module.__file__)}"))
    return found


def foreign(binary: str) -> str:
    """Return a warning if a loaded binary belongs to another checkout than this package, else "".

    An editable install makes the first checkout's binary importable in a second one that has not built its own.
    """
    package = Path(toolchain.__file__).resolve().parent
    if Path(binary).resolve().parent == package:
        return ""
    return f", which belongs to another checkout than {package}: run make setup in this one"


def _choices() -> list[Finding]:
    """Report which implementations are available, and which one each op uses on each device."""
    states = dispatch.backends().items()
    available = [
        Finding(f"on {name}", state if state == dispatch.AVAILABLE else None, state) for name, state in states
    ]
    uses = ", ".join(f"{device}: {dispatch.runs_on(device)}" for device in ("cpu", "cuda"))
    decoding = "cpu: fused" if decode.available() else "cpu: torch"
    return available + [Finding(op, uses) for op in OPS] + [Finding(op, decoding) for op in DECODE_OPS]
