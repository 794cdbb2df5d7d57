"""Each planted fault is found, with kernel, block, thread and line; the same kernel mended is silent."""

import re
from pathlib import Path

import numpy as np
import pytest

from kernels.emulator import Library, Toolchain

SOURCE = Path(__file__).parent / "programs" / "faults.cu"
SEEDS = range(3)

# What the report says, for faults that need every load and store to be watched …
WATCHED = {
    "unwritten_shared": "reads shared memory that no thread of this block has written",
    "two_writers": r"writes shared memory that thread \d+ wrote at .*faults.cu:\d+, with no barrier between",
    "missing_barrier": r"reads shared memory that thread \d+ wrote at .*, with no barrier between"
    r"|writes shared memory that thread \d+ read",
    "missing_second_barrier": r"writes shared memory that thread \d+ read at .*, with no barrier between"
    r"|reads shared memory that thread \d+ wrote",
    "missing_syncwarp": r"reads shared memory that thread \d+ wrote at .*, with no barrier between",
    "misaligned_vector": "misaligned, the address is 4 bytes past a multiple of 16",
    "read_outside": "reads 4 bytes outside the tensors handed in, 0 bytes past the end of tensor 0",
    "write_outside": "writes 4 bytes outside the tensors handed in, 4 bytes before the start of tensor 1",
    "index_outside": "index 8 is outside its array",
    "past_dynamic_shared": "writes 4 bytes outside the tensors .*, 0 bytes past the end of dynamic shared",
    "copy_not_waited_for": r"reads shared memory before the wait that covers the cp.async at .*faults.cu:\d+",
    "copy_without_barrier": r"reads shared memory that thread \d+ wrote at .*, with no barrier between"
    r"|cp.async writes shared memory that thread \d+ read",
    "copy_over_readers": r"cp.async writes shared memory that thread \d+ read at .*, with no barrier between"
    r"|reads shared memory that thread \d+ wrote|reads shared memory before the wait",
    "plain_among_atomics": r"reads shared memory that thread \d+ wrote at .*, with no barrier between"
    r"|writes shared memory that thread \d+ read",
    "two_threads_one_word": r"writes tensor 1 that thread \d+ wrote at .*faults.cu:\d+, with no barrier between",
    "read_back_without_barrier": r"reads tensor 1 that thread \d+ wrote at .*, with no barrier between"
    r"|writes tensor 1 that thread \d+ read at .*, with no barrier between",
    "two_blocks_one_word": r"writes what block \d wrote at .*faults.cu:\d+, and nothing orders blocks",
    "store_among_atomics": r"writes what block \d (wrote|changed) at .*faults.cu:\d+, and nothing orders blocks",
}
# … and for those that any build of the emulator finds.
ALWAYS = {
    "barrier_missed": r"a barrier was not reached by all threads of the block\n.*thread 5: returned\n",
    "two_barriers": r"threads of one block wait at different barriers\n  threads 0-15: waiting in __sync",
    "shuffle_disagrees": r"the lanes of a warp disagree\n  thread \d+: waiting in __shfl_sync for lanes 0x",
    "mma_disagrees": r"the lanes of a warp disagree\n.*mma.m16n8k16.f16 for lanes 0xffffffff at ",
    "shuffle_from_nobody": "__shfl_sync: reads lane 16, which takes no part",
    "misaligned_ldmatrix": "ldmatrix.x1: misaligned, the address is 8 bytes past a multiple of 16",
    "misaligned_copy": r"cp.async \(from global .*: misaligned, the address is 4 bytes past a multiple of 16",
    "deadlock": r"no thread of the block can go on\n  threads 0-15: waiting in __syncwarp for lanes 0x",
    "too_much_shared": "166913 bytes of shared memory, sm_80 has 166912 for one block",
}


def aligned(count: int) -> np.ndarray:
    """`count` floats that start at a multiple of 16 bytes."""
    room = np.arange(count + 4, dtype=np.float32)
    return room[-room.ctypes.data % 16 // 4 :][:count]


def report(library: Library, fault: str, *, mended: bool, seed: int) -> str | None:
    """What the emulator says about the kernel, None when it is silent."""
    try:
        library.run(fault, [aligned(32), aligned(128)], [int(mended)], seed=seed)
    except RuntimeError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def checked(toolchain: Toolchain) -> Library:
    return toolchain.compile(SOURCE, checked=True)


@pytest.fixture(scope="module")
def plain(toolchain: Toolchain) -> Library:
    return toolchain.compile(SOURCE)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", [*WATCHED, *ALWAYS])
def test_fault_is_found_where_it_is(checked: Library, fault: str, seed: int) -> None:
    text = report(checked, fault, mended=False, seed=seed)
    assert text is not None
    assert re.search({**WATCHED, **ALWAYS}[fault], text, re.DOTALL)
    assert re.match(rf"kernel (void )?{fault}\b", text)
    if fault != "too_much_shared":
        lines = SOURCE.read_text().splitlines()
        line = 1 + next(i for i, text in enumerate(lines) if text.endswith(f"// {fault}"))
        assert re.search(rf"block \([01], 0, 0\): .*faults\.cu:{line}\b", text, re.DOTALL)


@pytest.mark.parametrize("fault", ALWAYS)
def test_fault_is_found_without_checks(plain: Library, fault: str) -> None:
    text = report(plain, fault, mended=False, seed=1)
    assert text is not None
    assert re.search(ALWAYS[fault], text, re.DOTALL)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", [*WATCHED, *ALWAYS])
def test_mended_kernel_is_silent(checked: Library, fault: str, seed: int) -> None:
    assert report(checked, fault, mended=True, seed=seed) is None
