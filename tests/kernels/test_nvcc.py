"""Every CUDA file compiles from Turing to Hopper without a warning and soon, and no kernel spills registers."""

import pytest

from kernels import toolchain
from kernels.workbench import resources

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(toolchain.cuda_home() is None, reason="no CUDA toolkit on this machine"),
]
SECONDS = 60  # of one core, for one file and one architecture


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90"])
@pytest.mark.parametrize("source", resources.sources(), ids=lambda source: source.stem)
def test_kernels_compile_without_spills(source, architecture):
    compiled = resources.compile_for(source, architecture)
    assert compiled.kernels or source.stem == "attention"  # which only chooses
    assert {kernel.architecture for kernel in compiled.kernels} <= {architecture}
    assert [kernel for kernel in compiled.kernels if kernel.spilled] == []
    assert compiled.seconds < SECONDS


@pytest.mark.parametrize(
    "header", sorted((toolchain.CSRC / "cuda").glob("*.cuh")), ids=lambda header: header.stem
)
def test_each_header_includes_what_it_needs(header, tmp_path):
    alone = tmp_path / "alone.cu"
    alone.write_text(f'#include "{header}"\n')
    resources.compile_kernels(alone, ["sm_80"])
