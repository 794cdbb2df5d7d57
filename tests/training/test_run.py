"""A run from beginning to end: what it writes, that it learns, that a stopped run resumes exactly."""

import dataclasses
import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch

import bpe
import kernels
import train as train_script
from evaluation.losses import full_loss
from kernels import dispatch
from model import GPT
from training import config as cfg
from training import failures, loop, watch
from training.checkpoint import load_state, save_state
from training.config import TrainConfig


def weights(run) -> dict[str, torch.Tensor]:
    return GPT.from_pretrained(run / "last").state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def interrupt_at(step: int, monkeypatch) -> None:
    """Send this process SIGINT during the given step."""
    original = loop.Trainer.step

    def interrupted(trainer, batch):
        if trainer.progress.step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return original(trainer, batch)

    monkeypatch.setattr(loop.Trainer, "step", interrupted)


def test_a_run_learns_and_writes_what_it_promises(tiny):
    result = loop.train(tiny)
    names = {path.name for path in tiny.run.iterdir()}
    assert names == {"config.toml", "tokenizer.json", "log.jsonl", "loss.png", "best", "last", "report.json"}
    assert {p.name for p in (tiny.run / "best").iterdir()} == {"config.json", "model.safetensors"}
    saved = json.loads((tiny.run / "report.json").read_text())
    promised = "val_loss bits_per_byte coherence tokens seconds tokens_per_second peak_memory_mb stories"
    assert set(promised.split()) <= set(saved)
    assert saved["tokens"] == 30 * 512
    assert len(saved["stories"]) == 3
    assert 0 <= saved["coherence"] <= 1
    records = watch.read_log(tiny.run / "log.jsonl")
    losses = [record["loss"] for record in records if "loss" in record]
    # At first every token is as likely as any other.
    assert losses[0] == pytest.approx(math.log(384), abs=0.3)
    assert result.val_loss < losses[0] - 1


def test_a_stopped_run_goes_on_bit_for_bit(tiny, tmp_path, monkeypatch):
    loop.train(tiny)
    whole, stopped = tiny.run, dataclasses.replace(tiny, run=tmp_path / "stopped")
    with monkeypatch.context() as patch:
        interrupt_at(13, patch)
        with pytest.raises(failures.Interrupted, match="stopped after step 14"):
            loop.train(stopped)
    loop.train(dataclasses.replace(stopped, resume=True))
    assert same(weights(whole), weights(stopped.run))
    kept = ("step", "loss", "val_loss", "gradient_norm")
    logs = [
        [{k: r[k] for k in kept if k in r} for r in watch.read_log(run / "log.jsonl")]
        for run in (whole, stopped.run)
    ]
    assert logs[0] == logs[1]


def test_ctrl_c_says_where_the_run_is_saved(tiny, monkeypatch, capsys):
    interrupt_at(3, monkeypatch)
    monkeypatch.setattr("training.config.parse_config", lambda argv, **_: tiny)
    with pytest.raises(SystemExit) as stop:
        train_script.main([])
    assert stop.value.code == 130
    assert f"stopped after step 4, saved in {tiny.run / 'last'}" in capsys.readouterr().err


def test_accumulated_micro_batches_equal_one_batch(tiny, tmp_path):
    float32 = dataclasses.replace(
        tiny, model=dataclasses.replace(tiny.model, dropout=0.0), precision="float32", steps=5, grad_clip=0.0
    )
    one = dataclasses.replace(float32, run=tmp_path / "one", micro_batch=16)
    four = dataclasses.replace(float32, run=tmp_path / "four", micro_batch=4)
    losses = []
    for config in (one, four):
        trainer = loop.Trainer(config)
        assert trainer.batching.accumulation == 16 // config.micro_batch
        losses.append([trainer.step(next(trainer.batches)).loss.item() for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_whole_file_is_evaluated_token_by_token(tiny):
    trainer = loop.Trainer(tiny)
    ids = torch.from_numpy(trainer.objective.val_file.tokens[:100].astype("int64"))
    trainer.model.eval()
    total, block = 0.0, tiny.model.block_size
    for start in range(0, 99, block):
        x, y = ids[start : min(start + block, 99)], ids[start + 1 : min(start + block, 99) + 1]
        logits, _ = trainer.model(x[None])
        total -= logits[0].log_softmax(-1).gather(1, y[:, None]).sum().item()
    assert full_loss(trainer.model, trainer.objective.val_file, "random", 2, limit=100) == pytest.approx(
        total / 99, rel=1e-5
    )


@pytest.mark.parametrize("kind", ["fused", "ours", "muon"])
def test_a_saved_state_comes_back_whole(tiny, tmp_path, kind):
    first = loop.Trainer(dataclasses.replace(tiny, optimizer=kind))
    for _ in range(3):
        first.step(next(first.batches))
    save_state(tmp_path / "state", first.model, first.optimizers, first.progress)
    expected = torch.rand(5)
    second = loop.Trainer(dataclasses.replace(tiny, optimizer=kind, seed=99))
    load_state(tmp_path / "state", second.model, second.optimizers)
    assert torch.equal(torch.rand(5), expected)
    assert same(first.model.state_dict(), second.model.state_dict())
    for one, two in zip(first.optimizers, second.optimizers, strict=True):
        states = [[each.state[p] for g in each.param_groups for p in g["params"]] for each in (one, two)]
        assert all(same(mine, other) for mine, other in zip(*states, strict=True))


def snapshot(run) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def flags(config: TrainConfig, *more: str) -> list[str]:
    return ["--data", str(config.data), "--run", str(config.run), *more]


def test_what_is_there_is_not_overwritten(tiny, refused):
    tiny.run.mkdir()
    (tiny.run / "report.json").write_text("{}")
    before = snapshot(tiny.run)
    assert "already holds a run" in refused(train_script.main, *flags(tiny))
    assert snapshot(tiny.run) == before


def test_overwrite_sets_the_old_run_aside(tiny):
    tiny.run.mkdir()
    (tiny.run / "report.json").write_text("old")
    loop.train(dataclasses.replace(tiny, overwrite=True, steps=1))
    assert tiny.run.with_name("run.previous").joinpath("report.json").read_text() == "old"


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--preset", "quickstat"], "no preset 'quickstat': choose from"),
        (["--n-layerz", "3"], "--n-layerz"),
        (["--steps", "many"], "--steps"),
        (["--vocab-size", "300"], "vocab_size 300 is smaller than the vocabulary"),
        (["--batches", "random", "--block-size", "100000", "--batch-tokens", "1600000"], "block"),
        (["--device", "cuda:77"], "cuda:77"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--temperature", "-1"], "temperature is -1"),
        (["--resume"], "holds no run to resume"),
        (["--data", "no/such/place"], "no/such/place"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tiny, refused, more, complaint):
    assert complaint in refused(train_script.main, *flags(tiny), *more)
    assert not tiny.run.exists()


def test_a_validation_file_shorter_than_a_block_is_refused_before_anything_is_written(tiny, refused):
    size = len(loop.Trainer(tiny).objective.val_file)
    more = [
        "--batches",
        "random",
        "--block-size",
        str(size),
        "--micro-batch",
        "1",
        "--batch-tokens",
        str(size),
    ]
    assert f"holds {size} tokens, too few for a block" in refused(train_script.main, *flags(tiny), *more)
    assert not tiny.run.exists()


def test_resuming_with_another_model_or_tokenizer_is_refused(tiny, refused, tmp_path):
    loop.train(dataclasses.replace(tiny, steps=2))
    before = snapshot(tiny.run)
    assert "another model" in refused(train_script.main, *flags(tiny, "--resume", "--n-layer", "1"))
    bpe.train(["once upon a time"] * 9, 260, progress=False).save(tiny.run / "tokenizer.json")
    assert "another tokenizer" in refused(train_script.main, *flags(tiny, "--resume"))
    (tiny.run / "tokenizer.json").write_bytes((tiny.data / "tokenizer.json").read_bytes())
    assert snapshot(tiny.run) == before


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ("--optimizer muon --steps 9", "another optimizer"),
        ("--steps 1", "has done 2 steps already"),
        ("--init-from elsewhere", "leave --init-from out"),
        ("--source stories", "leave --source out"),
        ("--preset tinystories", "leave --preset out"),
        ("--overwrite", "contradict"),
        ("--batches documents --steps 9", "the saved data position is one of RandomWindows"),
    ],
)
def test_a_resume_that_contradicts_the_run_is_refused_and_changes_nothing(tiny, refused, more, complaint):
    loop.train(dataclasses.replace(tiny, steps=2))
    before = snapshot(tiny.run)
    assert complaint in refused(train_script.main, *flags(tiny, "--resume", *more.split()))
    assert snapshot(tiny.run) == before


def test_a_run_with_experts_and_state_spaces_logs_the_load_and_goes_on_as_if_not_stopped(tiny, tmp_path):
    model = dataclasses.replace(
        tiny.model,
        layers="am",
        ssm_head=32,
        n_expert=4,
        expert_balance="bias",
        expert_capacity=1.0,
        n_ahead=1,
    )
    whole = dataclasses.replace(tiny, model=model, steps=12, schedule="constant", optimizer="muon")
    loop.train(whole)
    records = [json.loads(line) for line in (whole.run / "log.jsonl").read_text().splitlines()]
    loads = [(r["expert_load"], r["expert_dropped"]) for r in records if "expert_load" in r]
    assert loads and all(1 <= load <= 4 and 0 <= dropped < 1 for load, dropped in loads)
    half = dataclasses.replace(whole, run=tmp_path / "half", steps=6)
    loop.train(half)
    loop.train(dataclasses.replace(half, steps=12, resume=True))
    assert same(weights(half.run), weights(whole.run))


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ("--device cuda:77", "cuda:77"),
        ("--wandb online", "pip install wandb"),
        ("--shard full --ddp naive", "leave --ddp naive out"),
        ("--init-from SELF --n-embd 64", "c_attn"),
        ("--init-from SELF --n-expert 4", "n_expert is 4, but the weights of"),
        ("--init-from SELF --batches random --layers am", "layers is 'am', but the weights of"),
        ("--run SELF", "already holds a run"),
        ("--run FILE", "is a file"),
        (
            "--source text:other.txt",
            "--source is given 2 times: prepare several sources by python -m data prepare",
        ),
    ],
)
def test_no_data_is_prepared_for_what_is_refused(tiny, refused, monkeypatch, tmp_path, more, complaint):
    monkeypatch.setattr("training.watch.importlib.util.find_spec", lambda name: None)
    loop.train(dataclasses.replace(tiny, steps=1))
    (tmp_path / "file").write_text("Text of mine.")
    words = more.replace("SELF", str(tiny.run)).replace("FILE", str(tmp_path / "file")).split()
    sources = ["--source", f"text:{tmp_path / 'file'}", "--data", str(tmp_path / "new")]
    assert complaint in refused(train_script.main, "--run", str(tmp_path / "other"), *sources, *words)
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "other").exists()


def test_data_that_is_named_is_prepared_there(monkeypatch, tmp_path):
    prepared = []
    monkeypatch.setattr(cfg, "prepare_data", lambda config, source: prepared.append(config.data))
    monkeypatch.setattr(cfg, "with_vocabulary_of_data", lambda config: config)
    default = str(cfg.read_config(cfg.preset_path("quickstart")).data)
    for named in ([], ["--data", default]):
        cfg.parse_config(["--source", "text:mine.txt", "--run", str(tmp_path / "mine"), *named])
    assert prepared == [Path("tokens/mine"), Path(default)]


def test_a_model_wider_than_the_vocabulary_speaks_and_is_resumed_as_wide(tiny):
    wider = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, vocab_size=512), temperature=9.0)
    loop.train(dataclasses.replace(wider, steps=2, eval_every=1))  # random ids, so some without a token
    assert cfg.parse_config(["--run", str(wider.run), "--resume", "--steps", "3"]).model.vocab_size == 512


def test_state_of_another_program_is_refused_with_its_name(tiny, refused):
    loop.train(dataclasses.replace(tiny, steps=2))
    (tiny.run / "last" / "state.json").write_text('{"step": 2, "speed": 3}')
    message = refused(train_script.main, *flags(tiny, "--resume", "--steps", "3"))
    assert "state.json is not what train.py writes" in message


def test_damaged_state_is_refused_with_its_name(tiny, refused):
    loop.train(dataclasses.replace(tiny, steps=2))
    (tiny.run / "last" / "state.safetensors").write_bytes(b"\0" * 100)
    assert "state.safetensors" in refused(train_script.main, *flags(tiny, "--resume", "--steps", "3"))


def test_a_bare_start_makes_the_corpus_and_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = "--n-layer 1 --n-head 1 --n-embd 8 --block-size 16 --batch-tokens 128 --eval-batches 1 --steps 1"
    rest = "--vocab-size 300 --coherence-stories 1 --device cpu"
    train_script.main([*small.split(), *rest.split()])
    assert (tmp_path / "runs" / "quickstart" / "report.json").is_file()
    meta = json.loads((tmp_path / "tokens" / "stories" / "meta.json").read_text())
    assert meta["source"][0].startswith("stories") and meta["vocab_size"] == 300


@pytest.mark.parametrize("kind", ["epochs", "packed"])
def test_every_kind_of_batches_trains_and_resumes(tiny, kind):
    config = dataclasses.replace(tiny, batches=kind, schedule="constant", steps=10, eval_every=30)
    loop.train(config)
    result = loop.train(dataclasses.replace(config, steps=25, resume=True))
    assert result.val_loss < math.log(384) - 1


def test_the_first_line_says_which_kernels_run_and_they_do(tiny, monkeypatch, capsys):
    seen, original = set(), loop.Trainer.step

    def step(trainer, batch):
        seen.add(kernels.runs_on("cpu"))
        return original(trainer, batch)

    monkeypatch.setattr(loop.Trainer, "step", step)
    before = kernels.runs_on("cpu")
    loop.train(dataclasses.replace(tiny, kernels="torch", steps=2, coherence_stories=1))
    assert "with torch's kernels" in " ".join(capsys.readouterr().err.split())
    assert seen == {"torch"} and kernels.runs_on("cpu") == before


def test_kernels_that_cannot_be_had_are_refused_before_anything_is_written(tiny, monkeypatch):
    monkeypatch.setattr(dispatch, "_LIBRARIES", {})
    with pytest.raises(ValueError, match="the fused kernels are not there on cpu"):
        loop.train(dataclasses.replace(tiny, kernels="fused"))
    assert not tiny.run.exists()
