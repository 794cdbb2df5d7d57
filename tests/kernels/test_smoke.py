"""The smoke cases launch every kernel in every version that is compiled, and find a kernel that computes nonsense."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernels
from kernels import dispatch, toolchain
from kernels.workbench import smoke

ROOT = Path(__file__).parents[2]
TEMPLATE = r"void slm::cuda::(\w+<[^(]*>)\("  # of a kernel's name, demangled

# Takes the place of the emulator's launch: writes the kernel's name and runs nothing.
RECORDER = """
#include <dlfcn.h>
#include <cstdio>
#include <cstdlib>
#include "grid.h"
void emulator::run(Launch launch) {
    Dl_info info;
    dladdr(launch.kernel, &info);
    std::FILE* file = std::fopen(std::getenv("LAUNCHES"), "a");
    std::fprintf(file, "%s\\n", info.dli_sname);
    std::fclose(file);
}
"""


def emulated_library() -> Path:
    return Path(dispatch.modules()["kernels._emulated"][0].__file__)


def symbols(library: Path) -> str:
    """The demangled names that a library defines."""
    return subprocess.run(
        ["nm", "-C", "--defined-only", library], capture_output=True, text=True, check=True
    ).stdout


def demangled(names: str) -> str:
    return subprocess.run(["c++filt"], input=names, capture_output=True, text=True, check=True).stdout


def written_kernels() -> set[str]:
    """The names behind __global__ in the sources."""
    files = (toolchain.CSRC / "cuda").glob("*.cuh")
    found = re.findall(
        r"__global__ void (?:__launch_bounds__\((?:[^()]|\([^)]*\))*\))?\s*(\w+)\(",
        "\n".join(path.read_text() for path in files),
    )
    return set(found)


needs_emulator = pytest.mark.skipif(
    kernels.backends()["emulated"] != "available" or not (all(map(shutil.which, ("g++", "nm", "c++filt")))),
    reason="needs the emulated kernels, g++, nm and c++filt",
)


@needs_emulator
def test_the_cases_launch_every_kernel_in_every_version_that_is_compiled(tmp_path):
    library = emulated_library()
    source, recorder = tmp_path / "recorder.cpp", tmp_path / "recorder.so"
    source.write_text(RECORDER)
    folders = [f"-I{toolchain.CSRC / name}" for name in ("emulator", "cuda")]
    subprocess.run(["g++", "-std=c++17", "-shared", "-fPIC", *folders, source, "-o", recorder], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "kernels.workbench.smoke", "--device", "emulated"],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(recorder), "LAUNCHES": str(tmp_path / "launches")},
        capture_output=True,
        text=True,
    )
    assert "differ from the reference" in done.stderr  # as nothing was computed: every case would be noticed
    launched = set(re.findall(TEMPLATE, demangled((tmp_path / "launches").read_text())))
    compiled = set(re.findall(TEMPLATE, symbols(library)))
    written = written_kernels()
    assert len(written) > 10
    assert {name.split("<")[0] for name in launched} == written
    assert {name for name in compiled if name.split("<")[0] in written} - launched == set()


@needs_emulator
def test_cases_of_each_op_agree_with_the_reference_on_the_emulator(capsys):
    smoke.main(["--device", "emulated", "--only", "layer_norm (9, 64)"])
    smoke.main(["--device", "emulated", "--only", "D 32, dropout 0.25, bfloat16"])
    assert "cases on emulated agree" in capsys.readouterr().out


@pytest.mark.skipif(kernels.backends()["cpu"] != "available", reason="the CPU kernels are not built")
def test_all_cases_agree_with_the_reference_on_the_cpu(capsys):
    smoke.main(["--device", "cpu"])
    assert "cases on cpu agree with the reference" in capsys.readouterr().out


@pytest.mark.parametrize("value", [2.0, float("nan")])
def test_a_wrong_result_is_found(value, monkeypatch, capsys):
    if kernels.backends()["cpu"] != "available":
        pytest.skip("the CPU kernels are not built")
    monkeypatch.setattr(smoke, "NORM_SIZES", (64,))
    monkeypatch.setattr(smoke, "WIDTHS", ())
    monkeypatch.setattr(smoke, "_training_ops", lambda dtype: ())
    right = kernels.layer_norm
    monkeypatch.setattr(kernels, "layer_norm", lambda *tensors: right(*tensors) * value)
    with pytest.raises(SystemExit) as stop:
        smoke.main(["--device", "cpu"])
    printed = capsys.readouterr()
    assert stop.value.code == 2 and "4 of 8 cases on cpu differ" in printed.err
    assert "layer_norm (9, 64) bfloat16: error" in printed.out


def test_what_is_missing_is_named(monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit):
        smoke.main(["--device", "cuda"])
    assert "the kernels for cuda cannot run here: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        smoke.main(["--device", "cpu", "--only", "convolution"])
    assert "no case has 'convolution'" in capsys.readouterr().err
