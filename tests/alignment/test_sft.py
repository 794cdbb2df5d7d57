"""SFT learns the answers and their ends, weighs every token alike, and trains as pretraining does."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from alignment import sft
from alignment.__main__ import main
from alignment.sft import SFT, SFTConfig
from data.batches import IGNORED
from data.conversations import Conversations, Packed
from inference.chat import ChatTemplate, Message
from inference.run import weights_directory
from model import GPT, generate, pretrained
from training import loop
from training.config import with_vocabulary_of_data
from training.distributed import SINGLE
from training.failures import Interrupted

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.compile")


@pytest.fixture
def config(base, chat_data, tmp_path) -> SFTConfig:
    made = SFTConfig(
        model=pretrained.read_config(weights_directory(base)),
        init_from=base,
        data=chat_data,
        run=tmp_path / "run",
        steps=6,
        batch_tokens=768,
        micro_batch=8,
        learning_rate=1e-2,
        warmup_steps=2,
        schedule="constant",
        eval_every=6,
        eval_batches=2,
        device="cpu",
        precision="float32",
    )
    return with_vocabulary_of_data(made)


def gradient(config, batch):
    """Return loss and gradient of a step in float64, with the config's micro-batch."""
    trainer = loop.Trainer(config, SFT(config))
    trainer.model.double()
    loss, _ = trainer._accumulate(batch)
    return loss, torch.cat([parameter.grad.flatten() for parameter in trainer.parameters])


def first_batch(config):
    objective = SFT(config)
    return next(objective.open(loop.batching.divide(config, 1), SINGLE))


def test_micro_batches_weigh_every_token_alike(config):
    batch = first_batch(config)
    torch.manual_seed(0)
    loss, whole = gradient(config, batch)
    torch.manual_seed(0)
    same, parts = gradient(dataclasses.replace(config, micro_batch=1), batch)
    counts = (batch.y != IGNORED).sum(1)
    assert counts.min() < counts.max()  # else any weighting would do
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(same, loss, rtol=0, atol=1e-12)


def plain_loss(model, conversations):
    """Return the mean of -log P over the learned tokens, a conversation at a time."""
    losses = []
    for ids, mask in conversations:
        logits = model(torch.tensor([ids[:-1]]))[0][0]
        each = F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        losses.append(each[torch.tensor(mask[1:]).bool()])
    return torch.cat(losses).mean()


def unpacked(batch, end):
    """Return the conversations (ids, mask) of a batch."""
    found = []
    for row in zip(batch.x.tolist(), batch.y.tolist(), batch.documents.tolist(), strict=True):
        for number in set(row[2]):
            places = [place for place, its in enumerate(row[2]) if its == number]
            ids = [row[0][place] for place in places]
            targets = [row[1][place] for place in places]
            found.append(([*ids, end], [0, *(int(id != IGNORED) for id in targets)]))
    return found


def test_the_loss_is_that_of_each_conversation_alone(config):
    batch = first_batch(config)
    torch.manual_seed(0)
    trainer = loop.Trainer(config, SFT(config))
    talks = [each for each in unpacked(batch, 0) if any(each[1])]
    assert len(talks) > len(batch.x)
    torch.testing.assert_close(trainer.objective.loss(trainer.model, batch), plain_loss(trainer.model, talks))


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_mask_that_is_off_by_one_is_noticed(config, shift):
    batch = first_batch(config)
    trainer = loop.Trainer(config, SFT(config))
    talks = [each for each in unpacked(batch, 0) if any(each[1])]
    wrong = [(ids, np.roll(mask, shift).tolist()) for ids, mask in talks]
    right = trainer.objective.loss(trainer.model, batch)
    assert abs(right - plain_loss(trainer.model, wrong)) > 1e-3


def test_a_batch_without_a_learned_token_is_skipped_with_a_message(config, capsys):
    trainer = loop.Trainer(config, SFT(config))
    batch = first_batch(config)
    silent = Packed(batch.x, torch.full_like(batch.y, IGNORED), batch.documents)
    trainer.step(batch)  # so that there is momentum, which would move the weights
    before = [parameter.clone() for parameter in trainer.parameters]
    step = trainer.step(silent)
    assert step.loss == 0 and trainer.progress.step == 2
    assert all(map(torch.equal, before, trainer.parameters))
    assert "step 1 is skipped, nothing in it is learned: '<|endoftext|><|user|>" in capsys.readouterr().err


def test_a_run_keeps_template_and_grown_rows(config):
    base = GPT.from_pretrained(weights_directory(config.init_from))
    start = loop.Trainer(config, SFT(config)).model
    assert torch.equal(start.wte.weight[: base.config.vocab_size], base.wte.weight)
    report = loop.train(config, SFT)
    trained = GPT.from_pretrained(weights_directory(config.run))
    template = ChatTemplate.load(config.run)
    assert trained.config.vocab_size == template.tokenizer.vocab_size == base.config.vocab_size + 4
    val = Conversations(SFT(config).val_file, 1, config.model.block_size, mode="pad", epochs=1)
    talks = [talk for batch in val for talk in unpacked(batch, 0) if any(talk[1])]
    assert report.val_loss == pytest.approx(plain_loss(trained, talks).item(), rel=1e-5)
    assert report.val_loss < 6 and len(report.answers) == sft.SHOWN
    assert not torch.equal(trained.wte.weight[template.end_of_turn], start.wte.weight[template.end_of_turn])


def test_noise_on_the_embedding_is_as_large_as_asked_for_and_nothing_else_changes(config):
    made = (dataclasses.replace(config, perturb=scale) for scale in (0.0, 0.5))
    plain, noisy = (loop.Trainer(each, SFT(each)).model.state_dict() for each in made)
    rows = plain["wte.weight"]
    noise = noisy["wte.weight"] - rows
    wanted = 0.5 * (rows - rows.mean(0)).std().item()
    assert noise.std().item() == pytest.approx(wanted, rel=0.03)
    assert abs(torch.corrcoef(torch.stack([noise.flatten(), rows.flatten()]))[0, 1]) < 0.03
    tied = {"wte.weight", "lm_head.weight"}
    assert all(torch.equal(tensor, noisy[name]) for name, tensor in plain.items() if name not in tied)


def test_a_resumed_run_is_the_same(config, monkeypatch):
    config = dataclasses.replace(config, perturb=0.5)  # which must not be done again
    loop.train(config, SFT)
    whole = GPT.from_pretrained(weights_directory(config.run)).state_dict()
    parts = dataclasses.replace(config, run=config.run.with_name("parts"), checkpoint_every=3)
    save = loop.Trainer.save

    def save_and_stop(trainer):
        save(trainer)
        if trainer.progress.step == 3:
            raise Interrupted(trainer.run / "last", 3)

    monkeypatch.setattr(loop.Trainer, "save", save_and_stop)
    with pytest.raises(Interrupted):
        loop.train(parts, SFT)
    monkeypatch.undo()
    loop.train(dataclasses.replace(parts, resume=True), SFT)
    again = GPT.from_pretrained(weights_directory(parts.run)).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_answers_are_learned_and_end(base, tmp_path):
    """Four answers by heart: neither the first token is missing nor the one that ends the turn."""
    talks = {"a": "One.", "b": "Two. ", "c": "Once upon a time.", "d": "z"}
    rows = [{"instruction": asked, "output": answer} for asked, answer in talks.items() for _ in "tv"]
    sft.files.write_json(tmp_path / "mine.json", rows)
    out, run = str(tmp_path / "chat"), str(tmp_path / "run")
    main(
        [
            "data",
            "--base",
            str(base),
            "--out",
            out,
            "--source",
            str(tmp_path / "mine.json"),
            "--val-fraction",
            "0.5",
        ]
    )
    sizes = (
        "--steps 60 --batch-tokens 384 --micro-batch 4 --learning-rate 2e-2 --warmup-steps 5 --eval-every 60"
    )
    start = ["--init-from", str(base), "--optimizer", "ours", "--device", "cpu", "--eval-batches", "1"]
    main(["sft", "--data", out, "--run", run, *start, *sizes.split()])
    template, model = ChatTemplate.load(tmp_path / "run"), GPT.from_pretrained(tmp_path / "run" / "best")
    prompts = [template.prompt([Message("user", asked)]) for asked in talks]
    answers = generate.generate_batch(model, prompts, 20, stop=template.end_of_turn, temperature=0)
    assert [template.text(answer) for answer in answers] == list(talks.values())


def cut(config, **changes):
    """Return the flags of an SFT run."""
    flags = {
        "init-from": config.init_from,
        "data": config.data,
        "run": config.run,
        "micro-batch": 8,
    } | changes
    return ["sft", *(word for name, value in flags.items() for word in (f"--{name}", str(value)) if value)]


def test_bad_input_is_refused_and_nothing_is_written(config, tmp_path, corpus, refused):
    (tmp_path / "empty").mkdir()
    wrong = {
        "holds no": {"init-from": tmp_path / "empty"},
        "has no chat template": {"data": corpus},
        "is missing": {"data": tmp_path / "nowhere"},
    }
    for message, changes in wrong.items():
        assert message in refused(main, *cut(config, **changes))
        assert not config.run.exists()
    assert "no two pack alike" in refused(main, *cut(config), "--compile")
    for scale in ("-1", "nan", "inf"):
        assert "perturb is" in refused(main, *cut(config), "--perturb", scale)
    assert "exclude each other" in refused(main, *cut(config), "--perturb", "0.5", "--lora-rank", "2")


def test_long_conversations_are_dropped_or_truncated_and_said_once(config, capsys):
    short = dataclasses.replace(config.model, block_size=64)
    told = []
    for long in ("drop", "truncate"):
        trainer_config = dataclasses.replace(config, model=short, long=long, batch_tokens=512)
        objective = SFT(trainer_config)
        batch = next(objective.open(loop.batching.divide(trainer_config, 1), SINGLE))
        told.append(capsys.readouterr().err)
        assert told[-1].count("longer than the context of 64 tokens") == 1
        assert (batch.y != IGNORED).any()
    assert "they are left out" in told[0] and "their ends are left out" in told[1]
