"""Builds the project: what pyproject.toml names, and the kernels as extension modules.

    kernels._C         the kernels for the CPU, and for CUDA if that can be built
    kernels._emulated  the CUDA kernels for the CPU, by a C++ compiler alone

In place, without pip: `python setup.py build_ext --inplace`. Environment:

    SLM_CUDA=0|1          never build the CUDA kernels | fail if they cannot be built (otherwise they are
                          built if a toolkit and a CUDA build of torch are found)
    TORCH_CUDA_ARCH_LIST  what nvcc compiles for, such as "8.0;9.0" (otherwise the visible GPU)
    CXX                   the C++ compiler, such as g++ or "ccache g++"
    MAX_JOBS              compilers at once (otherwise the cores, bounded by free memory)

The code runs on any processor of the family: the CPU kernels are compiled once per instruction set and chosen
when they are loaded (kernels/csrc/cpu/level.h).
"""

import errno
import importlib.util
import json
import os
import shlex
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent / "kernels"))
import toolchain  # by itself: the package would load what is about to be built

CSRC = Path("kernels/csrc")
BUILD = Path("build")
COMMON = [CSRC / "module.cpp", CSRC / "ops.cpp"]
BASELINE = ("CPU_CAPABILITY", "DEFAULT")  # the namespace of the CPU kernels and of torch's vectors


def sources(*paths: Path) -> list[str]:
    return [str(path) for path in (*COMMON, *sorted(paths))]


def cpu_sources() -> list[Path]:
    return sorted((CSRC / "cpu").glob("*.cpp"))


def pybind11_include() -> list[str]:
    """Return the folder of pybind11's headers; none without the package: torch brings a copy."""
    if importlib.util.find_spec("pybind11") is None:
        return []
    import pybind11

    return [pybind11.get_include()]


def compile_flags() -> list[str]:
    return [
        "-O3",
        *toolchain.openmp_flags(toolchain.compiler()),
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),  # what gcc reports of its own AVX-512 headers,
        "-Wno-unknown-pragmas",  # and of torch's
        "-Wno-psabi",  # vectors as arguments of functions that no other library calls
    ]


def cuda_obstacle() -> str | None:
    """Return why the CUDA kernels cannot be built here, which is also said on stderr; None if they can."""
    obstacle = toolchain.cuda_obstacle()
    if obstacle is not None:
        if os.environ.get("SLM_CUDA") == "1":
            raise SystemExit(f"error: SLM_CUDA=1, but the CUDA kernels cannot be built: {obstacle}")
        print(f"kernels: without CUDA ({obstacle})", file=sys.stderr)
    return obstacle


def cuda_flags() -> list[str]:
    """Return nvcc's -gencode flags."""
    from torch.utils.cpp_extension import _get_cuda_arch_flags

    os.environ["TORCH_CUDA_ARCH_LIST"] = toolchain.architectures()
    try:
        return _get_cuda_arch_flags()
    except ValueError as error:  # an architecture that there is not
        raise SystemExit(f"error: TORCH_CUDA_ARCH_LIST={toolchain.architectures()}: {error}") from None


def fused():
    """Return kernels._C: C++ always, and CUDA where toolchain.py finds nothing against it."""
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    files = [CSRC / "cpu_dispatch.cpp", *cpu_sources()]
    macros = [BASELINE, *((f"SLM_{level}", None) for level in toolchain.levels(toolchain.compiler()))]
    options = {"include_dirs": pybind11_include(), "define_macros": macros}
    obstacle = cuda_obstacle()
    if obstacle:
        module = CppExtension("kernels._C", sources(*files), extra_compile_args=compile_flags(), **options)
        module.info = build_info([], obstacle)
    else:
        architectures = cuda_flags()
        flags = {"cxx": compile_flags(), "nvcc": ["-O3", "-lineinfo"]}
        files += (CSRC / "cuda").glob("*.cu")
        module = CUDAExtension("kernels._C", sources(*files), extra_compile_args=flags, **options)
        module.info = build_info(toolchain.compiled_codes(architectures))
    return module


def emulated():
    """Return kernels._emulated: the files of csrc/cuda, compiled for the CPU."""
    from torch.utils.cpp_extension import CppExtension

    # kernels move 16 bytes of any dtype at once, as nvcc allows, and may ask for a product that is rounded separately
    language = ["-fno-strict-aliasing", "-ffp-contract=off"]
    flags = [*compile_flags(), "-O2", *language, "-DSLM_LIBRARY=slm_emulated"]
    files = [*(CSRC / "emulator").glob("*.cpp"), *(CSRC / "emulated").glob("*.cpp")]
    include = pybind11_include()
    module = CppExtension(
        "kernels._emulated", sources(*files), include_dirs=include, extra_compile_args=flags
    )
    module.info = build_info([])
    return module


def build_info(built_for: list[str], obstacle: str = "") -> str:
    """Return a header with what module.cpp reports to Python: the sources, the GPUs, and why there are none."""
    facts = {
        "SLM_SOURCE_HASH": toolchain.source_hash(),
        "SLM_CUDA_ARCHITECTURES": " ".join(built_for),
        "SLM_CUDA_OBSTACLE": obstacle,
    }
    return "".join(f"#define {name} {json.dumps(text)}\n" for name, text in facts.items())


def write_build_info(folder: Path, text: str) -> None:
    """Write the header if it has changed; a file, so that only module.cpp depends on it."""
    header = folder / "build_info.h"
    if not header.exists() or header.read_text() != text:
        folder.mkdir(parents=True, exist_ok=True)
        header.write_text(text)


def build_command():
    """torch's build_ext, which also compiles the CPU kernels for each instruction set of toolchain.LEVELS."""
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def finalize_options(self) -> None:
            if self.build_temp is None:
                # pip would take a new folder each time, and so compile again what has not changed
                self.build_temp = str(BUILD / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}")
            super().finalize_options()

        def run(self) -> None:
            try:
                super().run()
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise
                fix = "build in a copy of the project that you may write to"
                raise SystemExit(f"error: cannot write {error.filename}: {fix}") from None

        def build_extension(self, module) -> None:
            # Of a function that several objects hold, such as an inline one of torch, the linker keeps the first: so
            # the baseline's objects come first, and no function that they call can hold other instructions.
            temp = Path(self.build_temp).resolve()
            write_build_info(temp / module.name, module.info)
            module.include_dirs.append(str(temp / module.name))
            if module.name == "kernels._C":
                for level, flags in toolchain.levels(toolchain.compiler()).items():
                    module.extra_objects += self.compile_level(module, level, flags, temp / level)
            super().build_extension(module)

        def compile_level(self, module, level: str, flags: list[str], folder: Path) -> list[str]:
            folder.mkdir(parents=True, exist_ok=True)
            return self.compiler.compile(
                [str(path) for path in cpu_sources()],
                output_dir=str(folder),
                macros=[("CPU_CAPABILITY", level), (f"CPU_CAPABILITY_{level}", None)],
                include_dirs=module.include_dirs,
                extra_postargs=[*compile_flags(), *flags, "-g1"],  # lines without variables: smaller
            )

    return Build


def one_word(command: list[str]) -> str:
    """Return the path of a script that calls a compiler with its first arguments: torch takes CXX as one word."""
    script = BUILD / "cxx"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    script.chmod(0o755)
    os.environ["TORCH_DONT_CHECK_COMPILER_ABI"] = "1"  # it judges by the name
    return str(script.resolve())


def extensions():
    """Return the keyword arguments of setup() that build the kernels; empty without a compiler."""
    cxx = toolchain.compiler()
    if cxx is None:
        print("kernels: no C++ compiler, so every op runs on torch. Install g++ or set CXX.", file=sys.stderr)
        return {}
    try:
        os.environ["MAX_JOBS"] = str(toolchain.jobs())
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where ninja is
    if len(cxx) > 1:
        os.environ["CXX"] = one_word(cxx)
    home = toolchain.cuda_home()
    if home:
        os.environ["CUDA_HOME"] = home
    return {"ext_modules": [fused(), emulated()], "cmdclass": {"build_ext": build_command()}}


setup(**extensions())
