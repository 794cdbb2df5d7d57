"""Watching and comparing: trackers by flag, stories, the profile, the plot of several runs, sweeps."""

import dataclasses
import json
import re
import shutil
import sys
import types

import pytest
import torch

import train as train_script
from experiments import sweep
from experiments.__main__ import main
from training import failures, loop, report, watch
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


class Refused(Exception):
    """What wandb raises."""


def fake_wandb(monkeypatch, **functions) -> None:
    """A package wandb with these functions: the real one is not among what the tests install."""
    fake = types.ModuleType("wandb")
    fake.Error, fake.__spec__ = Refused, types.SimpleNamespace()
    vars(fake).update(functions)
    monkeypatch.setitem(sys.modules, "wandb", fake)


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

    fake_wandb(monkeypatch, init=init)
    loop.train(dataclasses.replace(tiny, wandb="offline"))
    assert options["mode"] == "offline"
    assert options["dir"] == str(tiny.run)
    assert options["config"]["model"]["n_embd"] == 32
    assert logged.pop() == "finished"
    records = report.read_log(tiny.run / "log.jsonl")
    assert [step for step, _ in logged] == [r["step"] for r in records]
    assert logged[0][1]["loss"] == records[0]["loss"]
    assert "story" not in logged[-1][1]


def test_a_resumed_run_goes_on_in_its_curves_and_a_new_one_in_its_own(tiny, monkeypatch):
    given = []

    def init(**options):
        given.append(options["id"])
        return types.SimpleNamespace(log=lambda scalars, step: None, finish=lambda: None)

    fake_wandb(monkeypatch, init=init)
    short = dataclasses.replace(tiny, wandb="offline", steps=2)
    loop.train(short)
    loop.train(dataclasses.replace(short, steps=3, resume=True))
    loop.train(dataclasses.replace(short, overwrite=True))
    assert given[0] == given[1] != given[2]


def test_a_missing_login_is_told_before_anything_is_written(tiny, refused, monkeypatch):
    def login():
        raise Refused("no key\nat all.")

    fake_wandb(monkeypatch, login=login)
    said = refused(train_script.main, "--data", str(tiny.data), "--run", str(tiny.run), "--wandb", "online")
    assert "no key at all. Fix that, or give --wandb offline" in said
    assert not tiny.run.exists()


def test_weights_and_biases_itself_takes_a_run_offline(tiny):
    pytest.importorskip("wandb")
    loop.train(dataclasses.replace(tiny, wandb="offline"))
    (written,) = tiny.run.glob("wandb/offline-run-*/run-*.wandb")
    assert written.stat().st_size > 0


def test_tensorboard_itself_reads_the_points_of_a_resumed_run_once(tiny):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = dataclasses.replace(tiny, tensorboard=True)
    loop.train(config)
    state = tiny.run / "last" / "state.json"
    progress = json.loads(state.read_text())
    state.write_text(json.dumps(progress | {"step": 12}))  # as if it had been killed soon after step 12
    loop.train(dataclasses.replace(config, resume=True, steps=25))
    drawn = events.EventAccumulator(str(tiny.run / "tensorboard"))
    drawn.Reload()
    records = [r for r in report.read_log(tiny.run / "log.jsonl") if "loss" in r]
    assert [point.step for point in drawn.Scalars("loss")] == [r["step"] for r in records]
    assert [point.value for point in drawn.Scalars("loss")] == pytest.approx([r["loss"] for r in records])


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


def test_a_sweep_begins_anew_what_was_killed_before_its_first_checkpoint(preset, tmp_path):
    argv = ["sweep", preset, "--out", str(tmp_path / "sweep")]
    main(argv)
    rows = (tmp_path / "sweep" / "table.json").read_text()
    run = tmp_path / "sweep" / "preset" / "seed-1"
    for left in (["tokenizer.json"], ["tokenizer.json", "config.toml", "log.jsonl"]):
        for entry in run.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name not in left:
                entry.unlink()
        main(argv)
        assert (tmp_path / "sweep" / "table.json").read_text() == rows


def test_a_sweep_goes_on_where_a_setting_diverges(preset, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "sweep"
    argv = ["sweep", preset, "--grid", "lr=1e30,1e-3", "--seeds", "2", "--out", str(folder)]
    main(argv)
    shown = capsys.readouterr().out
    assert "not finite" in (folder / "learning_rate=1e30" / "seed-2" / "diverged.txt").read_text()
    best, worst = json.loads((folder / "table.json").read_text())
    assert best["setting"] == "learning_rate=1e-3" and best["mean"] == pytest.approx(sum(best["losses"]) / 2)
    assert worst == {"setting": "learning_rate=1e30", "mean": None, "deviation": None, "losses": [None, None]}
    assert re.search(r"learning_rate=1e30.*diverged.*2 of 2", shown)
    monkeypatch.setattr(loop, "train", lambda config: pytest.fail("trained again"))
    main(argv)
    assert json.loads((folder / "table.json").read_text()) == [best, worst]


def test_a_sweep_that_is_stopped_says_so(preset, tmp_path, monkeypatch, capsys):
    def stopped(config):
        raise failures.Interrupted(config.run_directory / "last", 7)

    monkeypatch.setattr(loop, "train", stopped)
    with pytest.raises(SystemExit) as stop:
        main(["sweep", preset, "--out", str(tmp_path / "sweep"), "--seeds", "1"])
    assert stop.value.code == 130
    assert re.fullmatch(r"stopped after step 7, saved in .*seed-1.*--resume\n", capsys.readouterr().err)


@pytest.mark.parametrize("grid", ["lr", "lr=", "=1", "nothing=1", "lr=high"])
def test_a_grid_with_a_mistake_is_refused_before_anything_is_trained(preset, tmp_path, refused, grid):
    refused(main, "sweep", preset, "--grid", grid, "--out", str(tmp_path / "sweep"))
    assert not (tmp_path / "sweep").exists()


def test_deviation_is_over_seeds():
    assert sweep.Setting("a", [1.0, 3.0]).deviation == pytest.approx(2**0.5)
    assert sweep.Setting("a", [1.0]).deviation == 0
