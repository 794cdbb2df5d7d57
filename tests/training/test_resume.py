"""What a resumed or tuned run starts from, and what it must not lose: each case was wrong once."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

import bpe
import train as train_script
from bpe import Tokenizer
from model import GPT
from training import checkpoint, failures, loop, run, watch
from training.config import parse_config


def weights(directory) -> dict[str, torch.Tensor]:
    return GPT.from_pretrained(directory).state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def tuned(tiny, tmp_path):
    """Return a configuration that starts from the weights of a finished run."""
    short = dataclasses.replace(tiny, steps=6, warmup_steps=1, eval_every=3, checkpoint_every=3)
    loop.train(short)
    return dataclasses.replace(short, run=tmp_path / "tuned", init_from=tiny.run, learning_rate=1e-3)


def test_a_tuned_run_killed_before_its_first_checkpoint_starts_from_its_weights_again(tuned, tmp_path):
    whole = dataclasses.replace(tuned, run=tmp_path / "whole")
    loop.train(whole)
    loop.Trainer(tuned).prepare_run().close()  # here it is killed
    loop.train(dataclasses.replace(tuned, resume=True))
    assert same(weights(whole.run / "last"), weights(tuned.run / "last"))


def test_tuning_never_ends_with_a_best_that_is_worse_than_its_start(tuned):
    config = dataclasses.replace(tuned, learning_rate=1.0, grad_clip=0.0, warmup_steps=0)  # makes it worse
    loop.train(config)
    assert same(weights(config.run / "best"), weights(tuned.init_from / "best"))
    first = watch.read_log(config.run / "log.jsonl")[0]
    assert first["step"] == first["tokens"] == 0 and "val_loss" in first


def test_a_better_best_survives_a_return_to_an_older_checkpoint(tiny):
    short = dataclasses.replace(tiny, steps=12, warmup_steps=1, eval_every=6, checkpoint_every=4)
    loop.train(dataclasses.replace(short, keep=3))
    best = weights(tiny.run / "best")
    shutil.rmtree(tiny.run / "last")
    shutil.copytree(tiny.run / "step-00000004", tiny.run / "last")
    worse = dataclasses.replace(short, learning_rate=1e-9, final_learning_rate=1e-9, resume=True)
    loop.train(worse)
    assert same(weights(tiny.run / "best"), best)


def test_only_the_runs_own_copies_are_deleted_also_after_a_return(tiny):
    (tiny.run).mkdir()
    trainer = loop.Trainer(dataclasses.replace(tiny, keep=2, steps=60))
    trainer.prepare_run().close()
    users, file = tiny.run / "step-by-step", tiny.run / "step-notes.txt"
    taken = tiny.run / "step-00000030"
    for folder in (users, taken):
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
    file.write_text("mine")

    def save(*steps: int) -> set[str]:
        for step in steps:
            trainer.progress.step = step
            assert trainer.save()
        return {path.name for path in tiny.run.glob("step-0*")} - {taken.name}

    assert save(10, 20) == {"step-00000010", "step-00000020"}
    assert save(30, 40) == {"step-00000040"}  # 30 is the user's
    shutil.copytree(tiny.run / "step-00000040", tiny.run / "step-00000050")  # of a later, abandoned course
    trainer.progress = dataclasses.replace(trainer.progress, step=20, copies=[10, 20])
    assert save(22, 24) == {"step-00000022", "step-00000024", "step-00000040", "step-00000050"}
    assert (users / "mine.txt").exists() and (taken / "mine.txt").exists() and file.exists()


def test_data_are_judged_by_their_tokens(tiny, tmp_path, refused):
    loop.train(dataclasses.replace(tiny, steps=2))
    data = tmp_path / "moved"
    shutil.copytree(tiny.data, data)
    meta = json.loads((data / "meta.json").read_text())
    (data / "meta.json").write_text(json.dumps({**meta, "source": ["text:elsewhere.txt"]}))
    flags = ["--data", str(data), "--run", str(tiny.run), "--resume", "--steps", "3"]
    train_script.main(flags)
    tokens = np.fromfile(data / "train.bin", np.uint16)
    np.random.default_rng(0).shuffle(tokens)
    tokens.tofile(data / "train.bin")
    assert "another dataset" in refused(train_script.main, *flags[:-1], "4")


def gpt2_files(tokenizer: Tokenizer, folder) -> None:
    folder.mkdir(exist_ok=True)
    tokenizer.save_gpt2(folder)


def test_every_way_to_name_weights_finds_their_tokenizer(tiny, tmp_path, refused):
    loop.train(dataclasses.replace(tiny, steps=2))
    other = bpe.train(["another text"], vocab_size=258, special_tokens=["<|endoftext|>"], progress=False)
    plain = tmp_path / "plain"
    shutil.copytree(tiny.run / "best", plain)
    flags = ["--data", str(tiny.data), "--run", str(tmp_path / "tuned"), "--device", "cpu"]
    assert "holds no tokenizer" in refused(train_script.main, *flags, "--init-from", str(plain))
    gpt2_files(Tokenizer.load(tiny.run / "tokenizer.json"), plain)
    loop.Trainer(parse_config([*flags, "--init-from", str(plain)]))
    gpt2_files(other, plain)
    assert "another tokenizer" in refused(train_script.main, *flags, "--init-from", str(plain))
    best = str(tiny.run / "best")
    loop.Trainer(parse_config([*flags, "--init-from", best]))
    other.save(tiny.run / "tokenizer.json")
    assert "another tokenizer" in refused(train_script.main, *flags, "--init-from", best)
    assert not (tmp_path / "tuned").exists()


def test_a_source_is_encoded_with_the_tokenizer_of_the_weights(tiny, tmp_path, refused):
    loop.train(dataclasses.replace(tiny, steps=2))
    start = tmp_path / "start"
    shutil.copytree(tiny.run / "best", start)
    (tmp_path / "my.txt").write_text("<|endoftext|>".join(f"Text {i} of mine." for i in range(500)))
    flags = [
        "--init-from",
        str(start),
        "--source",
        f"text:{tmp_path / 'my.txt'}",
        "--data",
        str(tmp_path / "t"),
    ]
    sizes = "--steps 1 --batch-tokens 256 --micro-batch 8 --eval-batches 1 --device cpu"
    run_flags = [*flags, *sizes.split(), "--run", str(tmp_path / "tuned")]
    assert "holds no tokenizer" in refused(train_script.main, *run_flags)
    tokenizer = Tokenizer.load(tiny.run / "tokenizer.json")
    wide = Tokenizer(tokenizer.merges, [*tokenizer.special_tokens, *(f"<{i}>" for i in range(9))])
    gpt2_files(wide, start)
    assert "it is another model's tokenizer" in refused(train_script.main, *run_flags)
    assert not (tmp_path / "t").exists()
    gpt2_files(tokenizer, start)
    train_script.main(run_flags)
    made = Tokenizer.load(tmp_path / "t" / "tokenizer.json")
    assert (made.vocab, made.merges) == (tokenizer.vocab, tokenizer.merges)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--temperature 1e-7", "temperature is 1e-07"),
        ("--temperature inf", "temperature is inf"),
        ("--seed -1", "seed is -1"),
        (f"--seed {2**64}", "seed is 18446744073709551616"),
        ("--learning-rate inf", "learning_rate is inf"),
        ("--coherence-stories -1", "coherence_stories is -1"),
    ],
)
def test_settings_are_checked_before_anything_is_written(tiny, refused, flags, complaint):
    words = ["--data", str(tiny.data), "--run", str(tiny.run), *flags.split()]
    assert complaint in refused(train_script.main, *words)
    assert not tiny.run.exists()


def test_activations_may_be_checkpointed_from_a_resume_on(tiny):
    loop.train(dataclasses.replace(tiny, steps=2))
    model = dataclasses.replace(tiny.model, checkpoint_activations=True)
    loop.train(dataclasses.replace(tiny, model=model, steps=3, resume=True))


def test_a_run_has_one_process_at_a_time(tiny, refused):
    trainer = loop.Trainer(tiny)
    log = trainer.prepare_run()
    before = {path: path.stat().st_mtime_ns for path in tiny.run.iterdir()}
    for flag in ("--resume", "--overwrite"):
        message = refused(train_script.main, "--data", str(tiny.data), "--run", str(tiny.run), flag)
        assert f"another process is training {tiny.run}: wait for it, or choose another --run" in message
    assert {path: path.stat().st_mtime_ns for path in tiny.run.iterdir()} == before
    log.close()
    assert run.Lock().take(tiny.run)


def test_two_new_runs_in_one_directory_are_told_apart(tiny):
    first, second = run.Lock(), run.Lock()
    assert first.take(tiny.run) and second.take(tiny.run)  # neither has made the directory
    run.claim(tiny, first)
    before = {path: path.stat().st_mtime_ns for path in tiny.run.iterdir()}
    tiny.run.with_name("run.previous").mkdir()
    with pytest.raises(ValueError, match="another process is training"):
        run.claim(dataclasses.replace(tiny, steps=99), second)
    assert {path: path.stat().st_mtime_ns for path in tiny.run.iterdir()} == before


def test_overwriting_twice_deletes_nothing(tiny):
    users = tiny.run.with_name("run.previous")
    users.mkdir()
    (users / "mine.txt").write_text("mine")
    lock = run.Lock()
    for number in range(3):
        tiny.run.mkdir(exist_ok=True)
        (tiny.run / "number").write_text(str(number))
        run.claim(tiny, lock)
        lock.release()
    assert (users / "mine.txt").read_text() == "mine"
    kept = [(tiny.run.parent / f"run.previous-{n}" / "number").read_text() for n in (2, 3, 4)]
    assert kept == ["0", "1", "2"]


def test_a_damaged_best_is_named(tiny, refused):
    loop.train(dataclasses.replace(tiny, steps=2))
    (tiny.run / "best" / "model.safetensors").write_bytes(b"\0" * 100)
    flags = ["--data", str(tiny.data), "--run", str(tiny.run), "--resume", "--steps", "3"]
    assert "best/model.safetensors is damaged" in refused(train_script.main, *flags)


def test_a_run_whose_every_step_was_skipped_ends_with_an_error(tiny, monkeypatch):
    original = loop.Trainer.step

    def step(trainer, batch):
        hook = trainer.model.wte.weight.register_hook(lambda gradient: gradient * float("inf"))
        try:
            return original(trainer, batch)
        finally:
            hook.remove()

    monkeypatch.setattr(loop.Trainer, "step", step)
    config = dataclasses.replace(tiny, precision="float16", steps=10)
    with pytest.raises(failures.NothingLearned, match="all 10 steps were skipped"):
        loop.train(config)
    steps = [record for record in watch.read_log(config.run / "log.jsonl") if "loss" in record]
    assert [record["skipped"] for record in steps] == [1, 10]
    assert not (config.run / "report.json").exists()
    assert checkpoint.best_loss(config.run / "best") > 0
