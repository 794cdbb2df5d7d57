"""Every rung of the ladder, on the emulator and on a GPU, against float64 and beside torch's own error."""

import doctest
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from kernels import ladder, reference, toolchain
from kernels.__main__ import main
from kernels.ladder import OPS, Cuda, Emulated, Rung, measure
from kernels.workbench import resources, trials
from tests.kernels import cases
from tests.kernels.cases import by

PAGE = Path(__file__).parents[2] / "docs" / "kernels" / "ladder.md"
RUNGS = [rung for op in OPS for rung in ladder.rungs(op)]
UNITS = sorted({rung.unit for rung in RUNGS if not rung.ships})
# What ships is compiled for every width, which takes long, and has tests of its own.
RUNS = [pytest.param(rung, id=str(rung), marks=[pytest.mark.slow] * rung.ships) for rung in RUNGS]
NORM_SHAPES = [(1, 8), (5, 384), (37, 48), (130, 1024)]
RAGGED_NORM_SHAPES = [(6, 7), (3, 1025)]
LOSS_SHAPES = [(1, 8), (5, 384), (7, 2312)]
RAGGED_LOSS_SHAPES = [(7, 3), (130, 17), (3, 1025)]
IN_PACKS = ("row_in_registers", "one_pass", "packs")
LOSSES = [run for run in RUNS if run.values[0].op == "cross_entropy_loss"]
ATTENTION_SHAPES = [
    (1, 1, 1, 64),
    (2, 17, 1, 64),
    (1, 63, 2, 64),
    (1, 64, 1, 64),
    (1, 65, 3, 64),
    (1, 129, 1, 64),
]
needs_nvcc = pytest.mark.skipif(toolchain.cuda_home() is None, reason="no CUDA toolkit on this machine")


@pytest.fixture(scope="session")
def emulated(compiler) -> Emulated:
    """The ladder on the emulator, all checks on; compiled two files at a time."""
    compiler.objects()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda unit: compiler.compile(unit, checked=True), UNITS))
    return Emulated(compiler, checked=True)


@pytest.fixture(scope="session")
def cuda(compiler) -> Cuda:
    return Cuda(compiler.folder.parent / "ladder")  # shared by all processes of the run


def shapes_of(rung: Rung) -> list[tuple[int, ...]]:
    if rung.op.startswith("attention"):
        return ATTENTION_SHAPES
    if rung.op.startswith("cross_entropy"):
        return LOSS_SHAPES + (RAGGED_LOSS_SHAPES if rung.name not in IN_PACKS else [])
    return NORM_SHAPES + (RAGGED_NORM_SHAPES if rung.name not in IN_PACKS else [])


def exact(op: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """What the rungs of `op` compute, in float64."""
    if op == "cross_entropy_loss":
        return list(trials.exact_cross_entropy(*(x.cpu() for x in inputs)).values())
    inputs = [x.cpu().double() for x in inputs]
    if op == "layer_norm_forward":
        return [reference.layer_norm(*inputs), *(x.squeeze(1) for x in reference.moments(inputs[0], 1e-5))]
    if op == "layer_norm_backward":
        return list(reference.layer_norm_backward(*inputs[:3]))
    if op == "attention_forward":
        q, k, _ = inputs
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / 8
        lse = scores.masked_fill(~reference.seen(q.shape[1], None), -torch.inf).logsumexp(-1)
        return [reference.causal_attention(*inputs), lse]
    return list(reference.causal_attention_backward(*inputs[:4]))


def check(rung: Rung, run, inputs: list[torch.Tensor]) -> None:
    """Runs a rung and holds each output against float64; statistics in float32 to a few units in the last place."""
    torchs = measure.torchs(rung.op, inputs)()
    torchs = torchs if isinstance(torchs, tuple) else (torchs,)
    ours, true = run(rung, inputs), exact(rung.op, inputs)
    assert len(ours) == len(true)
    factor = 3 if rung.op.endswith("backward") else 2
    cancels = (
        1.0 if rung.op == "attention_backward" else 0.0
    )  # terms of the size of grad_out cancel to nothing
    for our, torch_own, value in zip(ours, torchs, true, strict=False):
        cases.assert_as_exact_as(our, torch_own, value, factor=factor, size=cancels)
    for our, value in zip(ours[len(torchs) :], true[len(torchs) :], strict=True):
        assert our.dtype == torch.float32
        torch.testing.assert_close(our.cpu().double(), value, rtol=2e-6, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("rung", RUNS)
def test_rung_is_as_exact_as_torch_and_free_of_races(emulated, rung):
    for shape in shapes_of(rung):
        check(rung, lambda *call: emulated.run(*call, seed=1), measure.make_inputs(rung.op, shape))


@pytest.mark.parametrize("rung", LOSSES)
def test_losses_without_a_target_or_of_what_is_not_finite(emulated, rung):
    logits, targets, scale = measure.make_inputs(rung.op, (9, 40))
    targets[1:5] = torch.tensor([-100, -1, 40, 39])  # ignored, outside on both sides, the last
    logits[5, :24] = -torch.inf  # packs of nothing else
    logits[7, 7], logits[8, 8] = torch.nan, torch.inf
    gradient, *statistics = emulated.run(rung, [logits, targets, scale], seed=1)
    true, *true_statistics = exact(rung.op, [logits, targets, scale])
    assert not gradient[1].any() and gradient[7:].isnan().all() and true[:7].isfinite().all()
    torch.testing.assert_close(gradient.double(), true, rtol=2**-8, atol=2**-12, equal_nan=True)
    for our, value in zip(statistics, true_statistics, strict=True):
        torch.testing.assert_close(our.double(), value, rtol=2e-6, atol=2e-6, equal_nan=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("rung", **by([rung for rung in RUNGS if not rung.ships]))
def test_rung_is_as_exact_as_torch_on_a_gpu(cuda, rung):
    for shape in shapes_of(rung):
        check(rung, cuda.run, measure.make_inputs(rung.op, shape, "cuda"))


@pytest.mark.parametrize("name", ["tiled_columns", "one_pass", "deterministic", "tensor_cores"])
def test_what_is_called_deterministic_does_not_depend_on_the_order_of_blocks(emulated, name):
    (rung,) = (rung for rung in RUNGS if rung.name == name and rung.op.endswith("backward"))
    inputs = measure.make_inputs(rung.op, (1, 129, 1, 64) if rung.op.startswith("attention") else (130, 384))
    first, second = (emulated.run(rung, inputs, seed=seed) for seed in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["tensor_cores", "swizzle", "double_buffer", "only_what_is_seen"])
def test_swizzle_frees_shared_memory_of_bank_conflicts(emulated, name):
    (rung,) = (rung for rung in ladder.rungs("attention_forward") if rung.name == name)
    found = emulated.counts(rung, measure.make_inputs(rung.op, (1, 128, 1, 64)))
    shared = [count for count in found if count.space == "shared"]
    assert (sum(c.cost for c in shared) == sum(c.least for c in shared)) == (name != "tensor_cores")
    # of 16 x 16 x 16, in two mma: each of 8 query tiles with 8 (or on average 4 + 2) key tiles, twice over D / 16
    pairs = 48 if name == "only_what_is_seen" else 64
    assert sum(c.cost for c in found if c.space == "tensor cores") == pairs * 2 * 2 * 64 // 16


# Of a row of 384: 24 sectors. Read n times and written once, with weight and bias read for each row.
@pytest.mark.parametrize(
    ("name", "reads"), [("block_per_row", 3), ("warp_per_row", 3), ("row_in_registers", 1)]
)
def test_sectors_of_layer_norm_are_those_of_its_loads(emulated, name, reads):
    (rung,) = (rung for rung in ladder.rungs("layer_norm_forward") if rung.name == name)
    found = emulated.counts(rung, measure.make_inputs(rung.op, (16, 384)))
    statistics = 2 * 16  # mean and rstd, one lane's 4 bytes each
    assert sum(c.cost for c in found if c.space == "global") == 16 * 24 * (reads + 1 + 2) + statistics


# A row of 512 bfloat16 is two full turns of a block that takes them one by one, and a quarter of one in packs.
@pytest.mark.parametrize(
    ("name", "sweeps", "width"), [("block_per_row", 3, 1), ("online_sum", 2, 1), ("packs", 2, 8)]
)
def test_requests_of_cross_entropy_are_those_of_its_sweeps(emulated, name, sweeps, width):
    (rung,) = (rung for rung in ladder.rungs("cross_entropy_loss") if rung.name == name)
    found = emulated.counts(rung, measure.make_inputs(rung.op, (4, 512)))
    moved = [count for count in found if count.space == "global" and count.bytes == 2 * width]
    reads, writes = (
        sum(count.warp_accesses for count in moved if count.access == access) for access in ("read", "write")
    )
    of_targets = 3 if width == 1 else 0  # their logits; one row is ignored
    assert (reads, writes) == (4 * sweeps * 16 // width + of_targets, 4 * 16 // width)


@pytest.mark.parametrize("name", IN_PACKS)
def test_rows_that_do_not_fit_are_refused(emulated, name):
    (rung,) = (rung for rung in RUNGS if rung.name == name)
    at_most = "" if rung.op.startswith("cross_entropy") else ", at most 1024"
    for size in (1025, 12, *[2048] * bool(at_most)):
        with pytest.raises(RuntimeError, match=f"a multiple of 8 elements{at_most}"):
            emulated.run(rung, measure.make_inputs(rung.op, (2, size)))


def test_what_a_rung_cannot_take_is_refused():
    x, weight, bias = measure.make_inputs("layer_norm_forward", (4, 16))
    for inputs, word in (([x[:, ::2], weight, bias], "contiguous"), ([x.float(), weight, bias], "bfloat16")):
        with pytest.raises(ValueError, match=word):
            ladder.prepare("layer_norm_forward", inputs, 1, stream=0)
    with pytest.raises(ValueError, match=r"\(B, T, H, 64\), not \(1, 9, 2, 32\)"):
        ladder.prepare(
            "attention_forward", measure.make_inputs("attention_forward", (1, 9, 2, 32)), 1, stream=0
        )


@pytest.mark.parametrize("op", OPS)
def test_peers_on_a_gpu_compute_the_same(op):
    """The calls beside which a GPU times the rungs, run here by the kernels for the CPU."""
    shape = (1, 65, 2, 64) if op.startswith("attention") else (37, 48)
    inputs = measure.make_inputs(op, shape)
    has_op = op != "cross_entropy_loss"  # what ships is the last rung itself
    for call in (measure.shipped(op, inputs),) * has_op + (measure.torchs(op, inputs),):
        found = call()
        for one, true in zip(
            found if isinstance(found, tuple) else (found,), exact(op, inputs), strict=False
        ):
            assert (one.double() - true).norm() <= 0.01 * true.norm()


def test_every_file_is_a_rung_and_explained():
    page = PAGE.read_text()
    for rung in RUNGS:
        assert f"kernels/ladder/{rung.unit.parent.name}/{rung.source.name}" in page
        assert rung.ships or f'"{rung.source.name}"' in rung.unit.read_text()
    assert doctest.testmod(ladder).failed == 0


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_the_page_tells_the_counts(emulated, op):
    page = PAGE.read_text()
    for row in measure.counted(op, emulated):
        name = row.name.rsplit(" ", 1)[1]
        op_folder, part = op.rsplit("_", 1)
        (line,) = re.findall(rf"^\| \[`{part}_\d_{name}`\]\(\S*/{op_folder}/.*$", page, re.MULTILINE)
        sectors, wavefronts, mma = line.strip("| ").split(" | ")[-3:]
        told = {"sectors": sectors, "wavefronts": wavefronts, "mma": mma}[row.unit]
        assert told == f"{row.ours:,.0f}"


def test_the_command_writes_what_it_counts(emulated, compiler, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(measure.COUNTED_SHAPES, "layer_norm", (8, 64))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    main(
        [
            "ladder",
            "layer_norm_backward",
            "--json",
            str(tmp_path / "rows.json"),
            "--build",
            str(compiler.folder),
        ]
    )
    assert "times need an NVIDIA GPU" in capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    sectors = {row["name"]: row for row in rows if row["unit"] == "sectors"}
    names = [f"layer_norm_backward (8, 64) {rung.name}" for rung in ladder.rungs("layer_norm_backward")]
    assert list(sectors) == names
    # x, grad_out and grad_x: 4 sectors a row; weight and its two gradients; mean and rstd
    assert {row["peer_value"] for row in sectors.values()} == {3 * 8 * 4 + 3 * 4 + 2}
    assert sectors[names[0]]["ours"] > sectors[names[-1]]["ours"]


def test_unknown_op_is_one_line(refused):
    assert "no op 'dropout'" in refused(main, "ladder", "dropout")


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("unit", **by([unit.relative_to(ladder.HERE) for unit in UNITS]))
def test_rungs_compile_for_a_gpu_without_spills(unit, architecture):
    found = resources.compile_kernels(ladder.HERE / unit, [architecture])
    assert found and [kernel for kernel in found if kernel.spilled] == []


@pytest.mark.slow
@needs_nvcc
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_compiled_rung_says_that_there_is_no_gpu(tmp_path):
    rung = ladder.rungs("layer_norm_forward")[0]
    library = ladder.load(ladder.compile_for_gpu(rung.unit, tmp_path, "sm_80"))
    assert "a kernel could not be launched" in ladder.launch(library, rung, [0] * 7, [1, 8, 1, 0])
