"""Each planted fault is found, with kernel, block, thread and line; the same kernel mended is silent."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kernels.workbench.emulator import Compiler, Library

FOLDER = Path(__file__).parent / "programs" / "faults"
SEEDS = range(3)
IN_BLOCK = (
    r"(reads|writes) shared memory that thread \d+ (read|wrote) at .*races.cu:\d+, with no barrier between"
)

# What the report says, for faults that need every load and store to be watched …
WATCHED = {
    "races": {
        "unwritten_shared": "reads shared memory that no thread of this block has written",
        "two_writers": r"writes shared memory that thread \d+ wrote at .*races.cu:\d+, with no barrier between",
        "missing_barrier": IN_BLOCK,
        "missing_second_barrier": IN_BLOCK,
        "missing_syncwarp": r"reads shared memory that thread \d+ wrote at .*, with no barrier between",
        "reader_of_another_warp": r"writes shared memory that thread 0 read at|reads .* that thread 63 wrote at",
        "readers_meet_one_by_one": r"writes .* that thread 0 read at|reads .* that thread 2 wrote at",
        "reads_after_the_meeting": r"writes .* that thread 1 read at|reads .* that thread 2 wrote at",
        "copy_not_waited_for": r"reads shared memory before the wait that covers the cp.async at .*races.cu:\d+",
        "copy_overwritten": r"writes shared memory before the wait that covers the cp.async at .*races.cu:\d+",
        "copy_without_barrier": IN_BLOCK,
        "copy_over_readers": f"cp.async {IN_BLOCK}|{IN_BLOCK}|reads shared memory before the wait",
        "plain_among_atomics": r"reads shared memory that thread \d+ changed at .*, with no barrier between"
        r"|writes shared memory that thread \d+ read",
        "added_before_the_start_value": "writes shared memory that thread 0 wrote at"
        "|reads shared memory that no thread of this block has written",
        "added_over_readers": r"writes shared memory that thread 0 read at"
        r"|reads shared memory that thread \d+ changed",
        "last_to_add_reads": r"reads shared memory that thread \d+ changed|writes .* that thread 31 read",
        "last_to_add_writes": r"writes shared memory that thread \d+ changed|writes .* that thread 31 wrote",
        "two_threads_one_word": r"writes tensor 1 that thread \d+ wrote at .*races.cu:\d+, with no barrier",
        "read_back_without_barrier": r"reads tensor 1 that thread \d+ wrote at .*, with no barrier between"
        r"|writes tensor 1 that thread \d+ read at .*, with no barrier between",
        "two_blocks_one_word": r"writes what block \d wrote at .*races.cu:\d+, and nothing orders blocks",
        "one_block_reads": "reads what block 0 wrote at .*, and nothing orders|writes what block 1 read at",
        "both_blocks_read": "writes what block 0 read at|reads what block 1 wrote at",
        "store_among_atomics": r"writes what block \d (wrote|changed) at .*races.cu:\d+, and nothing orders",
        "last_block_reads": "reads what block 0 changed at|writes what block 1 read at",
        "last_block_writes": "writes what block 0 changed at|writes what block 1 wrote at",
    },
    "addresses": {
        "misaligned_vector": "misaligned, the address is 4 bytes past a multiple of 16",
        "misaligned_store": "misaligned, the address is 4 bytes past a multiple of 8",
        "read_outside": "reads 4 bytes outside the tensors handed in, 0 bytes past the end of tensor 0",
        "write_outside": "writes 4 bytes outside the tensors handed in, 4 bytes before the start of tensor 1",
        "copy_from_outside": "reads 4 bytes outside the tensors handed in, 0 bytes past the end of tensor 0",
        "index_outside": "index 8 is outside its array",
        "local_index_outside": "index 4 is outside its array",
        "past_dynamic_shared": "writes 4 bytes outside the tensors .*, 0 bytes past the end of dynamic shared",
    },
    "meetings": {},
}
# … and for those that any build of the emulator finds.
ALWAYS = {
    "races": {},
    "addresses": {
        "misaligned_atomic": "atomicAdd: misaligned, the address is 4 bytes past a multiple of 8",
        "misaligned_ldmatrix": "ldmatrix.x1: misaligned, the address is 8 bytes past a multiple of 16",
        "misaligned_copy": r"cp.async \(from global .*: misaligned, the address is 4 bytes past a multiple of 16",
        "copy_to_global": "cp.async: the address is not in shared memory",
        "copy_from_shared": "cp.async: the address is not in global memory but in shared memory",
        "ldmatrix_from_global": "ldmatrix.x1: the address is not in shared memory",
        "store_to_shared": "st.global: the address is not in global memory but in shared memory",
        "red_to_shared": "red.global.add: the address is not in global memory but in shared memory",
        "red2_to_shared": "red.global.add: the address is not in global memory but in shared memory",
        "red4_to_shared": "red.global.add: the address is not in global memory but in shared memory",
        "red_to_own_variable": "red.global.add: the address is not in global memory but a variable of the",
    },
    "meetings": {
        "barrier_missed": r"a barrier was not reached by all threads of the block\n.*thread 5: returned\n",
        "two_barriers": r"threads of one block wait at different barriers\n  threads 0-15: waiting in __sync",
        "shuffle_disagrees": r"the lanes of a warp disagree\n  thread \d+: waiting in __shfl_sync for lanes 0x",
        "vote_disagrees": r"the lanes of a warp disagree\n.*: waiting in __(any|all)_sync for lanes 0xffffffff at ",
        "mma_disagrees": r"the lanes of a warp disagree\n.*mma.m16n8k16.f16 for lanes 0xffffffff at ",
        "shuffle_from_nobody": "__shfl_sync: reads lane 16, which takes no part",
        "shuffle_from_returned": r"thread \(4, 0, 0\) at .*__shfl_sync: reads lane 31, which is not there",
        "shuffle_from_beyond_the_block": "__shfl_sync: reads lane 20, which is not there",
        "mma_after_return": "mma.m16n8k16.f16 needs all 32 lanes, and some have returned",
        "ldmatrix_after_return": "ldmatrix.x1 needs all 32 lanes, and some have returned",
        "deadlock": r"no thread of the block can go on\n  threads 0-15: waiting in __syncwarp for lanes 0x",
        "too_much_shared": "166913 bytes of dynamic shared memory, sm_80 has 166912 for one block",
        "too_many_threads": r"1025 threads in a block, allowed are 1 to 1024 \(64 along z\)",
        "too_many_layers": r"65 threads in a block, allowed are 1 to 1024 \(64 along z\)",
        "no_threads": "0 threads in a block, allowed are 1 to 1024",
        "too_many_rows_of_blocks": r"a grid may have 2\^31 - 1 x 65535 x 65535 blocks",
        "too_many_layers_of_blocks": r"a grid may have 2\^31 - 1 x 65535 x 65535 blocks",
        "no_blocks": "the grid has no block",
    },
}
EVERYWHERE = [(file, fault) for file in ALWAYS for fault in ALWAYS[file]]
ALL = [(file, fault) for file in WATCHED for fault in WATCHED[file]] + EVERYWHERE


def aligned(count: int) -> np.ndarray:
    """`count` floats that start at a multiple of 16 bytes."""
    room = np.arange(count + 4, dtype=np.float32)
    return room[-room.ctypes.data % 16 // 4 :][:count]


def report(library: Library, fault: str, *, mended: bool, seed: int) -> str | None:
    """What the emulator says about the kernel, None when it is silent."""
    try:
        library.run(fault, [aligned(32), aligned(128)], [int(mended)], seed=seed, workers=1)
    except RuntimeError as error:
        return str(error)
    return None


def lines(file: str, fault: str) -> str:
    """A pattern of the lines that a report may name."""
    source = (FOLDER / f"{file}.cu").read_text().splitlines()
    numbers = [str(i) for i, text in enumerate(source, 1) if text.endswith(f"// {fault}")]
    return rf"{file}\.cu:({'|'.join(numbers)})\b"


@pytest.fixture(scope="module")
def build(compiler: Compiler) -> Callable[[str, bool], Library]:
    return lambda file, checked: compiler.compile(FOLDER / f"{file}.cu", checked=checked)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("file", "fault"), ALL)
def test_fault_is_found_where_it_is(build, file: str, fault: str, seed: int) -> None:
    text = report(build(file, True), fault, mended=False, seed=seed)
    assert text is not None
    assert re.search({**WATCHED[file], **ALWAYS[file]}[fault], text, re.DOTALL)
    place = (
        rf", block \([01], 0, 0\): .*{lines(file, fault)}"
        if "cannot be" not in text
        else " cannot be launched: "
    )
    assert re.match(rf"kernel (void )?{fault}<false>{place}", text, re.DOTALL)


@pytest.mark.parametrize(("file", "fault"), EVERYWHERE)
def test_fault_is_found_without_checks(build, file: str, fault: str) -> None:
    text = report(build(file, False), fault, mended=False, seed=1)
    assert text is not None
    assert re.search(ALWAYS[file][fault], text, re.DOTALL)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("file", "fault"), ALL)
def test_mended_kernel_is_silent(build, file: str, fault: str, seed: int) -> None:
    assert report(build(file, True), fault, mended=True, seed=seed) is None
