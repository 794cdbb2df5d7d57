"""Bank conflicts and sectors of access patterns whose cost is known from the CUDA guide."""

from pathlib import Path

import numpy as np
import pytest

from kernels.workbench.emulator import AccessCount, Compiler

SOURCE = Path(__file__).parent / "programs" / "counts.cu"
BLOCKS = 3

# name: (bytes a lane, cost of one access, least)
PATTERNS = {
    "consecutive": (4, 1, 1),
    "stride_2": (4, 2, 1),
    "stride_32": (4, 32, 1),
    "padded": (4, 1, 1),
    "broadcast": (4, 1, 1),
    "one_of_four": (4, 4, 1),
    "vector": (16, 4, 4),
    "ldmatrix_conflict": (16, 32, 4),
    "ldmatrix_swizzled": (16, 4, 4),
    "coalesced": (4, 4, 4),
    "scattered": (4, 32, 4),
    "same_word": (4, 1, 4),
}


@pytest.fixture(scope="module")
def counts(compiler: Compiler) -> list[AccessCount]:
    library = compiler.compile(SOURCE, checked=True)
    room = np.zeros(256 + 8, dtype=np.float32)
    x = room[-room.ctypes.data % 32 // 4 :][:256]
    library.run("run_patterns", [x, np.zeros(32 * BLOCKS, np.float32)], seed=4, count=True)
    return library.counts()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_cost_is_what_the_hardware_rules_say(counts: list[AccessCount], pattern: str) -> None:
    lines = SOURCE.read_text().splitlines()
    line = 1 + next(i for i, text in enumerate(lines) if text.endswith(f"// {pattern}"))
    size, cost, least = PATTERNS[pattern]
    found = [count for count in counts if count.place.endswith(f"counts.cu:{line}")]
    space = "global" if pattern in ("coalesced", "scattered", "same_word") else "shared"
    assert [(c.space, c.access, c.bytes) for c in found] == [(space, "read", size)]
    assert (found[0].warp_accesses, found[0].cost, found[0].least) == (BLOCKS, BLOCKS * cost, BLOCKS * least)
