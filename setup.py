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


def build_info(module: str, built_for: str = "") -> list[str]:
    """The folder of a header with what module.cpp reports to Python; a file, so that only module.cpp depends on it."""
    header = Path("build", "generated", module, "build_info.h")
    text = (
        f'#define SLM_SOURCE_HASH "{toolchain.source_hash()}"\n#define SLM_CUDA_ARCHITECTURES "{built_for}"\n'
    )
    if not header.exists() or header.read_text() != text:
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text(text)
    return [str(header.parent.resolve())]


def compile_flags() -> list[str]:
    return [
        "-O3",
        *toolchain.native_flags(toolchain.compiler()),
        *toolchain.openmp_flags(toolchain.compiler()),
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),  # what gcc says of its own AVX-512 headers,
        "-Wno-unknown-pragmas",  # and of torch's
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
        info = build_info("_C")
        return CppExtension(
            "kernels._C", sources(*files), include_dirs=info, extra_compile_args=compile_flags()
        )
    os.environ["TORCH_CUDA_ARCH_LIST"] = toolchain.architectures()
    info = build_info("_C", toolchain.architectures().replace(";", " "))
    flags = {"cxx": compile_flags(), "nvcc": ["-O3", "-lineinfo"]}
    files += (CSRC / "cuda").glob("*.cu")
    return CUDAExtension("kernels._C", sources(*files), include_dirs=info, extra_compile_args=flags)


def emulated():
    """kernels._emulated: the files of csrc/cuda, compiled for the CPU."""
    from torch.utils.cpp_extension import CppExtension

    # kernels move 16 bytes of any dtype at once, as nvcc allows, and may ask for a product that is rounded by itself
    language = ["-fno-strict-aliasing", "-ffp-contract=off"]
    flags = [*compile_flags(), "-O2", *language, "-DSLM_LIBRARY=slm_emulated"]
    files = [*(CSRC / "emulator").glob("*.cpp"), *(CSRC / "emulated").glob("*.cpp")]
    info = build_info("_emulated")
    return CppExtension("kernels._emulated", sources(*files), include_dirs=info, extra_compile_args=flags)


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
