"""DPO and the reward model on pairs; preferences made by a verifier and by a human."""

import dataclasses
import json

import pytest
import torch

from alignment import dpo, heads, pairs, rate, reward_model, rewards
from alignment.dpo import DPO, DPOConfig
from alignment.instructions import read_preferences
from alignment.pairs import encode
from alignment.reward_model import RewardConfig, RewardModel, best_of_n
from alignment.rollouts import reference_model, token_log_probabilities
from inference.chat import ChatTemplate, Message
from model import GPT
from training import loop, watch

from .conftest import asked, settings, write_rows


@pytest.fixture
def preferring(babble, chat, tmp_path) -> DPOConfig:
    """Return ten steps of DPO on the pairs of the tiny chat data."""
    return DPOConfig(
        **settings(babble, chat, tmp_path / "run") | {"steps": 10, "eval_every": 10, "checkpoint_every": 5},
        preferences=chat / "preferences.jsonl",
    )


def as_reward(config: DPOConfig, **changes) -> RewardConfig:
    names = {field.name for field in dataclasses.fields(RewardConfig)}
    return RewardConfig(**{k: v for k, v in vars(config).items() if k in names and k != "everyday"} | changes)


def test_an_answers_tokens_are_learned_and_the_prompt_is_not(chat):
    template = ChatTemplate.load(chat)
    (first, *_) = read_preferences(chat / "preferences.jsonl")
    pair = encode(first, template)
    assert pair.chosen[: len(pair.prompt)] == pair.rejected[: len(pair.prompt)] == pair.prompt
    assert template.text(pair.chosen[len(pair.prompt) :]) == first.chosen
    ids, mask = pairs.pad([pair.chosen], [len(pair.prompt)], len(pair.chosen) + 3)
    assert ids[0][mask[0] == 1].tolist() == pair.chosen[len(pair.prompt) :]
    assert pair.chosen[-1] == template.end_of_turn  # the end is learned


def test_an_earlier_answer_of_the_prompt_is_not_part_of_what_is_preferred(chat):
    template = ChatTemplate.load(chat)
    prompt = (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Go"))
    pair = encode(pairs.Preference(prompt, "a", "b"), template)
    assert template.text(pair.chosen[len(pair.prompt) :]) == "a"


@pytest.mark.parametrize("change", [{}, {"variant": "ipo"}, {"label_smoothing": 0.1}, {"lora_rank": 2}])
def test_the_chosen_answers_are_preferred_more_and_more(preferring, change):
    config = dataclasses.replace(preferring, **change, learning_rate=1e-2)
    loop.train(config, DPO)
    first, last = [r for r in watch.read_log(config.run / "log.jsonl") if "val_loss" in r]
    assert first["val_margin"] == pytest.approx(0, abs=1e-5) and last["val_margin"] > 0.1
    assert last["val_accuracy"] == 1 and last["val_loss"] < first["val_loss"]
    assert first["val_kl"] == pytest.approx(0, abs=1e-5) and last["val_kl"] > 1e-3
    report = json.loads((config.run / "report.json").read_text())
    assert {"accuracy", "margin", "kl", "loss"} <= report.keys()


def test_the_reference_reads_every_pair_once(preferring, monkeypatch):
    read = []
    real = dpo.reference_model

    def counting(config, device):
        model = real(config, device)
        model.register_forward_hook(lambda _, arguments, __: read.append(len(arguments[0])))
        return model

    monkeypatch.setattr(dpo, "reference_model", counting)
    monkeypatch.setattr(DPO, "_kl", lambda self, model: 0.0)
    loop.train(preferring, DPO)
    assert sum(read) == 2 * 12


def test_the_reference_is_the_model_that_the_run_began_with(preferring):
    objective = DPO(preferring)
    trainer = loop.Trainer(preferring, objective)
    (batch,) = objective.updates(trainer.model, next(trainer.batches))
    model = reference_model(preferring, torch.device("cpu"))
    with torch.no_grad():
        found = token_log_probabilities(model, batch.chosen, batch.chosen_mask).sum(1)
    assert torch.allclose(batch.reference[:, 0], found, atol=1e-4)


@pytest.mark.parametrize("objective", [DPO, RewardModel])
def test_a_stopped_run_goes_on_as_if_never_stopped(preferring, objective, tmp_path):
    config = preferring if objective is DPO else as_reward(preferring, asked=1, best_of=2)
    config = dataclasses.replace(config, schedule="constant", steps=4, eval_every=2, checkpoint_every=2)
    whole = dataclasses.replace(config, run=tmp_path / "whole")
    loop.train(whole, objective)
    loop.train(dataclasses.replace(config, steps=2), objective)
    loop.train(dataclasses.replace(config, resume=True), objective)
    one, other = (GPT.from_pretrained(each / "last").state_dict() for each in (whole.run, config.run))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_reward_model_tells_pairs_apart_and_is_a_reward(preferring):
    config = as_reward(preferring, learning_rate=1e-2, asked=2, best_of=4)
    loop.train(config, RewardModel)
    report = json.loads((config.run / "report.json").read_text())
    assert report["accuracy"] == 1
    assert [row["n"] for row in report["best_of"]] == [1, 2, 4]
    scores = [row["score"] for row in report["best_of"]]
    assert scores == sorted(scores)
    reward = rewards.make_reward(f"model:{config.run}")
    good, bad = reward([[Message("user", "Lily")]] * 2, ["I am Lily.", "No no no."], [{}, {}])
    assert good > bad
    assert len(reward([[Message("user", "Lily")]] * 2, ["", "word " * 99], [{}, {}])) == 2


def test_the_score_is_read_at_the_end_of_the_answer_and_not_at_padding(preferring):
    model = heads.Headed(GPT(preferring.model)).eval()
    torch.nn.init.normal_(model.value_head.weight)
    short, long = [5, 6, 7], [5, 6, 7, 8, 9, 10]
    together = reward_model.scored(model, [short, long])
    assert together == pytest.approx(
        [reward_model.scored(model, [row])[0] for row in (short, long)], abs=1e-5
    )


def test_the_best_of_n_by_a_wrong_score_is_not_the_best():
    truth = torch.tensor([0.0, 1.0, 1.0, 0.0])
    rows = best_of_n(torch.tensor([4.0, 1.0, 2.0, 3.0]), truth, 4)
    assert [(row["n"], row["reward"]) for row in rows] == [(1, 0.5), (2, 0.0), (4, 0.0)]


@pytest.mark.parametrize(
    "rows, message",
    [
        (
            [{"prompt": asked("Hi"), "chosen": "a", "rejected": "a"}],
            "row 1: the answers of a preference are equal",
        ),
        ([{"prompt": asked("Hi"), "chosen": "a", "rejected": " "}], "an answer of a preference is empty"),
        ([{"prompt": asked("Hi"), "chosen": "a", "rejected": "b"}] * 4, "has 4 pairs that fit, of which 4"),
        ([{"chosen": "a"}], "not both chosen and rejected"),
    ],
)
def test_bad_preferences_are_refused(babble, chat, tmp_path, refused, rows, message):
    path, run = write_rows(tmp_path / "bad.jsonl", rows), tmp_path / "run"
    words = f"--init-from {babble} --data {chat} --run {run} --preferences {path} --held-out 4".split()
    for command in (dpo, reward_model):
        assert message in refused(command.main, *words)
    assert not run.exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--beta 0", "beta is 0"),
        ("--label-smoothing 0.7", "label_smoothing is 0.7"),
        ("--label-smoothing 0.1 --variant ipo", "no effect with --variant ipo"),
        ("--preferences nothing.jsonl", "nothing.jsonl"),
    ],
)
def test_mistakes_are_one_line(babble, chat, tmp_path, refused, flags, message):
    words = [
        "--init-from",
        str(babble),
        "--data",
        str(chat),
        "--run",
        str(tmp_path / "run"),
        "--held-out",
        "4",
    ]
    assert message in refused(
        dpo.main, *words, "--preferences", str(chat / "preferences.jsonl"), *flags.split()
    )


def instructed(babble, chat, run):
    """Return a run whose weights know the role tokens."""
    config = DPOConfig(
        **settings(babble, chat, run) | {"steps": 1, "eval_every": 1},
        preferences=chat / "preferences.jsonl",
    )
    loop.train(config, DPO)
    return run


def test_pairs_are_made_by_a_reward(babble, chat, letters, tmp_path, capsys):
    run = instructed(babble, chat, tmp_path / "run")
    options = pairs.Make(
        run=run,
        prompts=chat / "prompts" / "train.jsonl",
        out=tmp_path / "made.jsonl",
        count=6,
        group=4,
        max_new_tokens=8,
        reward=letters,
    )
    pairs.make(options)
    made = list(read_preferences(options.out))
    assert made and all(
        each.chosen.count("e") / len(each.chosen) > each.rejected.count("e") / len(each.rejected)
        for each in made
    )
    with pytest.raises(ValueError, match="exists already"):
        pairs.make(options)


def test_a_human_picks_and_choices_are_kept(babble, chat, tmp_path, monkeypatch, capsys):
    run = instructed(babble, chat, tmp_path / "run")
    shown = iter([["one", "two"], ["same", "same"], ["three", "four"], ["five", "six"]])
    monkeypatch.setattr(rate, "_two", lambda *_: next(shown))
    words = iter(["what?", "2", "s", "q"])
    monkeypatch.setattr("builtins.input", lambda _: next(words))
    out = write_rows(tmp_path / "mine.jsonl", [{"prompt": asked("Hi"), "chosen": "a", "rejected": "b"}])
    rate.rate(rate.Rate(run=run, prompts=chat / "prompts" / "train.jsonl", out=out, seed=1))
    kept = [(each.chosen, each.rejected) for each in read_preferences(out)]
    assert kept == [("a", "b"), ("two", "one")]
    assert "1 preferences added" in capsys.readouterr().out
