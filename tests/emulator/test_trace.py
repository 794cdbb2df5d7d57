"""What the trace shows of a warp is what the warp did."""

from pathlib import Path

import numpy as np
import pytest

from kernels.workbench import trace, trace_plot
from kernels.workbench.emulator import Compiler, Event

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="module")
def recorded(compiler: Compiler) -> trace.Recording:
    shapes = ("16x64:bfloat16", "64x8:bfloat16", "16x8:float32")
    return trace.record(
        trace.Options(str(PROGRAMS / "example.cu"), "run_tile_product", shapes, seed=3, build=compiler.folder)
    )


def named(events: list[Event], operation: str) -> list[Event]:
    return [event for event in events if event.operation.startswith(operation)]


def test_fragments_multiply_to_the_accumulator(recorded: trace.Recording) -> None:
    lanes = trace_plot.first_of(recorded.events, "mma")
    (_, a, _), (_, b, _), (_, c, owner) = trace_plot.fragments(lanes)
    assert len(lanes) == 32
    np.testing.assert_allclose(c, a @ b, rtol=0, atol=1e-5)  # the first mma adds to zero
    assert np.bincount(owner.ravel()).tolist() == [4] * 32


def test_stores_show_the_sums_of_the_last_mma(recorded: trace.Recording) -> None:
    events, kinds = recorded.events, recorded.kinds
    last = [event for event in named(events, "mma") if event.thread == 9][-1]
    stores = [event for event in named(events, "store") if event.thread == 9 and "tensor 2" in event.memory]
    assert b"".join(event.got for event in stores) == last.got
    assert trace.values_of(stores[0], kinds, "float32")[-1].dtype == np.float32


def test_banks_of_an_unswizzled_tile_collide(recorded: trace.Recording) -> None:
    hits = trace_plot.banks(trace_plot.addresses(trace_plot.first_of(recorded.events, "ldmatrix.x4")))
    # Rows of 64 bfloat16 are 128 bytes: all eight begin at the same bank.
    assert hits.shape == (4, 32)
    assert (hits.max(1) == 8).all()


# What thread 35 gives to each operation of programs/exchanges.cu and gets from it, as bytes of these types.
X = np.arange(64, dtype=np.float64)
EXCHANGES = {
    "shuffle": ("__shfl_xor_sync", [np.float64(35)], [np.float64(34)]),
    "ballot": ("__ballot_sync", [np.int32(1)], [np.uint32(0xAAAAAAAA)]),
    "any": ("__any_sync", [np.int32(0)], [np.int32(0)]),
    "all": ("__all_sync", [np.int32(1)], [np.int32(1)]),
    "match": ("__match_any_sync", [np.int32(3)], [np.uint32(0x88888888)]),
    "match_long": ("__match_any_sync", [np.int64(35 << 32)], [np.uint32(1 << 3)]),
    "reduce": ("__reduce_add_sync", [np.int32(-35)], [np.int32(-sum(range(32, 64)))]),
    "active": ("__activemask", [], [np.uint32(0xFFFFFFFF)]),
    "sync": ("__syncwarp", [], []),
}


@pytest.fixture(scope="module")
def exchanges(compiler: Compiler) -> list[Event]:
    library = compiler.compile(PROGRAMS / "exchanges.cu", checked=True)
    library.run("run_all_kinds", [X, np.zeros(64)], traced_block=0)
    return library.events()


@pytest.mark.parametrize("kind", EXCHANGES)
def test_every_warp_operation_shows_what_a_lane_gave_and_got(exchanges: list[Event], kind: str) -> None:
    source = (PROGRAMS / "exchanges.cu").read_text().splitlines()
    line = 1 + next(i for i, text in enumerate(source) if text.endswith(f"// {kind}"))
    operation, given, got = EXCHANGES[kind]
    here = [event for event in exchanges if event.place.endswith(f":{line}") and event.operation == operation]
    assert sorted(event.thread for event in here) == list(range(64))
    assert [(event.given, event.got) for event in here if event.thread == 35] == [
        (b"".join(x.tobytes() for x in given), b"".join(x.tobytes() for x in got))
    ]


def test_an_operation_that_hands_out_nothing_is_a_row(compiler: Compiler, capsys) -> None:
    arguments = [str(PROGRAMS / "exchanges.cu"), "run_all_kinds", "--shape", "64:float64", "64:float64"]
    trace.main([*arguments, "--thread", "40", "--build", str(compiler.folder)])
    assert capsys.readouterr().out.count("__syncwarp") == 1


def test_the_menu_counts_all_threads_unless_some_are_chosen(compiler: Compiler, capsys) -> None:
    def shuffles(*choice: str) -> list[int]:
        trace.main(["layer_norm", "--shape", "4x512:float32", *choice, "--build", str(compiler.folder)])
        rows = [row.split("│") for row in capsys.readouterr().out.splitlines()]
        return [int(row[3]) for row in rows if "__shfl" in "".join(row)]

    # A warp for each of the four rows; each lane takes 5 steps for either of two sums.
    assert (shuffles(), shuffles("--thread", "40..41")) == ([4 * 32 * 10], [2 * 10])


def test_command_prints_the_chosen_lanes_and_draws(
    compiler: Compiler, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(PROGRAMS / "counts.cu"), "run_patterns", "--shape", "264:float32", "96:float32"]
    choice = ["--thread", "4..5", "--line", "20..22", "--build", str(compiler.folder)]
    trace.main([*arguments, *choice, "--plot", str(tmp_path / "banks.png")])
    shown = capsys.readouterr().out
    assert [shown.count(f"│ {line} ") for line in (19, 20, 22, 23)] == [0, 2, 2, 0]
    assert "ldmatrix.x4" in shown
    assert (tmp_path / "banks.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_swizzled_tiles_of_attention_hit_every_bank_once(compiler: Compiler) -> None:
    options = trace.Options(
        "causal_attention", shape=("1x16x1x64:bfloat16",), line="fragments.cuh", build=compiler.folder
    )
    recording = trace.record(options)
    rows = trace_plot.addresses(trace_plot.first_of(recording.events, "ldmatrix.x4"))
    assert (trace_plot.banks(rows) == 1).all()
    assert trace_plot.banks(trace_plot.unswizzled(rows, trace.tile_row_bytes(options))).max() == 8


@pytest.mark.parametrize("op", ["layer_norm", "add_layer_norm"])
@pytest.mark.parametrize("backward", [False, True])
def test_ops_show_what_their_lanes_load(compiler: Compiler, op: str, backward: bool, capsys) -> None:
    way = ["--backward"] if backward else []
    arguments = [op, "--shape", "2x8:float32", *way, "--build", str(compiler.folder)]
    trace.main(arguments)
    line = next(line for line in capsys.readouterr().out.splitlines() if "load" in line).split("│")[1].strip()
    trace.main([*arguments, "--line", line, "--thread", "0"])
    shown = capsys.readouterr().out
    assert " load " in shown and "tensor" not in shown


def test_a_line_without_events_is_an_error(compiler: Compiler, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        trace.main(
            ["layer_norm", "--shape", "2x8:float32", "--line", "9999", "--build", str(compiler.folder)]
        )
    assert (
        capsys.readouterr().err
        == "error: no event at 9999: without --line an op lists those that have some\n"
    )


@pytest.mark.parametrize(("flag", "value"), [("--line", "a..b"), ("--shape", "16x64:float3")])
def test_mistakes_are_one_line(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        trace.main([str(PROGRAMS / "counts.cu"), "run_patterns", flag, value])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: '{value}' is not a ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("causal_attention", "--shape", "1x8x2x16:int32"), "q has dtype"),
        (("causal_attention", "--shape", "1x8x2x129:float32"), "q has head dimension 129"),
        (("causal_attention", "--shape", "1x8x4x16:float32", "--kv-heads", "3"), "k has 3 heads but q has 4"),
        (("causal_attention", "--shape", "1x8x2x16:float32", "--window", "0"), "window is 0"),
        (("causal_attention", "--shape", "8x16:float32"), "causal_attention takes one shape, BxTxHxD"),
        (
            ("layer_norm", "--shape", "8:float32"),
            "layer_norm takes one shape, ROWSxC:DTYPE: write --shape 4x512:",
        ),
        (("layer_norm", "--shape", "2x0:float32"), "x has shape"),
        (("layer_norm", "--shape", "2x8:float32", "--registers", "int8"), "registers is 'int8'"),
    ],
)
def test_what_an_op_refuses_is_one_line(arguments, message, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        trace.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
