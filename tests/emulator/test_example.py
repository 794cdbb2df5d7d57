"""One CUDA file: nvcc compiles it for a GPU, the emulator runs it on the CPU."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.workbench.emulator import CSRC, Compiler, Library

SOURCE = Path(__file__).parent / "programs" / "example.cu"
NVCC = shutil.which("nvcc")


@pytest.fixture(scope="module", params=["plain", "checked"])
def library(request: pytest.FixtureRequest, compiler: Compiler) -> Library:
    return compiler.compile(SOURCE, checked=request.param == "checked")


@pytest.mark.parametrize("seed", range(4))
def test_tensor_core_product_equals_torch(library: Library, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(shape, generator=generator).bfloat16() for shape in ((16, 64), (64, 8)))
    c = np.full((16, 8), np.nan, dtype=np.float32)
    words = [x.view(torch.int16).numpy() for x in (a, b)]
    library.run("run_tile_product", [*words, c], seed=seed)
    np.testing.assert_allclose(c, (a.double() @ b.double()).numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", [1, 127, 777])
def test_row_sums_of_several_blocks_equal_numpy(library: Library, width: int) -> None:
    x = np.random.default_rng(width).standard_normal((9, width), dtype=np.float32)
    out = np.zeros(10, dtype=np.float32)
    library.run("run_row_sum", [x, out], x.shape, seed=width)
    np.testing.assert_allclose(out, [*x.sum(1), x.sum()], rtol=0, atol=1e-4)


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on the PATH")
@pytest.mark.parametrize(
    ("program", "architecture"), [("example", "sm_80"), ("primitives", "sm_80"), ("primitives", "sm_90")]
)
def test_the_same_files_compile_for_a_gpu(tmp_path: Path, program: str, architecture: str) -> None:
    flags = ["-std=c++17", f"-arch={architecture}", "-Werror=all-warnings", "-I", CSRC / "cuda"]
    source = SOURCE.with_stem(program)
    subprocess.run([NVCC, *flags, "-c", source, "-o", tmp_path / "program.o"], check=True)
