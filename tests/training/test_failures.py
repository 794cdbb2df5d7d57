"""When it goes wrong: skipped steps, full disks and memories, missing data, and a line that says what to do."""

import dataclasses
import errno
import json
import math
import os
import shutil

import pytest
import torch
from safetensors import SafetensorError

from model import GPT
from training import checkpoint, failures, loop, watch
from training.optimizer import LossScale


def poison(monkeypatch, steps: range) -> None:
    """Make one gradient infinite in those steps."""
    original = loop.Trainer.step

    def step(trainer, batch):
        def spoil(gradient):
            return gradient.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(float("inf")))

        if trainer.progress.step not in steps:
            return original(trainer, batch)
        hook = trainer.model.wte.weight.register_hook(spoil)
        try:
            return original(trainer, batch)
        finally:
            hook.remove()

    monkeypatch.setattr(loop.Trainer, "step", step)


def test_a_step_whose_gradient_is_not_finite_moves_nothing_and_is_counted(tiny, monkeypatch):
    poison(monkeypatch, range(3))
    trainer = loop.Trainer(tiny)
    before = [p.detach().clone() for p in trainer.parameters]
    for _ in range(3):
        trainer.step(next(trainer.batches))
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.parameters, strict=True))
    assert trainer.progress.skipped == 3
    trainer.step(next(trainer.batches))
    assert not torch.equal(before[0], trainer.parameters[0])
    assert trainer.skips_in_a_row == 0


def test_too_many_in_a_row_stop_the_run_with_step_text_and_checkpoint(tiny, monkeypatch):
    poison(monkeypatch, range(12, 100))
    with pytest.raises(failures.Diverged) as stop:
        loop.train(dataclasses.replace(tiny, max_skips=4))
    text = str(stop.value)
    assert "in 4 steps in a row, up to step 15, whose batch begins " in text
    assert f"the last good checkpoint is {tiny.run / 'last'}, of step 10" in text
    state = json.loads((tiny.run / "last" / "state.json").read_text())
    assert state["skipped"] == 0


def explode(monkeypatch, after: int) -> None:
    """Make the weights infinite in the step after `after` of them."""
    original = loop.Trainer.step

    def step(trainer, batch):
        explodes = trainer.progress.step == after
        result = original(trainer, batch)
        if explodes:
            trainer.model.wte.weight.data.fill_(float("inf"))
        return result

    monkeypatch.setattr(loop.Trainer, "step", step)


def test_damaged_weights_replace_no_good_checkpoint(tiny, monkeypatch):
    explode(monkeypatch, after=12)
    with pytest.raises(
        failures.Diverged, match=r"in 10 steps in a row.*, of step 12\. Lower --learning-rate"
    ):
        loop.train(dataclasses.replace(tiny, checkpoint_every=1, keep=2))
    assert all(torch.isfinite(p).all() for p in GPT.from_pretrained(tiny.run / "last").parameters())
    stories = [r["story"] for r in watch.read_log(tiny.run / "log.jsonl") if "story" in r]
    assert stories == ["(none: the loss is not a number)"]


def test_a_run_that_ends_with_damaged_weights_says_so(tiny, monkeypatch):
    explode(monkeypatch, after=28)
    with pytest.raises(failures.Damaged, match=r"after 30 steps: the weights are damaged.*of step 20"):
        loop.train(tiny)


def test_the_loss_scale_moves_as_torchs():
    finite = [True, True, False, True, False, False, True, True, True, True, True]
    ours = LossScale(active=True, value=8.0, growth_interval=2)
    theirs = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    for good in finite:
        theirs.scale(torch.ones(()))  # makes it begin
        parameter.grad = torch.tensor([1.0 if good else float("inf")])
        theirs.step(optimizer)
        theirs.update()
        ours.update(good)
        assert ours.value == theirs.get_scale()


def test_float16_trains_and_goes_on_bit_for_bit_with_its_scale(tiny, tmp_path):
    config = dataclasses.replace(tiny, precision="float16", schedule="constant")
    whole = loop.train(config)
    losses = [r["loss"] for r in watch.read_log(config.run / "log.jsonl") if "loss" in r]
    assert losses[-1] < losses[0] - 1
    parted = dataclasses.replace(config, run=tmp_path / "parted", steps=15)
    loop.train(parted)
    assert json.loads((parted.run / "last" / "state.json").read_text())["loss_scale"]["good_steps"] == 15
    again = loop.train(dataclasses.replace(parted, steps=30, resume=True))
    assert again.val_loss == whole.val_loss


def test_an_overflow_halves_the_scale_and_does_not_count(tiny, monkeypatch):
    poison(monkeypatch, range(12))
    trainer = loop.Trainer(dataclasses.replace(tiny, precision="float16"))
    for _ in range(12):
        trainer.step(next(trainer.batches))
    assert trainer.scale.value == 65536 / 2**12
    assert trainer.skips_in_a_row == 0


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "lower --micro-batch to 4"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "lower --micro-batch to 4"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x/log.jsonl"),
            "disk is full .runs/x/log.jsonl",
        ),
    ],
)
def test_what_the_system_says_becomes_advice(tiny, monkeypatch, error, advice):
    original = loop.Trainer.step

    def failing(trainer, batch):
        if trainer.progress.step == 11:
            raise error
        return original(trainer, batch)

    monkeypatch.setattr(loop.Trainer, "step", failing)
    with pytest.raises((ValueError, OSError), match=advice):
        loop.train(tiny)
    assert json.loads((tiny.run / "last" / "state.json").read_text())["step"] == 10


def test_a_checkpoint_that_the_disk_has_no_room_for_leaves_the_last_one(tiny, monkeypatch):
    original = checkpoint.save_file

    def full(tensors, path, **more):
        if "last" in str(path) and (tiny.run / "last").exists():
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        original(tensors, path, **more)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match=r"disk is full.*of step 10: make room, then --resume"):
        loop.train(tiny)
    assert {p.name for p in tiny.run.iterdir() if p.name.startswith(".")} == set()


def test_a_run_whose_data_vanishes_saves_itself(tiny, monkeypatch):
    original = loop.prefetch.__next__

    def vanishing(feed):
        if feed.state_dict()["batch"] == 13:
            raise OSError("train.bin: the file is gone")
        return original(feed)

    monkeypatch.setattr(loop.prefetch, "__next__", vanishing)
    with pytest.raises(OSError, match=r"no batch for step 13 .train.bin: the file is gone.*of step 13"):
        loop.train(tiny)
    monkeypatch.undo()
    loop.train(dataclasses.replace(tiny, resume=True))


@pytest.mark.parametrize("split", ["val.bin", "train.bin"])
def test_a_run_whose_data_vanishes_before_an_evaluation_saves_itself(tiny, tmp_path, split):
    data = tmp_path / "data"
    shutil.copytree(tiny.data, data)
    trainer = loop.Trainer(dataclasses.replace(tiny, data=data))
    log = trainer.prepare_run()
    (data / split).unlink()
    with pytest.raises(OSError, match=rf"No such file.*{split}.*of step 0: restore the data"):
        trainer.evaluate(log, None)
    log.close()


def test_a_loss_that_is_no_number_is_not_the_best_and_not_the_last_word(tiny, monkeypatch):
    losses = iter([5.0, 5.0, math.nan, math.nan, 4.0, 4.0, 4.5, 4.5])
    trainer = loop.Trainer(tiny)
    log, bar = trainer.prepare_run(), watch.Bar(30, 0, shown=False)
    monkeypatch.setattr(
        trainer.objective,
        "estimate",
        lambda model, batches, val_only: {"train_loss": next(losses), "val_loss": next(losses)},
    )
    best = []
    for step in range(4):
        trainer.progress.step = step + 1
        trainer.evaluate(log, bar)
        best.append(trainer.progress.best_val_loss)
    log.close()
    assert best == [5.0, 5.0, 4.0, 4.0]


def test_a_training_file_cut_short_under_a_run_is_noticed(tiny, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny.data, data)
    trainer = loop.Trainer(dataclasses.replace(tiny, data=data))
    trainer.prepare_run().close()
    trainer.next_batch(trainer.batches)
    os.truncate(data / "train.bin", 100)
    with pytest.raises(
        OSError, match=r"train.bin has become shorter.*of step 0: restore the data, then --resume"
    ):
        trainer.next_batch(trainer.batches)
    shutil.rmtree(data)
    with pytest.raises(OSError, match=r"No such file.*train.bin"):
        trainer.next_batch(trainer.batches)


def test_memory_advice_at_the_smallest_pass_is_another():
    with pytest.raises(ValueError, match="--checkpoint-activations"), failures.explained(None, 1):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_fault_of_the_program_keeps_its_own_words():
    with pytest.raises(RuntimeError, match="shapes"), failures.explained(None, 1):
        raise RuntimeError("shapes differ")
