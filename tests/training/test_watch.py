"""Watching a run: trackers by flag, stories, the profile."""

import dataclasses
import json
import re
import sys
import types

import pytest
import torch

import train as train_script
from training import loop, watch


def test_every_evaluation_tells_a_story(tiny, capsys):
    loop.train(tiny)
    records = [r for r in watch.read_log(tiny.run / "log.jsonl") if "val_loss" in r]
    assert [r["step"] for r in records] == [14, 29]
    assert all(isinstance(r["story"], str) and r["seconds"] > 0 for r in records)
    assert "step 15: train loss " in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--tensorboard", "--wandb=offline"])
def test_a_tracker_that_is_not_installed_is_named_before_anything_is_written(
    tiny, refused, monkeypatch, flag
):
    monkeypatch.setattr(watch.importlib.util, "find_spec", lambda name: None)
    package = flag.strip("-").split("=")[0]
    message = refused(train_script.main, "--data", str(tiny.data), "--run", str(tiny.run), *flag.split("="))
    assert f"pip install {package}" in message
    assert not tiny.run.exists()


class Refused(Exception):
    """What wandb raises."""


def fake_wandb(monkeypatch, **functions) -> None:
    """Return a package wandb with these functions: the real one is not among what the tests install."""
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
    records = watch.read_log(tiny.run / "log.jsonl")
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
    message = refused(
        train_script.main, "--data", str(tiny.data), "--run", str(tiny.run), "--wandb", "online"
    )
    assert "no key at all. Fix that, or give --wandb offline" in message
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
    records = [r for r in watch.read_log(tiny.run / "log.jsonl") if "loss" in r]
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


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_bar_fits_the_terminal_with_the_loss_and_the_time_left_first(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes standard error for a terminal
    bar = watch.Bar(2800, 0)
    figures = {"loss": 0.3912, "learning_rate": 0.01, "gradient_norm": 0.25, "tokens_per_second": 25_000.0}
    with bar:
        bar.show(1400, **figures, mfu=0.21, memory_mb=512.0)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    plain = next(line.strip() for line in re.split("[\r\n]", plain) if "1400/2800" in line)
    assert len(plain) <= width and "left loss 0.391" in plain
    assert "25,000 tok/s" in plain and plain.endswith("512 MB") == (width == 200)


def test_a_redirected_run_has_a_line_for_each_evaluation(capsys):
    watch.Bar(10, 0).print_evaluation(5, {"train_loss": 1.25, "val_loss": 1.5}, ["Once."])
    assert capsys.readouterr().out == "step 5: train loss 1.250, val loss 1.500\nOnce.\n\n"
    watch.Bar(10, 0, shown=False).print_evaluation(5, {"val_loss": 1.5}, [])
    assert capsys.readouterr().out == ""


def test_a_warm_up_longer_than_the_run_is_mentioned(tiny, capsys):
    loop.train(dataclasses.replace(tiny, steps=4, warmup_steps=50, eval_every=4, checkpoint_every=4))
    assert "longer than the run: --warmup-steps 0" in " ".join(capsys.readouterr().err.split())
    loop.train(
        dataclasses.replace(
            tiny, run=tiny.run / "other", steps=4, warmup_steps=4, eval_every=4, checkpoint_every=4
        )
    )
    assert "warm-up" not in capsys.readouterr().err
