"""What can be built on this machine, and why not: the rules of setup.py, told to people by `doctor`.

No torch kernel is loaded here, so that setup.py can ask before anything is built.
"""

import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
CSRC = HERE / "csrc"
DEFAULT_ARCHITECTURES = "8.0;8.6;8.9;9.0+PTX"
GIGABYTES_PER_JOB = 2.5  # what one compiler of torch headers needs, nvcc included


def compiler() -> str | None:
    """The path of the C++ compiler that torch's build will call ($CXX, else c++), or None."""
    return shutil.which(os.environ.get("CXX", "c++"))


def source_hash() -> str:
    """The first 16 hex digits of `source_sha256`."""
    return source_sha256()[:16]


def source_sha256() -> str:
    """The SHA-256 over all files of csrc, names included, in hex."""
    digest = hashlib.sha256()
    for path in sorted(path for path in CSRC.rglob("*") if path.is_file()):
        digest.update(path.relative_to(CSRC).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def cuda_home() -> str | None:
    """The CUDA toolkit: CUDA_HOME, else where the nvcc on the PATH really lies, else /usr/local/cuda."""
    nvcc = shutil.which("nvcc")
    found = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    found += [str(Path(nvcc).resolve().parent.parent)] if nvcc else []
    return next((home for home in [*found, "/usr/local/cuda"] if home and _is_toolkit(home)), None)


def nvcc() -> str:
    """The path of CUDA's compiler. FileNotFoundError with the fix where there is none."""
    home = cuda_home()
    if home is None:
        raise FileNotFoundError(
            "no CUDA toolkit: install one and set CUDA_HOME to the folder that holds bin/nvcc"
        )
    return f"{home}/bin/nvcc"


def _is_toolkit(home: str) -> bool:
    return Path(home, "bin", "nvcc").exists() and Path(home, "include", "cuda_runtime.h").exists()


def cuda_obstacle() -> str | None:
    """Why the CUDA kernels cannot be built here, with the fix; None where they can."""
    import torch

    if not (CSRC / "cuda" / "bindings.cu").exists():
        return "this copy of the project has no csrc/cuda/bindings.cu: fetch the whole repository"
    if os.environ.get("SLM_CUDA") == "0":
        return "SLM_CUDA=0 is set: unset it"
    if compiler() is None:
        return "no C++ compiler: install g++ or set CXX"
    if torch.version.cuda is None:
        return "this torch is a CPU build: install one with CUDA from https://pytorch.org"
    if cuda_home() is None:
        return "no CUDA toolkit: install one and set CUDA_HOME to the folder that holds bin/nvcc"
    return None


def architectures() -> str:
    """What nvcc compiles for: TORCH_CUDA_ARCH_LIST, else the visible GPU, else the default list."""
    import torch

    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if chosen:
        return chosen
    if torch.cuda.is_available():
        return "{}.{}".format(*torch.cuda.get_device_capability())
    return DEFAULT_ARCHITECTURES


def jobs() -> int:
    """How many compilers may run at once: the cores, bounded by free memory (MAX_JOBS overrides it)."""
    if os.environ.get("MAX_JOBS"):
        return int(os.environ["MAX_JOBS"])
    memory = free_gigabytes()
    bound = (os.cpu_count() or 1) if memory is None else int(memory / GIGABYTES_PER_JOB)
    return max(1, min(os.cpu_count() or 1, bound))


def free_gigabytes() -> float | None:
    """Memory that is free for a build, in GB; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 1e6
    except (OSError, StopIteration):
        return None


def output(*command: str) -> list[str]:
    """The lines that a program prints; none where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.strip().splitlines()


def native_flags(cxx: str) -> list[str]:
    """Flags for this very processor: -march=native, or -mcpu=native on ARM; none with SLM_NATIVE=0."""
    if os.environ.get("SLM_NATIVE") == "0":
        return []
    wanted = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    return [wanted] if _accepts(cxx, wanted) else []


def openmp_flags(cxx: str) -> list[str]:
    """What makes at::parallel_for run on torch's threads: it is inlined here, and one thread without OpenMP.

    For the compiler only: what it calls is found in the OpenMP library that torch has loaded, and so in its
    threads, not in a second set of them. None where the compiler has no OpenMP, as Apple's.
    """
    return ["-fopenmp"] if _accepts(cxx, "-fopenmp", "-include", "omp.h") else []


def _accepts(cxx: str, *flags: str) -> bool:
    done = subprocess.run([cxx, *flags, "-E", "-x", "c++", os.devnull], capture_output=True)
    return done.returncode == 0
