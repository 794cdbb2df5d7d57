"""What of CUDA the emulator has no twin for does not compile, and the compiler says which name it is."""

import re
from pathlib import Path

import pytest

from kernels.workbench.emulator import Compiler

SOURCE = """
#include "platform.cuh"
__global__ void put(unsigned* out) {{
    {statement}
    out[threadIdx.x] = 1;
}}
extern "C" void run_put(void** tensors, const long long*) {{
    launch(put, dim3(1), dim3(32), 0, nullptr, static_cast<unsigned*>(tensors[0]));
}}
"""


def compile_with(compiler: Compiler, folder: Path, statement: str) -> None:
    source = folder / "put.cu"
    source.write_text(SOURCE.format(statement=statement))
    compiler.compile(source)


@pytest.mark.parametrize(
    ("name", "statement"),
    [
        ("__nanosleep", "__nanosleep(1);"),
        ("atomicOr", "atomicOr(out, 1u);"),
        ("clock", "out[threadIdx.x] = clock();"),
        ("clock64", "out[threadIdx.x] = clock64();"),
        ("cooperative_groups", "cooperative_groups::this_thread_block().sync();"),
        ("bar.sync", 'asm volatile("bar.sync 0;");'),
        ("wgmma.fence.sync.aligned", 'asm volatile("wgmma.fence.sync.aligned;");'),
    ],
)
def test_a_name_without_a_twin_does_not_compile(
    compiler: Compiler, tmp_path: Path, name: str, statement: str
) -> None:
    with pytest.raises(RuntimeError, match=rf"(?i)error: .*{re.escape(name)}\b"):
        compile_with(compiler, tmp_path, statement)


def test_the_same_program_compiles_with_a_twin(compiler: Compiler, tmp_path: Path) -> None:
    compile_with(compiler, tmp_path, "__syncwarp();")
