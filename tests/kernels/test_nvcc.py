"""Every CUDA file compiles for Ampere and Hopper without a warning, and no attention kernel spills registers."""

import pytest

from kernels import resources, toolchain

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(toolchain.cuda_home() is None, reason="no CUDA toolkit on this machine"),
]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("source", resources.sources(), ids=lambda source: source.stem)
def test_kernels_compile_without_spills(source, architecture):
    found = resources.compile_kernels(source, [architecture])
    assert found or source.stem == "attention"  # which only chooses
    assert {kernel.architecture for kernel in found} <= {architecture}
    assert [kernel for kernel in found if kernel.spilled] == []
