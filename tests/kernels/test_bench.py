"""The benchmark: what it times on a GPU (with a clock in place of one), what it compares, and the goals it knows."""

import contextlib
import doctest
import json
import types
import weakref

import pytest
import torch

from common import gpus
from kernels.workbench import bench, bench_cases, bench_gpu
from kernels.workbench.bench_cases import Case, Turn, Way


class Clock:
    """Stands in for a GPU: calls take the milliseconds that they say, flushes take 100, graphs what they captured."""

    def __init__(self):
        self.now, self.log, self.captured = 0.0, [], None

    def call(self, name: str, milliseconds: float):
        def run():
            result = Result()
            if self.captured is None:
                self.now += milliseconds
                self.log.append(name)
            else:
                self.captured.append((name, milliseconds, weakref.ref(result)))
            return result

        return run


class Result:
    """What a call returns."""


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = clock.now
            clock.log.append("event")

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return end.at - self.at

    class Graph:
        def replay(self):
            clock.now += sum(milliseconds for _, milliseconds in self.calls)
            clock.log.append("replay")

    @contextlib.contextmanager
    def capture(graph, stream):
        assert stream == "the current stream"
        clock.captured = []
        yield
        graph.calls = [(name, milliseconds) for name, milliseconds, _ in clock.captured]
        assert all(result() for _, _, result in clock.captured), (
            "a result was freed, the next one may lie there"
        )
        clock.log.append("captured")
        clock.captured = None

    class Flush:
        zero_ = staticmethod(clock.call("flush", 100))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the current stream")
    monkeypatch.setattr(torch, "empty", lambda *_, **__: Flush())
    return clock


def test_an_eager_turn_is_timed_after_a_flush_without_its_context(clock):
    @contextlib.contextmanager
    def choosing():
        clock.now += 7
        clock.log.append("choose")
        yield

    turns = {"ours": Turn(clock.call("ours", 2)), "peer": Turn(clock.call("peer", 3), choosing)}
    assert bench_gpu.eager_seconds(turns, repeat=3) == pytest.approx({"ours": 2e-3, "peer": 3e-3})
    warm_up = ["ours"] * bench_gpu.WARM_UP + ["choose", "peer"] * bench_gpu.WARM_UP
    ours = ["flush", "event", "ours", "event"]
    assert clock.log == warm_up + [*ours, "choose", "flush", "event", "peer", "event"] * 3


def test_a_graph_holds_every_turn_once_and_is_captured_when_all_are_warm(clock):
    turns = {"ours": [Turn(clock.call(f"ours {i}", 2 + i)) for i in range(3)]}
    assert bench_gpu.graph_seconds(turns, repeat=2) == pytest.approx({"ours": 3e-3})  # (2 + 3 + 4) / 3
    warm_up = [f"ours {i}" for i in range(3) for _ in range(bench_gpu.WARM_UP)]
    assert clock.log == [*warm_up, "captured", "replay", *["event", "replay", "event"] * 2]


def test_what_cannot_be_captured_is_left_out_and_said(clock, capsys):
    def cannot():
        raise RuntimeError("not while a stream is captured")

    turns = {"ours": [Turn(clock.call("ours", 2))], "peer": [Turn(cannot)]}
    assert bench_gpu.graph_seconds(turns, repeat=1) == pytest.approx({"ours": 2e-3})
    assert capsys.readouterr().err == "no CUDA graph of peer (not while a stream is captured)\n"
    assert bench_gpu.graph_seconds({"ours": [Turn(cannot)]}, repeat=1) == {}


def test_the_median_counts(clock):
    times = iter([1] * bench_gpu.WARM_UP + [9, 1, 2])

    def call():
        clock.now += next(times)

    assert bench_gpu.eager_seconds({"ours": Turn(call)}, repeat=3) == pytest.approx({"ours": 2e-3})


def a_case(ways, dtype=torch.float32) -> Case:
    inputs = bench_cases.random(((8, 4),), "cpu", dtype)
    return Case("double", (8, 4), {name: Way(call) for name, call in ways.items()}, inputs, 1.0, 2.0, "GB/s")


def test_results_that_disagree_are_named():
    def wrong_gradient(x):
        return 2 * x.detach() + (x - x.detach())

    right = {"ours": lambda x: 2 * x, "reference": lambda x: x + x}
    assert bench_cases.disagreements(a_case(right)) == {}
    for wrong in (lambda x: 2.1 * x, wrong_gradient, lambda x: 2 * x * float("nan")):
        (said,) = bench_cases.disagreements(a_case({**right, "peer": wrong})).values()
        assert "peer differs from reference" in said
    without = {"ours": lambda x: 3 * x, "peer": lambda x: 2 * x}
    assert "ours differs from peer" in bench_cases.disagreements(a_case(without))["ours"]


def test_a_case_that_disagrees_is_not_measured(monkeypatch, tmp_path, capsys):
    case = a_case({"ours": lambda x: 2 * x, "reference": lambda x: 3 * x})
    monkeypatch.setattr(bench_cases, "cases", lambda *_: [case])
    with pytest.raises(ValueError, match="not measured, or not all of it: double"):
        bench.main(["--device", "cpu", "--json", str(tmp_path / "b.json")])
    assert '"rows": []' in (tmp_path / "b.json").read_text()


def test_a_peer_that_disagrees_is_left_out_and_said(monkeypatch, tmp_path, capsys):
    ways = {"ours": lambda x: 2 * x, "reference": lambda x: x + x, "peer": lambda x: 3 * x}
    monkeypatch.setattr(bench_cases, "cases", lambda *_: [a_case(ways)])
    bench.main(["--device", "cpu", "--repeat", "1", "--json", str(tmp_path / "b.json")])
    assert "left out: double (8, 4): peer differs from reference by 0.5" in capsys.readouterr().err
    peers = {row["peer"] for row in json.loads((tmp_path / "b.json").read_text())["rows"]}
    assert peers == {"reference"}


def test_where_ours_cannot_run_the_other_cases_are_measured(monkeypatch, tmp_path):
    right = a_case({"ours": lambda x: 2 * x, "reference": lambda x: x + x})
    monkeypatch.setattr(bench_cases, "cases", lambda *_: [right.without(["ours"]), right])
    with pytest.raises(ValueError, match=r"not all of it: double \(8, 4\): ours fails"):
        bench.main(["--device", "cpu", "--repeat", "1", "--json", str(tmp_path / "b.json")])
    assert json.loads((tmp_path / "b.json").read_text())["rows"]


def test_rows_outlive_the_fault_of_a_later_case(monkeypatch, tmp_path):
    def two_cases(*_):
        yield a_case({"ours": lambda x: 2 * x, "reference": lambda x: 2 * x})
        raise RuntimeError("out of memory")

    monkeypatch.setattr(bench_cases, "cases", two_cases)
    with pytest.raises(RuntimeError, match="out of memory"):
        bench.main(["--device", "cpu", "--repeat", "1", "--json", str(tmp_path / "b.json")])
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert [row["name"] for row in rows[::2]] == [f"double (8, 4) float32 {part}" for part in bench.PARTS]


def test_a_peer_that_cannot_run_is_left_out_and_said(monkeypatch, capsys):
    def cannot(q, k, v):
        raise RuntimeError("not on this machine\nand a trace")

    monkeypatch.setattr(bench_cases.reference, "causal_attention", cannot)
    (case,) = bench_cases.cases("cpu", torch.float32, "attention", tiny=True)
    assert "reference" not in case.ways and "SDPA math" in case.ways
    assert "without reference (not on this machine)\n" in capsys.readouterr().err


@pytest.mark.parametrize("part", bench.PARTS)
def test_each_part_does_its_own_work(part):
    counts = {"forward": 0, "backward": 0}

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            counts["forward"] += 1
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            counts["backward"] += 1
            return 2 * grad

    case = a_case({"ours": Double.apply})
    turn = bench.turn(part, case.ways["ours"], case.inputs)
    counts.update(forward=0, backward=0)
    turn(), turn()
    assert counts == {"forward": 2 * ("forward" in part), "backward": 2 * ("backward" in part)}


def test_on_a_gpu_each_part_is_measured_eagerly_and_as_a_graph_beside_the_datasheet(monkeypatch):
    replayed = []

    def as_a_graph(turns, repeat):
        replayed.append({name: len(each) for name, each in turns.items()})
        return {name: 1e-3 for name, each in turns.items() if all(turn() is not None for turn in each)}

    monkeypatch.setattr(bench_gpu, "eager_seconds", lambda turns, repeat: dict.fromkeys(turns, 2e-3))
    monkeypatch.setattr(bench_gpu, "graph_seconds", as_a_graph)
    monkeypatch.setattr(bench_gpu, "L2_BYTES", 3 * 8 * 4 * 4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    case = a_case({"ours": lambda x: 2 * x, "peer": lambda x: x + x, "reference": lambda x: 2 * x})
    case.ways["reference"] = Way(lambda x: 2 * x, graphed=False)
    options = types.SimpleNamespace(resolved_device="cuda", resolved_dtype="float32", repeat=1)
    rows = bench.measure(case, options)
    assert replayed == [{"ours": 4, "peer": 4}] * 3  # sets of inputs: what fills the cache, and one
    graphs = [row for row in rows if row.name.endswith(", graph")]
    assert {row.name.removesuffix(", graph") for row in graphs} == {row.name for row in rows} - {
        row.name for row in graphs
    }
    forward = [row for row in graphs if row.name == "double (8, 4) float32 forward, graph"]
    assert [(row.peer, row.ours, row.unit) for row in forward] == [
        ("peer", 1000.0, "µs"),
        ("peer", 1000.0, "GB/s"),
        ("datasheet", 1000.0, "GB/s"),
    ]
    assert forward[-1].ratio == pytest.approx(1000 / 3350)


def test_temporary_memory_leaves_out_what_is_returned():
    x, way = torch.randn(1000, requires_grad=True), Way(lambda x: (x.exp() * 2).sum())
    # exp keeps its result for the backward; then there are the product, and in the backward the gradient of each
    assert 2 * x.nbytes <= bench.temporary_bytes(way, [x]) < 4 * x.nbytes


def goals(op: str, shape: tuple[int, ...]) -> dict:
    """The goals of a case by part and peer."""
    start = f"{op} {shape} bfloat16 "
    found = {(name, peer): goal for name, peer, goal in bench.goals() if name.startswith(start)}
    return {(name.removeprefix(start), peer): goal for (name, peer), goal in found.items()}


def test_the_goals_are_those_of_the_page():
    both = {("forward", "best"): 1.2, ("backward", "best"): 1.4}
    for size, share in ((384, 0.6), (768, 0.7), (1024, 0.75)):
        assert goals("layer_norm", (32768, size)) == {**both, ("forward", "datasheet"): share}
    assert goals("add_layer_norm", (32768, 384)) == {("forward + backward", "best"): 1.5}
    short = {("forward", "SDPA flash"): 1.2, ("backward", "SDPA flash"): 1.5}
    assert goals("causal_attention", (1024, 128, 6, 64)) == short
    long = {("forward", "SDPA flash"): 1.0, ("backward", "SDPA flash"): 0.9}
    cudnn = {("forward", "SDPA cuDNN"): 0.8, ("backward", "SDPA cuDNN"): 0.8}
    assert goals("causal_attention", (4, 4096, 12, 64)) == {**long, **cudnn}
    assert goals("causal_attention", (4, 4096, 6, 128)) == long
    case = bench_cases.cases("cpu", torch.bfloat16, "attention", tiny=True)
    assert bench._goal(next(case), "forward", "SDPA flash") is None  # they are for GPUs


@pytest.mark.parametrize("module", [bench_gpu, gpus])
def test_examples_in_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
