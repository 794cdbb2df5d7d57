"""What can be built on this machine, and why not: the rules of setup.py, reported to people by `doctor`.

Imports no other module of the package, so that setup.py can use it before anything is built.
"""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
from pathlib import Path

CSRC = Path(__file__).parent / "csrc"
DEFAULT_ARCHITECTURES = "8.0;8.6;8.9;9.0+PTX"
GIGABYTES_PER_JOB = 2.5  # memory of one compiler that reads torch's headers, nvcc included
NO_TOOLKIT = "no CUDA toolkit: install one and set CUDA_HOME to the folder that holds bin/nvcc"
NO_COMPILER = "no C++ compiler: install g++ or set CXX"

# Instruction sets that the CPU kernels are compiled for besides the baseline, with torch's names and torch's flags:
# torch decides which of them a processor has, so ours must need nothing more.
LEVELS = {
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"],
}


def compiler() -> list[str] | None:
    """Return the C++ compiler that torch's build will call, or None.

    That is $CXX, else c++. CXX may be a command with arguments: ["ccache", "g++"] for "ccache g++".
    """
    command = shlex.split(os.environ.get("CXX", "c++"))
    return command if command and shutil.which(command[0]) else None


def source_hash() -> str:
    """Return the first 16 hex digits of `source_sha256`."""
    return source_sha256()[:16]


def source_sha256() -> str:
    """Return the SHA-256 of all files of csrc, names included, in hex."""
    digest = hashlib.sha256()
    for path in sorted(path for path in CSRC.rglob("*") if path.is_file()):
        digest.update(path.relative_to(CSRC).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def cuda_home() -> str | None:
    """Return the CUDA toolkit: $CUDA_HOME, else that of the nvcc on the PATH, else /usr/local/cuda; or None."""
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        # A link leads to its toolkit. Debian's leads to a folder without headers: those are in /usr/include.
        candidates += [str(path.parent.parent) for path in (Path(nvcc).resolve(), Path(nvcc))]
    return next((home for home in [*candidates, "/usr/local/cuda"] if home and _is_toolkit(home)), None)


def _is_toolkit(home: str) -> bool:
    return Path(home, "bin", "nvcc").exists() and Path(home, "include", "cuda_runtime.h").exists()


def nvcc() -> str:
    """Return the path of CUDA's compiler. FileNotFoundError with the fix if there is none."""
    home = cuda_home()
    if home is None:
        raise FileNotFoundError(NO_TOOLKIT)
    return f"{home}/bin/nvcc"


def toolkit_version(home: str) -> str | None:
    """Return the CUDA version of a toolkit, such as "13.0"; None if its nvcc does not run."""
    found = re.search(r"release (\d+\.\d+)", "\n".join(output(f"{home}/bin/nvcc", "--version")))
    return found and found[1]


def cuda_obstacle() -> str | None:
    """Return why the CUDA kernels cannot be built here, with the fix; None if they can."""
    import torch

    if not (CSRC / "cuda" / "bindings.cu").exists():
        return "this copy of the project has no csrc/cuda/bindings.cu: fetch the whole repository"
    if os.environ.get("SLM_CUDA") == "0":
        return "SLM_CUDA=0 is set: unset it"
    if compiler() is None:
        return NO_COMPILER
    if torch.version.cuda is None:
        return "this torch is a CPU build: install one with CUDA from https://pytorch.org"
    home = cuda_home()
    return _toolkit_obstacle(home, torch.version.cuda) if home else NO_TOOLKIT


def _toolkit_obstacle(home: str, wanted: str) -> str | None:
    """Return what torch's build would refuse: a toolkit of another major version than torch's CUDA."""
    version = toolkit_version(home)
    if version is None:
        return f"{home}/bin/nvcc does not run: install the toolkit of CUDA {wanted} and set CUDA_HOME"
    if version.split(".")[0] != wanted.split(".")[0]:
        return (
            f"the toolkit in {home} is CUDA {version}, but torch was built for CUDA {wanted}: "
            f"set CUDA_HOME to a toolkit of CUDA {wanted.split('.')[0]}"
        )
    return None


def architectures() -> str:
    """Return what nvcc compiles for: TORCH_CUDA_ARCH_LIST, else the visible GPU, else the default list."""
    import torch

    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if chosen:
        return chosen
    if torch.cuda.is_available():
        return "{}.{}".format(*torch.cuda.get_device_capability())
    return DEFAULT_ARCHITECTURES


def compiled_codes(flags: list[str]) -> list[str]:
    """Return what nvcc's -gencode flags make: "sm_90" is code for a GPU, "compute_90" is PTX.

    >>> compiled_codes(["-gencode=arch=compute_90,code=sm_90", "-gencode=arch=compute_90,code=compute_90"])
    ['sm_90', 'compute_90']
    """
    return re.findall(r"code=((?:sm|compute)_\d+[af]?)", " ".join(flags))


def jobs() -> int:
    """Return how many compilers may run at once: MAX_JOBS, else the cores, bounded by free memory.

    ValueError if MAX_JOBS is neither a number nor "auto".
    """
    chosen = os.environ.get("MAX_JOBS", "").strip() or "auto"
    if chosen.isdecimal() and int(chosen):
        return int(chosen)
    if chosen != "auto":
        raise ValueError(f"MAX_JOBS is {chosen!r}: set a number of at least 1, or auto")
    memory = free_gigabytes()
    bound = (os.cpu_count() or 1) if memory is None else int(memory / GIGABYTES_PER_JOB)
    return max(1, min(os.cpu_count() or 1, bound))


def free_gigabytes() -> float | None:
    """Return the memory that is free for a build, in GB; None if the system does not say.

    In a container that is what its cgroups leave, which the machine's own figure does not show.
    """
    found = [_available_memory(), *_cgroup_memory()]
    return min((free for free in found if free is not None), default=None)


def _available_memory() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 1e6
    except (OSError, StopIteration):
        return None


def _cgroup_memory(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[float]:
    """Return the GB that each cgroup with a limit leaves, from the one of this process up to the root (v1 and v2)."""
    try:
        # "0::/a/b" in version 2, "4:memory:/a/b" in version 1; inside a container the path may not exist below `root`.
        paths = [line.split(":", 2)[2] for line in own.read_text().splitlines() if _is_memory_cgroup(line)]
    except OSError:
        return []
    left = []
    for base, limit, usage in (
        (root, "memory.max", "memory.current"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        groups = {base}
        for path in paths:
            inner = base / path.strip("/")
            groups |= {inner, *(parent for parent in inner.parents if parent.is_relative_to(base))}
        for group in groups:
            left += _left_by(group / limit, group / usage)
    return left


def _is_memory_cgroup(line: str) -> bool:
    return line.startswith("0::") or "memory" in line.split(":")[1].split(",")


def _left_by(limit: Path, usage: Path) -> list[float]:
    try:
        return [max(0, int(limit.read_text()) - int(usage.read_text())) / 1e9]
    except (OSError, ValueError):  # "max": no limit
        return []


def output(*command: str) -> list[str]:
    """Return the lines that a program prints; none if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.strip().splitlines()


def levels(cxx: list[str]) -> dict[str, list[str]]:
    """Return the members of LEVELS that this machine's compiler can compile, with their flags; none but on x86-64."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return {}
    return {name: flags for name, flags in LEVELS.items() if _accepts(cxx, *flags)}


def openmp_flags(cxx: list[str]) -> list[str]:
    """Return the flag that makes at::parallel_for, which is inlined here, run on torch's threads instead of on one.

    It is for compiling only: without it in the link, the calls resolve to the OpenMP library that torch has loaded,
    and so to torch's threads, not to a second set of them. Empty if the compiler has no OpenMP, as Apple's.
    """
    return ["-fopenmp"] if _accepts(cxx, "-fopenmp", "-include", "omp.h") else []


def _accepts(cxx: list[str], *flags: str) -> bool:
    done = subprocess.run([*cxx, *flags, "-E", "-x", "c++", os.devnull], capture_output=True)
    return done.returncode == 0
