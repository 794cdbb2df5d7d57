"""What was compiled is compiled again when anything that it was made of has changed, and only then."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from kernels.workbench import emulator
from kernels.workbench.emulator import Compiler

SOURCE = """
#include "platform.cuh"
#include "../value.cuh"
__global__ void put(float* out) { out[threadIdx.x] = kValue; }
extern "C" void run_put(void** tensors, const long long* numbers) {
    launch(put, dim3(1), dim3(numbers[0]), 0, nullptr, static_cast<float*>(tensors[0]));
}
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "program").mkdir()
    (tmp_path / "value.cuh").write_text("constexpr float kValue = 1;")
    path = tmp_path / "program" / "put.cu"
    path.write_text(SOURCE)
    return path


def put(library: emulator.Library, threads: int) -> list[float]:
    out = np.zeros(threads, np.float32)
    library.run("run_put", [out], [threads])
    return out.tolist()


def test_a_header_beside_the_folder_counts(compiler: Compiler, program: Path) -> None:
    first = compiler.compile(program)
    assert put(first, 2) == [1, 1]
    assert compiler.compile(program).path == first.path
    (program.parent.parent / "value.cuh").write_text("constexpr float kValue = 2;")
    assert put(compiler.compile(program), 2) == [2, 2]


def test_the_sources_of_the_emulator_count(compiler: Compiler, program: Path, tmp_path, monkeypatch) -> None:
    with pytest.raises(RuntimeError, match="cannot be launched"):
        put(compiler.compile(program), 1025)
    copy = shutil.copytree(emulator.CSRC, tmp_path / "csrc")
    grid = copy / "emulator" / "grid.cpp"
    grid.write_text(grid.read_text().replace("cannot be launched", "is not for this GPU"))
    monkeypatch.setattr(emulator, "CSRC", copy)
    with pytest.raises(RuntimeError, match="is not for this GPU"):
        put(Compiler(compiler.folder, csrc=copy).compile(program), 1025)
