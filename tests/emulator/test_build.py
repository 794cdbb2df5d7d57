"""What was compiled is compiled again when anything that it was made of has changed, and only then."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from kernels import emulator
from kernels.emulator import Toolchain
from kernels.toolchain import accepts

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


def test_a_header_beside_the_folder_counts(toolchain: Toolchain, program: Path) -> None:
    first = toolchain.compile(program)
    assert put(first, 2) == [1, 1]
    assert toolchain.compile(program).path == first.path
    (program.parent.parent / "value.cuh").write_text("constexpr float kValue = 2;")
    assert put(toolchain.compile(program), 2) == [2, 2]


def test_the_sources_of_the_emulator_count(
    toolchain: Toolchain, program: Path, tmp_path, monkeypatch
) -> None:
    with pytest.raises(RuntimeError, match="cannot be launched"):
        put(toolchain.compile(program), 1025)
    copy = shutil.copytree(emulator.CSRC, tmp_path / "csrc")
    grid = copy / "emulator" / "grid.cpp"
    grid.write_text(grid.read_text().replace("cannot be launched", "is not for this GPU"))
    monkeypatch.setattr(emulator, "CSRC", copy)
    with pytest.raises(RuntimeError, match="is not for this GPU"):
        put(Toolchain(toolchain.folder, csrc=copy).compile(program), 1025)


FORGETS = """
#include "platform.cuh"
__global__ void forgets(float* out, bool starts) {
    float sum[2];
    if (starts) sum[0] = sum[1] = 0;
    for (int i = 0; i < 8; ++i) sum[i % 2] += 1;
    out[threadIdx.x] = sum[threadIdx.x % 2];
}
extern "C" void run_forgets(void** tensors, const long long* numbers) {
    launch(forgets, dim3(1), dim3(4), 0, nullptr, static_cast<float*>(tensors[0]), numbers[0] == 1);
}
"""


def test_local_variables_begin_as_garbage_in_a_checked_build(toolchain: Toolchain, tmp_path: Path) -> None:
    if not accepts(toolchain.compiler, "-ftrivial-auto-var-init=pattern"):
        pytest.skip("this compiler, older than g++ 12, leaves them as they are")
    path = tmp_path / "forgets.cu"
    path.write_text(FORGETS)
    out = np.zeros(4, np.float32)
    library = toolchain.compile(path, checked=True)
    library.run("run_forgets", [out], [1])
    assert out.tolist() == [4, 4, 4, 4]
    library.run("run_forgets", [out], [0])
    assert not np.any(np.abs(out) < 1e30)  # NaN or huge, as the compiler likes
