"""GRPO and PPO on the loop: what is learned, what is checked, what is refused, and going on after a kill."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from alignment import grpo, lora, ppo
from alignment.grpo import GRPO
from alignment.ppo import PPO, PPOConfig
from inference.chat import Message
from model import GPT
from training import loop, watch

REWARDS = {
    "def reward(prompts, answers, checks):\n    raise KeyError('oh')": "KeyError: 'oh'",
    "def reward(prompts, answers, checks):\n    return [float('nan')] * len(answers)": "is nan for",
    "def reward(prompts, answers, checks):\n    return [1.0]": "returned 1 numbers for 2 answers",
    "def reward(prompts, answers, checks):\n    return None": "TypeError",
    "other = 1": "has no function 'reward'",
    "import nothing_of_this_name": "cannot be imported: ModuleNotFoundError",
}


def as_ppo(config) -> PPOConfig:
    names = {field.name for field in dataclasses.fields(PPOConfig)}
    return PPOConfig(
        **{name: value for name, value in vars(config).items() if name in names and name != "everyday"}
    )


def state(directory) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint, and in place of the generator's state the numbers that it gives next."""
    tensors = load_file(directory / "model.safetensors") | load_file(directory / "state.safetensors")
    generator = torch.Generator()
    generator.set_state(tensors.pop("random.cpu.0"))
    return tensors | {"random": torch.rand(8, generator=generator)}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("objective", [GRPO, PPO])
def test_the_reward_rises(config, objective):
    config = dataclasses.replace(config, steps=25, learning_rate=1e-2, eval_every=25, checkpoint_every=25)
    loop.train(as_ppo(config) if objective is PPO else config, objective)
    earned = [record["reward"] for record in watch.read_log(config.run / "log.jsonl") if "reward" in record]
    assert sum(earned[-5:]) > 2 * sum(earned[:5])


@pytest.mark.parametrize("objective", [GRPO, PPO])
@pytest.mark.parametrize("change", [{}, {"passes": 2, "minibatches": 2, "kl": 0.1}, {"lora_rank": 2}])
def test_a_run_killed_between_two_saves_goes_on_as_if_never_stopped(config, objective, change, tmp_path):
    config = dataclasses.replace(config, **change)
    config = as_ppo(config) if objective is PPO else config
    whole = dataclasses.replace(config, run=tmp_path / "whole")
    loop.train(whole, objective)

    class Killed(objective):
        steps = 0

        def updates(self, model, batch):
            Killed.steps += 1
            if Killed.steps == 4:
                raise KeyboardInterrupt
            return super().updates(model, batch)

    with pytest.raises(KeyboardInterrupt):
        loop.train(config, Killed)
    loop.train(dataclasses.replace(config, resume=True), objective)
    assert same(state(config.run / "last"), state(whole.run / "last"))


def test_the_log_has_what_one_has_to_watch(config):
    loop.train(dataclasses.replace(config, kl=0.1), GRPO)
    records = watch.read_log(config.run / "log.jsonl")
    steps = [record for record in records if "reward" in record]
    assert [record["step"] for record in steps] == [0, 1, 2, 3]
    wanted = {"reward", "passed", "entropy", "kl", "length", "length_5", "length_95", "cut_off", "no_signal"}
    assert all(wanted <= record.keys() for record in steps)
    assert all({"val_reward", "val_passed", "val_kl"} <= r.keys() for r in records if "val_loss" in r)
    report = json.loads((config.run / "report.json").read_text())
    assert report["tokens"] == steps[-1]["tokens"] and 0 < report["tokens"] <= 4 * 16 * 12


def trainer_of(config, objective=GRPO) -> loop.Trainer:
    trainer = loop.Trainer(config, objective(config))
    trainer.model.train()
    return trainer


def updates(trainer: loop.Trainer):
    return trainer.objective.updates(trainer.model, next(trainer.batches))


def test_the_ratio_is_one_at_the_first_pass(config):
    trainer = trainer_of(config)
    (batch,) = updates(trainer)
    new = grpo.token_log_probabilities(trainer.model, batch.ids, batch.mask, config.explore)
    assert torch.allclose(new, batch.old, atol=2e-5)
    assert batch.fresh.all()


@pytest.mark.parametrize("wrong", ["dropout", "temperature", "weights"])
def test_a_ratio_that_is_not_one_at_the_first_pass_is_refused(config, wrong):
    trainer = trainer_of(config)
    (batch,) = updates(trainer)
    if wrong == "dropout":
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.3
    elif wrong == "temperature":
        trainer.objective.config = dataclasses.replace(config, explore=0.7)
    else:
        with torch.no_grad():
            trainer.model.wte.weight.mul_(1.5)
    with pytest.raises(ValueError, match="at the first pass the ratio"):
        trainer.objective.loss(trainer.model, batch)


def test_dropout_of_the_base_is_off(config):
    noisy = dataclasses.replace(config.model, dropout=0.3)
    assert dataclasses.replace(config, model=noisy).model.dropout == 0


@pytest.mark.parametrize("normalization", ["grpo", "dr_grpo", "dapo"])
def test_the_gradient_does_not_depend_on_the_micro_batch(config, normalization):
    found = []
    for rows in (16, 2):
        torch.manual_seed(1)
        trainer = trainer_of(dataclasses.replace(config, micro_batch=rows, normalization=normalization))
        batch = updates(trainer)[0]
        trainer._accumulate(batch)
        found.append([parameter.grad.clone() for parameter in trainer.parameters])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def test_groups_whose_answers_earn_the_same_are_left_out_and_have_no_gradient(config):
    trainer = trainer_of(dataclasses.replace(config, normalization="dr_grpo"))
    rollouts = trainer.objective.roll_out(trainer.model, [*trainer.objective.val] * 4, 1.0)
    earned = torch.tensor([0.25] * 8 + [0.0, 1.0, 0.5, 0.1] * 2)
    whole = trainer.objective.prepare(trainer.model, rollouts, earned)
    part = trainer.objective.worth_learning(whole)
    assert torch.equal(part.ids, whole.ids[8:])
    found = []
    for batch in (whole, part):
        trainer.model.zero_grad()
        (trainer.objective.loss(trainer.model, batch) * len(batch.ids)).backward()
        found.append([parameter.grad.clone() for parameter in trainer.parameters])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def test_with_a_kl_divergence_no_group_is_left_out(config):
    trainer = trainer_of(dataclasses.replace(config, kl=0.1))
    rollouts = trainer.objective.roll_out(trainer.model, [*trainer.objective.val] * 4, 1.0)
    batch = trainer.objective.prepare(trainer.model, rollouts, torch.ones(16))
    assert trainer.objective.worth_learning(batch) is batch


def test_later_passes_are_not_fresh_and_see_every_answer_once(config):
    trainer = trainer_of(dataclasses.replace(config, passes=2, minibatches=4))
    parts = updates(trainer)
    assert [bool(part.fresh.all()) for part in parts] == [True] + [False] * 7
    assert sum(len(part.ids) for part in parts) == 2 * 16
    assert torch.equal(parts[1].ids, parts[5].ids)


@pytest.mark.parametrize(
    "truncated, learned, earned", [("fail", 12, 0.0), ("score", 12, 1.0), ("mask", 0, 0.0)]
)
def test_answers_that_are_cut_off(config, truncated, learned, earned, tmp_path):
    always = tmp_path / "always.py"
    always.write_text("def reward(prompts, answers, checks):\n    return [1.0] * len(answers)\n")
    config = dataclasses.replace(config, truncated=truncated, reward=f"{always}:reward")
    trainer = trainer_of(config)
    trainer.objective.template.end_of_turn = trainer.objective.template.end_of_text = -1  # no answer can end
    (batch,) = updates(trainer)
    assert batch.mask.sum(1).tolist() == [learned] * 16
    assert trainer.objective._figures["reward"] == earned


def test_ppo_pays_at_the_token_that_ends_an_answer_and_never_at_padding(config):
    trainer = trainer_of(as_ppo(dataclasses.replace(config, kl=0.0)), PPO)
    torch.nn.init.normal_(trainer.model.value_head.weight)
    rollouts = trainer.objective.roll_out(trainer.model, trainer.objective.val, 1.0)
    earned = torch.arange(4.0) + 1
    batch = trainer.objective.prepare(trainer.model, rollouts, earned)
    last = [int(row.nonzero().max()) for row in rollouts.mask]
    assert [batch.returns[row, place].item() for row, place in enumerate(last)] == pytest.approx([1, 2, 3, 4])
    outside = batch.mask == 0
    assert not batch.values[outside].any() and not batch.returns[outside].any()
    assert not batch.advantages[outside].any()


def test_the_critic_is_kept_with_the_weights(config):
    loop.train(as_ppo(config), PPO)
    assert load_file(config.run / "best" / "head.safetensors").keys() == {"weight", "bias"}
    assert load_file(config.run / "last" / "state.safetensors")["weights.value_head.weight"].any()
    GPT.from_pretrained(config.run / "best")


def test_adapters_are_saved_and_the_weights_next_to_them_have_them_merged(config, babble):
    config = dataclasses.replace(config, lora_rank=2, learning_rate=1e-2)
    loop.train(config, GRPO)
    last = config.run / "last"
    plain = GPT.from_pretrained(babble / "best").with_vocabulary(config.model.vocab_size)
    ids = torch.arange(16)[None]
    torch.manual_seed(config.seed)
    base = load_file(last / "state.safetensors")
    for name, tensor in plain.state_dict().items():
        stem, _, kind = name.rpartition(".")
        if (kept := base.get(f"weights.{stem}.parametrizations.{kind}.original")) is not None:
            tensor.copy_(kept)
    lora.load(plain, last)
    with torch.no_grad():
        assert torch.allclose(plain(ids)[0], GPT.from_pretrained(last)(ids)[0], atol=1e-5)


@pytest.mark.parametrize("source, message", REWARDS.items())
def test_a_faulty_reward_is_refused_before_anything_is_written(
    babble, chat, tmp_path, refused, source, message
):
    path = tmp_path / "mine.py"
    path.write_text(source)
    run = tmp_path / "run"
    words = f"--init-from {babble} --data {chat} --run {run} --reward {path}:reward --held-out 4".split()
    for command in (grpo, ppo):
        assert message in refused(command.main, *words)
    assert not run.exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--reward nothing", "no reward 'nothing'"),
        ("--reward model:RUN", "no reward model"),
        ("--reward stories", "has 0 prompts for the reward stories"),
        ("--group 1", "group is 1"),
        ("--explore 0", "explore is 0"),
        ("--minibatches 7", "do not divide into 7"),
        ("--prompts nothing.jsonl", "nothing.jsonl"),
        ("--init-from nothing", "nothing"),
        ("--lora-rank 2 --lora-targets c_none", "'c_none' is no linear layer"),
    ],
)
def test_mistakes_are_one_line(babble, chat, tmp_path, refused, flags, message):
    run = tmp_path / "run"
    words = ["--init-from", str(babble), "--data", str(chat), "--run", str(run), "--held-out", "4"]
    assert message in refused(grpo.main, *words, *flags.replace("RUN", str(babble)).split())
    assert not run.exists()


def test_prompts_that_fill_the_context_are_left_out_and_counted(config, chat, tmp_path, capsys):
    rows = (chat / "prompts" / "train.jsonl").read_text().splitlines()
    long = {"messages": [{"role": "user", "content": "word " * 60}], "check": {}}
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join([*rows, json.dumps(long)]) + "\n")
    objective = GRPO(dataclasses.replace(config, prompts=path))
    assert len(objective.train) + len(objective.val) == 12
    assert "1 prompts fill the context of 48 tokens" in capsys.readouterr().err


def test_other_prompts_are_refused_by_a_resumed_run(config, chat, tmp_path):
    loop.train(config, GRPO)
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        "".join(
            f"{line}\n" for line in reversed((chat / "prompts" / "train.jsonl").read_text().split("\n")[:-1])
        )
    )
    with pytest.raises(ValueError, match="the run began with other prompts"):
        loop.train(dataclasses.replace(config, prompts=path, resume=True, steps=6), GRPO)


def test_a_reward_sees_conversations_answers_and_checks(config, chat):
    objective = GRPO(config)
    seen = []
    objective.reward = lambda *arguments: seen.append(arguments) or [0.0] * len(arguments[1])
    rollouts = objective.roll_out(GPT(config.model), objective.val, 1.0)
    objective.earned(objective.val, rollouts)
    ((prompts, answers, checks),) = seen
    assert prompts[0] == [Message("user", "0 + 1?")] and answers == rollouts.answers
    assert checks[0] == {"task": "arithmetic", "a": 0, "op": "+", "b": 1}
