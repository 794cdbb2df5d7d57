"""Watching and comparing: trackers by flag, stories, the profile, the plot of several runs, sweeps."""

import dataclasses
import json
import sys
import types

import pytest
import torch

import train as train_script
from training import loop, report, sweep, watch
from training.__main__ import main
from training.config import save_config


def test_every_evaluation_tells_a_story(tiny, capsys):
    loop.train(tiny)
    records = [r for r in report.read_log(tiny.run / "log.jsonl") if "val_loss" in r]
    assert [r["step"] for r in records] == [14, 29]
    assert all(isinstance(r["story"], str) and r["seconds"] > 0 for r in records)
    assert "after 15 steps: " in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--tensorboard", "--wandb=offline"])
def test_a_tracker_that_is_not_installed_is_named_before_anything_is_written(
    tiny, refused, monkeypatch, flag
):
    monkeypatch.setattr(watch.importlib.util, "find_spec", lambda name: None)
    package = flag.strip("-").split("=")[0]
    said = refused(train_script.main, "--data", str(tiny.data), "--run", str(tiny.run), *flag.split("="))
    assert f"pip install {package}" in said
    assert not tiny.run.exists()


def test_weights_and_biases_gets_every_scalar_by_step(tiny, monkeypatch):
    logged, options = [], {}

    class Run:
        def log(self, scalars, step):
            logged.append((step, scalars))

        def finish(self):
            logged.append("finished")

    def init(**given):
        options.update(given)
        return Run()

    fake = types.ModuleType("wandb")
    fake.init, fake.__spec__ = init, types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    loop.train(dataclasses.replace(tiny, wandb="offline"))
    assert options["mode"] == "offline"
    assert options["dir"] == str(tiny.run)
    assert logged.pop() == "finished"
    records = report.read_log(tiny.run / "log.jsonl")
    assert [step for step, _ in logged] == [r["step"] for r in records]
    assert logged[0][1]["loss"] == records[0]["loss"]
    assert "story" not in logged[-1][1]


def test_a_profile_is_a_trace_and_a_table_of_operations(tiny):
    loop.train(dataclasses.replace(tiny, steps=8, profile=True))
    events = json.loads((tiny.run / "profile" / "trace.json").read_text())["traceEvents"]
    assert any("aten::" in event.get("name", "") for event in events)
    table = (tiny.run / "profile" / "operations.txt").read_text()
    assert table.count("\n") >= 12  # ten operations under a heading
    assert "aten::" in table


def test_deterministic_is_switched_on(tiny):
    try:
        loop.Trainer(dataclasses.replace(tiny, deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_compare_draws_and_lists_runs(tiny, tmp_path, capsys):
    other = dataclasses.replace(tiny, run=tmp_path / "other", learning_rate=1e-4)
    loop.train(tiny)
    loop.train(other)
    capsys.readouterr()
    main(["compare", str(tiny.run), str(other.run), "--out", str(tmp_path / "both.png")])
    out = capsys.readouterr().out
    assert "run" in out
    assert "other" in out
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_compare_refuses_what_is_no_run(tmp_path, refused):
    assert "no log.jsonl" in refused(main, "compare", str(tmp_path))
    assert "at least one run" in refused(main, "compare")


@pytest.fixture
def preset(tiny, tmp_path) -> str:
    """The tiny configuration as a preset of one's own."""
    save_config(dataclasses.replace(tiny, run=tmp_path / "p", steps=4, eval_every=4, coherence_stories=1))
    text = (tmp_path / "p" / "config.toml").read_text()
    (tmp_path / "mine.toml").write_text(text)
    return str(tmp_path / "mine.toml")


def test_a_sweep_trains_the_grid_once_and_goes_on(preset, tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(
        loop, "train", lambda config, train=loop.train: (trained.append(config), train(config))
    )
    argv = ["sweep", preset, "--grid", "lr=1e-4,1e-2", "--seeds", "2", "--out", str(tmp_path / "sweep")]
    main(argv)
    assert [(c.learning_rate, c.seed) for c in trained] == [(1e-4, 1), (1e-4, 2), (1e-2, 1), (1e-2, 2)]
    rows = json.loads((tmp_path / "sweep" / "table.json").read_text())
    assert [row["setting"] for row in rows] == ["learning_rate=1e-2", "learning_rate=1e-4"]  # best first
    assert rows[0]["mean"] == pytest.approx(sum(rows[0]["losses"]) / 2)
    assert (tmp_path / "sweep" / "sweep.png").read_bytes().startswith(b"\x89PNG")

    unfinished = tmp_path / "sweep" / "learning_rate=1e-2" / "seed-2"
    (unfinished / "report.json").unlink()
    trained.clear()
    main(argv)
    assert [(c.run_directory, c.resume) for c in trained] == [(unfinished, True)]
    assert json.loads((tmp_path / "sweep" / "table.json").read_text()) == rows


@pytest.mark.parametrize("grid", ["lr", "lr=", "=1", "nothing=1", "lr=high"])
def test_a_grid_with_a_mistake_is_refused_before_anything_is_trained(preset, tmp_path, refused, grid):
    refused(main, "sweep", preset, "--grid", grid, "--out", str(tmp_path / "sweep"))
    assert not (tmp_path / "sweep").exists()


def test_deviation_is_over_seeds():
    assert sweep.Setting("a", [1.0, 3.0]).deviation == pytest.approx(2**0.5)
    assert sweep.Setting("a", [1.0]).deviation == 0
