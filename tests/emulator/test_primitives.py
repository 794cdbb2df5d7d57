"""Each primitive against a table made here, from the formulas of the PTX ISA and the CUDA guide."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.workbench.emulator import Compiler, Library

SOURCE = Path(__file__).parent / "programs" / "primitives.cu"
LANES = range(32)


@pytest.fixture(scope="module", params=["plain", "checked"])
def library(request: pytest.FixtureRequest, compiler: Compiler) -> Library:
    return compiler.compile(SOURCE, checked=request.param == "checked")


def fragment(elements: int, row, column) -> np.ndarray:
    """(32, elements, 2): row and column of element i of each lane, from the manual's formulas."""
    return np.array(
        [
            [[row(g, t, i), column(g, t, i)] for i in range(elements)]
            for g, t in (divmod(lane, 4) for lane in LANES)
        ]
    )


# PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": g = groupID, t = threadID_in_group.
A16 = fragment(
    8,
    lambda g, t, i: g if 0 <= i < 2 or 4 <= i < 6 else g + 8,
    lambda g, t, i: t * 2 + (i & 1) if i < 4 else t * 2 + (i & 1) + 8,
)
B16 = fragment(4, lambda g, t, i: t * 2 + (i & 1) if i < 2 else t * 2 + (i & 1) + 8, lambda g, t, i: g)
# … "mma.m16n8k8", .tf32.
A8 = fragment(4, lambda g, t, i: g if i in (0, 2) else g + 8, lambda g, t, i: t if i in (0, 1) else t + 4)
B8 = fragment(2, lambda g, t, i: t if i == 0 else t + 4, lambda g, t, i: g)
# The accumulator of both.
C = fragment(4, lambda g, t, i: g if i < 2 else g + 8, lambda g, t, i: t * 2 + (i & 1))


def take(matrix: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The elements of `matrix` that each lane holds: (32, elements)."""
    return np.ascontiguousarray(matrix[places[..., 0], places[..., 1]])


def words(matrix: torch.Tensor, places: np.ndarray) -> np.ndarray:
    """The registers of each lane as uint32: two 16-bit elements in each, the first in the low half."""
    if matrix.dtype == torch.float32:
        return take(matrix.numpy(), places).view(np.uint32)
    return take(matrix.view(torch.int16).numpy(), places).view(np.uint32)


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_mma_multiplies_the_matrices_of_the_documented_fragments(
    library: Library, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    depth = 8 if dtype == torch.float32 else 16
    # Small integers, so that every dtype and every order of summation is exact: only the layout can be wrong.
    a = torch.randint(-8, 9, (16, depth), generator=generator).to(dtype)
    b = torch.randint(-8, 9, (depth, 8), generator=generator).to(dtype)
    c = torch.randint(-8, 9, (16, 8), generator=generator).float()
    places_a, places_b = (A8, B8) if depth == 8 else (A16, B16)
    registers = take(c.numpy(), C)
    kind = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}[dtype]
    library.run("mma", [words(a, places_a), words(b, places_b), registers], [kind], seed=seed)
    np.testing.assert_array_equal(registers, take((c + a.float() @ b.float()).numpy(), C))


def test_mma_sums_in_float32(library: Library) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(shape, generator=generator).half() for shape in ((16, 16), (16, 8)))
    registers = np.zeros((32, 4), dtype=np.float32)
    library.run("mma", [words(a, A16), words(b, B16), registers], [1])
    np.testing.assert_allclose(registers, take((a.double() @ b.double()).numpy(), C), rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_hands_out_rows_and_columns(
    library: Library, count: int, transposed: bool, seed: int
) -> None:
    memory = np.arange(32 * 8, dtype=np.uint16).reshape(32, 8)
    rows = np.random.default_rng(seed).permutation(32).astype(np.int32)
    registers = np.zeros((32, count), dtype=np.uint32)
    library.run("ldmatrix", [memory, rows, registers], [count, transposed], seed=seed)
    matrices = memory[rows].reshape(4, 8, 8)[:count]
    if transposed:
        matrices = matrices.transpose(0, 2, 1)
    # Lane l gets elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of each matrix.
    expected = np.ascontiguousarray(matrices.reshape(count, 32, 2).transpose(1, 0, 2)).view(np.uint32)[..., 0]
    np.testing.assert_array_equal(registers, expected)


@pytest.mark.parametrize("width", [4, 16, 32])
@pytest.mark.parametrize("argument", [0, 1, 3, 9])
@pytest.mark.parametrize("kind", ["idx", "up", "down", "xor"])
def test_shuffle_reads_the_lane_of_the_ptx_pseudocode(
    library: Library, kind: str, argument: int, width: int
) -> None:
    out = np.zeros(32, dtype=np.int32)
    library.run("shuffle", [out], [["idx", "up", "down", "xor"].index(kind), argument, width], seed=argument)
    assert out.tolist() == [shuffle_source(kind, lane, argument, width) for lane in LANES]


def shuffle_source(kind: str, lane: int, b: int, width: int) -> int:
    """PTX ISA, "shfl.sync", with c = ((32 - width) << 8) | (0 for up, 31 for the others)."""
    segment_mask, clamp = 32 - width, 0 if kind == "up" else 31
    max_lane = (lane & segment_mask) | (clamp & ~segment_mask & 31)
    min_lane = lane & segment_mask
    if kind == "up":
        j = lane - b
        return j if j >= max_lane else lane
    j = {"idx": min_lane | (b & ~segment_mask & 31), "down": lane + b, "xor": lane ^ b}[kind]
    return j if j <= max_lane else lane


@pytest.mark.parametrize(
    ("first_warp", "second_warp"),
    [("mixed", "negative"), ("positive", "mixed"), ("negative", "positive"), ("negative", "negative")],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_votes_and_reductions_cover_the_lanes_of_the_mask(
    library: Library, first_warp: str, second_warp: str, seed: int
) -> None:
    limits = {"mixed": (-3, 4), "positive": (1, 4), "negative": (-3, 0)}
    random = np.random.default_rng(seed)
    values = np.concatenate([random.integers(*limits[warp], 32) for warp in (first_warp, second_warp)])
    values, out = values.astype(np.int32), np.zeros((64, 15), dtype=np.int32)
    library.run("vote", [values, out], seed=seed)
    block = [(values > 0).sum(), (values > 0).all(), (values > 0).any()]
    for first in (0, 32):
        check_votes(values[first : first + 32], out[first : first + 32], block)


def check_votes(values: np.ndarray, out: np.ndarray, block: list) -> None:
    """Of one warp. values (32), out (32, 15); block: the answers that its lanes share with all others."""
    positive = sum(1 << lane for lane in LANES if values[lane] > 0)
    for half in (range(16), range(16, 32)):
        part = values[list(half)]
        unsigned = part.view(np.uint32)
        ballot = sum(1 << lane for lane in half if values[lane] > 0)
        reductions = [part.sum(), part.min(), part.max()]
        bits = [
            np.bitwise_and.reduce(part),
            np.bitwise_or.reduce(part),
            np.bitwise_xor.reduce(part),
            unsigned.min(),
        ]
        for lane in half:
            match = sum(1 << other for other in half if values[other] == values[lane])
            active = positive if values[lane] > 0 else 0
            answers = [ballot, ballot != 0, (part > 0).all(), *reductions, *bits, match, active, *block]
            assert out[lane].view(np.uint32).tolist() == [int(answer) % 2**32 for answer in answers]


@pytest.mark.parametrize("size", [4, 8, 16])
def test_cp_async_copies_or_fills_with_zero(library: Library, size: int) -> None:
    source = np.random.default_rng(size).integers(1, 255, (32, 16), dtype=np.uint8)
    base = np.ascontiguousarray(source.reshape(-1)[: 32 * size].reshape(32, size))
    out = np.full((32, size), 255, dtype=np.uint8)
    library.run("copy", [base, out], [size])
    expected = base.copy()
    expected[1::2] = 0
    np.testing.assert_array_equal(out, expected)


def test_cp_async_data_arrives_group_by_group(compiler: Compiler) -> None:
    out = np.zeros((3, 3), dtype=np.float32)
    compiler.compile(SOURCE).run("pipeline", [np.array([5, 6, 7], dtype=np.float32), out])
    assert out.tolist() == [[5, -1, -1], [5, 6, -1], [5, 6, 7]]


def test_rounding_equals_torch_and_the_ties_away_rule(library: Library) -> None:
    words = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    halfway = (np.arange(1 << 13, dtype=np.uint32) << 19) | 0x8000  # ties of bfloat16 in every exponent
    halfway_half = (np.arange(1 << 13, dtype=np.uint32) << 19) | 0x1000
    subnormal = np.float32(2.0**-26) * np.arange(4200, dtype=np.float32)  # of float16, ties among them
    edges = np.array([0, -0.0, 65504, 65519.99, 65520, np.inf, -np.inf, 3.4e38], dtype=np.float32)
    x = np.concatenate(
        [words.view(np.float32), halfway.view(np.float32), halfway_half.view(np.float32), subnormal, edges]
    )
    x = x[~np.isnan(x)]
    bfloat16, half, tf32 = (
        np.zeros(len(x), np.uint16),
        np.zeros(len(x), np.uint16),
        np.zeros(len(x), np.uint32),
    )
    library.run("narrow", [x, bfloat16, half, tf32], [len(x)])
    expected = torch.from_numpy(x)
    np.testing.assert_array_equal(bfloat16, expected.bfloat16().view(torch.int16).numpy().view(np.uint16))
    np.testing.assert_array_equal(half, expected.half().view(torch.int16).numpy().view(np.uint16))
    finite = np.isfinite(x) & (np.abs(x) < 3e38) & (np.abs(x) > 1e-37)
    mantissa, exponent = np.frexp(np.abs(x[finite]).astype(np.float64))
    away = np.copysign(np.ldexp(np.floor(np.ldexp(mantissa, 11) + 0.5), exponent - 11), x[finite])
    np.testing.assert_array_equal(tf32.view(np.float32)[finite], away)


def test_nan_becomes_the_canonical_nan(library: Library) -> None:
    x = np.array([0x7F800001, 0xFFC00000, 0x7FFFFFFF], dtype=np.uint32).view(np.float32)
    bfloat16, half, tf32 = np.zeros(3, np.uint16), np.zeros(3, np.uint16), np.zeros(3, np.uint32)
    library.run("narrow", [x, bfloat16, half, tf32], [3])
    assert {*bfloat16.tolist(), *half.tolist()} == {0x7FFF}
    # tf32 is cut off, as nvcc compiles it for sm_80: without its low bits the first is infinity.
    assert tf32.tolist() == [0x7F800000, 0xFFC00000, 0x7FFFE000]
    assert np.isnan(tf32.view(np.float32)[1:]).all()


def once_rounded(x: np.ndarray, digits: int, lowest: int) -> np.ndarray:
    """x (float64) to the nearest multiple of its last place, ties to even; the smallest last place is 2^lowest."""
    _, exponent = np.frexp(x)
    place = np.maximum(exponent - digits, lowest)
    return np.ldexp(np.rint(np.ldexp(x, -place)), place)


def test_doubles_and_ints_are_rounded_once(library: Library) -> None:
    random = np.random.default_rng(1)
    ties = (1 + np.arange(1, 2048, 2) / 2048) * 2.0 ** random.integers(
        -30, 15, 1024
    )  # of half, or of bfloat16
    ties = np.concatenate([ties, np.round(ties, 3), (1 + np.arange(1, 256, 2) / 256) * 3.0])
    nudged = [ties * sign * (1 + nudge) for sign in (1, -1) for nudge in (-(2.0**-40), 0.0, 2.0**-40)]
    edges = [
        0.0,
        -0.0,
        1e-300,
        -1e-300,
        65519.999999,
        65520,
        1e300,
        -1e300,
        np.inf,
        2.0**-25,
        2.0**-25 + 2.0**-70,
    ]
    x = np.concatenate([*nudged, edges])
    integer = random.integers(-(2**31), 2**31, len(x)).astype(np.int32)
    integer[: 1 << 12] = (
        (257 << 22) + np.arange(1 << 12) - (1 << 11)
    )  # about a tie of bfloat16, beyond 24 bits
    out = np.zeros((4, len(x)), np.uint16)
    library.run("narrow_wide", [x, integer, out], [len(x)])
    with np.errstate(over="ignore"):
        halves = [x.astype(np.float16), integer.astype(np.float64).astype(np.float16)]
        bfloats = [
            once_rounded(np.nan_to_num(v), 8, -133).astype(np.float32) for v in (x, integer.astype(float))
        ]
    for row, expected in zip(out[1::2], halves, strict=True):
        np.testing.assert_array_equal(row, expected.view(np.uint16))
    for row, values, expected in zip(out[::2], (x, integer), bfloats, strict=True):
        finite = np.isfinite(values)
        np.testing.assert_array_equal(row[finite], (expected.view(np.uint32) >> 16).astype(np.uint16)[finite])


def test_widening_equals_torch_for_every_word(library: Library) -> None:
    bfloat16, half = np.zeros(1 << 16, np.float32), np.zeros(1 << 16, np.float32)
    library.run("widen", [bfloat16, half])
    every = torch.arange(1 << 16).to(torch.int16)
    np.testing.assert_array_equal(bfloat16, every.view(torch.bfloat16).float().numpy())
    np.testing.assert_array_equal(half, every.view(torch.half).float().numpy())


def test_atomics_of_all_blocks_add_up(library: Library) -> None:
    room = np.zeros(16, np.float32)
    floats = room[-room.ctypes.data % 16 // 4 :][:8]
    doubles, ints = np.zeros(1, np.float64), np.zeros(2, np.int32)
    library.run("atomics", [floats, doubles, ints], [20], workers=2, seed=3)
    total = 20 * 64
    assert floats.tolist() == [total, 0, total, 2 * total, total, 2 * total, 3 * total, 4 * total]
    assert (doubles.tolist(), ints.tolist()) == ([total / 2], [total, total - 1])


def turns(library: Library, seed: int, blocks: int, threads: int) -> list[int]:
    turn, order = np.zeros(1, np.int32), np.full(blocks * threads, -1, np.int32)
    library.run("turns", [turn, order], [blocks, threads], seed=seed, workers=1)
    return order.tolist()


@pytest.mark.parametrize(("blocks", "threads"), [(1, 32), (1, 96), (7, 1)])
def test_the_seed_draws_the_order_of_lanes_warps_and_blocks(
    library: Library, blocks: int, threads: int
) -> None:
    every = list(range(blocks * threads))
    assert turns(library, 0, blocks, threads) == every
    orders = [turns(library, seed, blocks, threads) for seed in (1, 2, 3, -1, 2**63 + 5)]
    assert all(sorted(order) == every for order in orders)
    assert len({tuple(order) for order in [every, *orders]}) >= 5
    assert turns(library, 3, blocks, threads) == orders[2]
    warps = [[thread // 32 for thread in order[::32]] for order in orders]
    assert threads < 96 or len({tuple(order) for order in warps}) > 1


@pytest.mark.parametrize("blocks", [3, 5, 7, 24])
def test_every_block_runs_whatever_the_seed(library: Library, blocks: int) -> None:
    for seed in (-1, -2, 2**63, 2**64 - blocks):
        assert sorted(turns(library, seed, blocks, 1)) == list(range(blocks))


def test_threads_are_numbered_x_first(library: Library) -> None:
    out = np.zeros((24, 48), dtype=np.int32)
    library.run("number", [out], seed=11)
    expected = np.ones(48, dtype=np.uint32)
    expected[0] += 0x01010101  # lanes with threadIdx.x == 0 among the first 32 threads
    expected[32] += 0x0101
    np.testing.assert_array_equal(out.view(np.uint32), np.tile(expected, (24, 1)))
