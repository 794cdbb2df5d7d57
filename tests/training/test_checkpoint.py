"""Checkpoints: when they are made, how many stay, what a kill leaves, and starting from other weights."""

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch

import bpe
import train as train_script
from model import GPT
from training import loop
from training.config import parse_config


def weights(directory) -> dict[str, torch.Tensor]:
    return GPT.from_pretrained(directory).state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_checkpoint_is_made_when_the_minutes_have_passed(tiny, monkeypatch):
    saved = []
    clock = iter(range(0, 10_000, 20))  # every look at the clock is 20 seconds after the one before
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    config = dataclasses.replace(tiny, steps=4, checkpoint_every=100, eval_every=100)
    trainer = loop.Trainer(dataclasses.replace(config, checkpoint_minutes=0.7))
    for _ in range(3):
        trainer.progress.step += 1
        stop, due = trainer.save_due(False)
        assert not stop
        if due:
            saved.append(trainer.progress.step)
    assert saved == [3]  # 60 seconds after the beginning; 40 were not enough


def test_the_newest_checkpoints_are_kept(tiny):
    loop.train(dataclasses.replace(tiny, keep=2, checkpoint_every=7))
    kept = sorted(path.name for path in tiny.run.glob("step-*"))
    assert kept == ["step-00000028", "step-00000030"]
    assert same(weights(tiny.run / kept[-1]), weights(tiny.run / "last"))
    state = json.loads((tiny.run / kept[0] / "state.json").read_text())
    assert state["step"] == 28


def test_a_run_killed_before_its_first_checkpoint_begins_at_the_beginning(tiny, tmp_path):
    loop.train(tiny)
    other = dataclasses.replace(tiny, run=tmp_path / "other")
    loop.Trainer(other).prepare_run().close()
    loop.train(dataclasses.replace(other, resume=True))
    assert same(weights(tiny.run / "last"), weights(other.run / "last"))


def test_a_fine_tuning_starts_from_the_best_weights_of_a_run(tiny, tmp_path, refused):
    loop.train(tiny)
    flags = ["--data", str(tiny.data), "--run", str(tmp_path / "tuned"), "--init-from", str(tiny.run)]
    config = parse_config([*flags, "--device", "cpu"])
    assert (config.model.n_layer, config.model.n_embd, config.model.block_size) == (2, 32, 32)
    assert same(loop.Trainer(config).model.state_dict(), weights(tiny.run / "best"))
    assert "c_attn" in refused(train_script.main, *flags, "--n-embd", "64")
    text = json.loads((tiny.run / "tokenizer.json").read_text())
    (tiny.run / "tokenizer.json").write_text(json.dumps(text))  # the same, laid out otherwise
    loop.Trainer(config)
    bpe.train(["another text"], vocab_size=258, special_tokens=["<|endoftext|>"], progress=False).save(
        tiny.run / "tokenizer.json"
    )
    assert "another tokenizer" in refused(train_script.main, *flags)
    assert not (tmp_path / "tuned").exists()


def test_a_fine_tuning_may_crop_the_context_and_nothing_that_misreads_the_weights(tiny, tmp_path, refused):
    gpt = GPT(tiny.model)
    gpt.save_pretrained(tmp_path / "start", tokenizer=tiny.data / "tokenizer.json")
    flags = ["--data", str(tiny.data), "--run", str(tiny.run), "--init-from", str(tmp_path / "start")]
    flags += ["--device", "cpu", "--steps", "2", "--batch-tokens", "512", "--micro-batch", "8"]
    config = parse_config([*flags, "--block-size", "16"])
    cropped = {**gpt.state_dict(), "wpe.weight": gpt.wpe.weight[:16]}
    assert same(loop.Trainer(config).model.state_dict(), cropped)
    assert "know 32 positions: choose a block_size of at most that, not 64" in refused(
        train_script.main, *flags, "--block-size", "64"
    )
    assert "trained with 2: leave n_head out" in refused(train_script.main, *flags, "--n-head", "1")
    assert not tiny.run.exists()
    train_script.main([*flags, "--block-size", "16", "--eval-batches", "1", "--coherence-stories", "1"])
    assert GPT.from_pretrained(tiny.run / "last").config.block_size == 16


def test_one_command_prepares_a_text_and_tunes_on_it(tiny, tmp_path, monkeypatch):
    loop.train(tiny)
    (tmp_path / "my.txt").write_text(
        "<|endoftext|>".join(f"Text {i} of mine, which is short." for i in range(500))
    )
    monkeypatch.chdir(tmp_path)
    sizes = "--steps 3 --batch-tokens 256 --micro-batch 8 --eval-batches 1 --device cpu"
    train_script.main(
        ["--init-from", str(tiny.run), "--source", "text:my.txt", "--run", "tuned", *sizes.split()]
    )
    assert json.loads((tmp_path / "tuned" / "report.json").read_text())["tokens"] == 3 * 256
    assert (tmp_path / "tuned" / "tokenizer.json").read_bytes() == (tiny.run / "tokenizer.json").read_bytes()


@pytest.mark.slow
def test_twenty_runs_killed_at_random_moments_lose_nothing(tiny, tmp_path):
    config = dataclasses.replace(tiny, steps=30, checkpoint_every=2, eval_every=10)
    start = time.monotonic()
    loop.train(config)
    duration, moments = time.monotonic() - start, random.Random(0)
    expected, fork = weights(config.run / "last"), multiprocessing.get_context("fork")
    killed = 0
    for number in range(60):
        killed_run = dataclasses.replace(config, run=tmp_path / f"killed-{number}")
        child = fork.Process(target=loop.train, args=(killed_run,))
        child.start()
        while not (killed_run.run / "config.toml").exists():
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.7 * duration))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        killed += child.exitcode == -signal.SIGKILL  # else it had finished already
        loop.train(dataclasses.replace(killed_run, resume=True))
        assert same(weights(killed_run.run / "last"), expected), f"run {number}"
        if killed == 20:
            return
    pytest.fail(f"only {killed} runs could be killed in time")
