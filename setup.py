"""Builds the project: what pyproject.toml names, and the kernels as extension modules.

    kernels._C         the kernels for the CPU, and for CUDA where that can be built
    kernels._emulated  the CUDA kernels for the CPU, by a C++ compiler alone

In place, without pip: `python setup.py build_ext --inplace`. Environment:

    SLM_CUDA=0|1          never build the CUDA kernels | fail where that cannot be done (otherwise they
                          are built where a toolkit and a CUDA build of torch are found)
    TORCH_CUDA_ARCH_LIST  what nvcc compiles for, such as "8.0;9.0" (otherwise the visible GPU)
    SLM_NATIVE=0          code for any processor of this family instead of this very one
    MAX_JOBS              compilers at once (otherwise the cores, bounded by free memory)
"""

import os
import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent / "kernels"))
import toolchain  # by itself: the package would load what is about to be built

CSRC = Path("kernels/csrc")
COMMON = [CSRC / "module.cpp", CSRC / "ops.cpp"]


def sources(*paths: Path) -> list[str]:
    return [str(path) for path in (*COMMON, *sorted(paths))]


def compile_flags(cuda: bool) -> list[str]:
    """Flags of the C++ compiler; the definitions are what module.cpp reports to Python."""
    built_for = toolchain.architectures().replace(";", " ") if cuda else ""
    return [
        "-O3",
        *toolchain.native_flags(toolchain.compiler()),
        *toolchain.openmp_flags(toolchain.compiler()),
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),  # what gcc says of its own AVX-512 headers,
        "-Wno-unknown-pragmas",  # and of torch's
        f"-DSLM_SOURCE_HASH={toolchain.source_hash()}",
        f"-DSLM_CUDA_ARCHITECTURES={built_for}",
    ]


def fused():
    """kernels._C: C++ always, and CUDA where toolchain.py finds nothing against it."""
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    files = list((CSRC / "cpu").glob("*.cpp"))
    obstacle = toolchain.cuda_obstacle()
    if obstacle:
        if os.environ.get("SLM_CUDA") == "1":
            raise SystemExit(f"error: SLM_CUDA=1, but the CUDA kernels cannot be built: {obstacle}")
        print(f"kernels: without CUDA ({obstacle})", file=sys.stderr)
        flags = compile_flags(cuda=False)
        return CppExtension("kernels._C", sources(*files), extra_compile_args=flags)
    os.environ["TORCH_CUDA_ARCH_LIST"] = toolchain.architectures()
    flags = {"cxx": compile_flags(cuda=True), "nvcc": ["-O3", "-lineinfo"]}
    files += (CSRC / "cuda").glob("*.cu")
    return CUDAExtension("kernels._C", sources(*files), extra_compile_args=flags)


def emulated():
    """kernels._emulated: the files of csrc/cuda, compiled for the CPU."""
    from torch.utils.cpp_extension import CppExtension

    # kernels move 16 bytes of any dtype at once, as nvcc allows, and may ask for a product that is rounded by itself
    language = ["-fno-strict-aliasing", "-ffp-contract=off"]
    flags = [*compile_flags(cuda=False), "-O2", *language, "-DSLM_LIBRARY=slm_emulated"]
    files = [*(CSRC / "emulator").glob("*.cpp"), *(CSRC / "emulated").glob("*.cpp")]
    return CppExtension("kernels._emulated", sources(*files), extra_compile_args=flags)


def extensions():
    """The keyword arguments of setup() that build the kernels; empty without a compiler."""
    if toolchain.compiler() is None:
        print("kernels: no C++ compiler, so every op runs on torch. Install g++ or set CXX.", file=sys.stderr)
        return {}
    os.environ["MAX_JOBS"] = str(toolchain.jobs())
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where ninja lies
    home = toolchain.cuda_home()
    if home:
        os.environ["CUDA_HOME"] = home
    from torch.utils.cpp_extension import BuildExtension

    return {"ext_modules": [fused(), emulated()], "cmdclass": {"build_ext": BuildExtension}}


setup(**extensions())
