"""The one layout of all benchmark results."""

import json

import pytest

from common import bench


def test_a_ratio_above_one_means_ours_is_better():
    assert bench.Row("encode", 30.0, "MB/s", "peer", 10.0).ratio == pytest.approx(3)
    assert bench.Row("layer_norm", 30.0, "µs", "peer", 90.0, less_is_better=True).ratio == pytest.approx(3)
    assert bench.Row("alone", 30.0, "µs").ratio is None


def test_the_report_is_a_table_and_json(tmp_path, capsys):
    rows = [bench.Row("encode gpt2", 30.0, "MB/s", "tiktoken", 10.0), bench.Row("alone", 1.5, "s")]
    bench.report("encode", rows, tmp_path / "r.json")
    assert "encode gpt2" in capsys.readouterr().out
    written = json.loads((tmp_path / "r.json").read_text())
    assert set(written) == {"benchmark", "machine", "date", "rows"}
    assert written["rows"][0] == {
        "name": "encode gpt2", "ours": 30.0, "unit": "MB/s", "peer": "tiktoken", "peer_value": 10.0, "ratio": 3.0,
    }  # fmt: skip


def test_in_a_folder_the_file_is_named_after_benchmark_and_processor(tmp_path):
    bench.write("train with busy loops", [bench.Row("alone", 1.5, "s")], tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("train_with_busy_loops-")
    assert json.loads(path.read_text())["rows"][0]["name"] == "alone"


def test_calls_take_turns():
    order: list[str] = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    assert set(bench.medians(calls, repeat=2, warmup=1)) == {"a", "b"}
    assert order == ["a", "b"] * 3


def test_calls_can_follow_one_of_their_own_kind():
    order: list[str] = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    bench.medians(calls, repeat=2, warmup=0, settle=1)
    assert order == ["a", "a", "b", "b"] * 2
