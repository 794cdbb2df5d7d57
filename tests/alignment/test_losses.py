"""The losses equal published values and other people's code; their gradients equal finite differences."""

import collections
import math
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from alignment import losses

DOUBLE = {"dtype": torch.float64}


def cs336_log_probabilities():
    """Return the new and old log-probabilities (2, 10), the advantages (2, 1) and the mask (2, 10) of CS336's tests."""
    torch.manual_seed(42)
    new = torch.randn(2, 10)
    torch.manual_seed(42)
    old = new + torch.randn(2, 10)
    torch.manual_seed(42)
    rewards = torch.rand(2, 1)
    torch.manual_seed(42)
    mask = torch.rand(2, 10) > 0.5
    return new, old, rewards - rewards.mean(0), mask


class TestPublishedSnapshots:
    """Stanford CS336, assignment 5 (2025): tests/_snapshots, whose inputs come from torch's seed 42."""

    def test_entropy(self):
        torch.manual_seed(42)
        found = losses.entropy(torch.randn(2, 10, 100))
        expected = [4.157338619232178, 4.258090019226074, 4.200002670288086, 4.194465637207031]
        assert found[0, :4].tolist() == pytest.approx(expected, abs=1e-5)
        assert found[1, -1].item() == pytest.approx(4.273293972015381, abs=1e-5)

    @pytest.mark.parametrize(
        "scale, expected",
        [
            (
                True,
                [
                    *(-0.3382391929626465, 1.0147175788879395, -1.2402104139328003, 0.5637319684028625),
                    *(1.0706170797348022, 0.5947872996330261, -0.5947872400283813, -1.0706170797348022),
                ],
            ),
            (False, [-0.075, 0.225, -0.275, 0.125, 0.45, 0.25, -0.25, -0.45]),
        ],
    )
    def test_group_normalized_rewards(self, scale, expected):
        rewards = torch.tensor([0.2, 0.5, 0.0, 0.4, 0.9, 0.7, 0.2, 0.0])
        found = losses.group_advantages(rewards, 4, scale=scale, eps=1e-6)
        assert found.tolist() == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize(
        "clip, expected",
        [
            (10.0, [0.002383026061579585, 0.0036987776402384043, 0.006649683229625225, 0.13439825177192688]),
            (0.1, [0.014730583876371384, 0.014730583876371384, 0.014730583876371384, 0.13439825177192688]),
        ],
    )
    def test_clipped_loss(self, clip, expected):
        new, old, advantages, _ = cs336_log_probabilities()
        found = losses.clipped(new, old, advantages, clip, clip)
        assert found[0, :4].tolist() == pytest.approx(expected, abs=1e-6)

    def test_clipped_loss_where_the_advantage_is_negative(self):
        new, old, advantages, _ = cs336_log_probabilities()
        found = losses.clipped(new, old, advantages, 0.1, 0.1)
        expected = [-0.01800411380827427, -0.01285589300096035, -0.01800411380827427, -0.015697957947850227]
        assert found[1, :4].tolist() == pytest.approx(expected, abs=1e-6)

    def test_grpo_step_with_its_gradient(self):
        new, old, advantages, mask = cs336_log_probabilities()
        new.requires_grad_()
        loss = losses.normalize(losses.clipped(new, old, advantages, 0.1, 0.1), mask, "grpo", 10) / 2
        loss.backward()
        assert loss.item() == pytest.approx(0.00440071988850832, abs=1e-7)
        expected = torch.zeros(2, 10)
        expected[0, 3], expected[1, 1], expected[1, 3] = (
            0.005599927622824907,
            -0.000401746656,
            -0.000490561186,
        )
        assert torch.allclose(new.grad, expected, atol=1e-8)

    def test_masked_mean(self):
        torch.manual_seed(42)
        x = torch.randn(2, 10, 100)
        torch.manual_seed(42)
        mask = torch.rand(2, 10, 100) > 0.5
        assert losses.masked_mean(x, mask).item() == pytest.approx(-0.4070190191268921, abs=1e-5)

    def test_sft_step(self):
        new, _, _, mask = cs336_log_probabilities()
        sums = losses.normalize(-new, mask, "dr_grpo", longest=1)
        assert (sums / 2).item() == pytest.approx(-0.6007837653160095, abs=1e-6)
        sums = losses.normalize(-new, mask, "dr_grpo", longest=42)
        assert (sums / 2).item() == pytest.approx(-0.014304375275969505, abs=1e-7)


class TestPPOofTRL:
    """TRL 0.29.1's ppo_trainer.py, whose lines were run on these numbers; later versions have no PPO."""

    values = torch.tensor([[0.1, 0.2, -0.3, 0.4], [0.5, -0.1, 9.0, 9.0]], **DOUBLE)  # 9: padding
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    rewards = torch.tensor([[0, 0, 0, 1.0], [0, -0.5, 0, 7.0]], **DOUBLE)

    def test_gae(self):
        advantages, returns = losses.gae(self.rewards, self.values, self.mask, gamma=0.9, lam=0.8)
        expected = [[0.3076928, 0.31624, 1.092, 0.6], [-0.878, -0.4, 0, 0]]
        assert torch.allclose(advantages, torch.tensor(expected, **DOUBLE), atol=1e-12)
        expected = [[0.4076928, 0.51624, 0.792, 1.0], [-0.378, -0.5, 0, 0]]
        assert torch.allclose(returns, torch.tensor(expected, **DOUBLE), atol=1e-12)

    def test_whitening_and_both_losses(self):
        advantages, returns = losses.gae(self.rewards, self.values, self.mask, gamma=0.9, lam=0.8)
        white = losses.whiten(advantages, self.mask)
        # TRL takes 6 / 5 in float32: its figures are off by 2e-8 of their size.
        assert white[0, 2].item() == pytest.approx(1.300073386324638, rel=3e-8)
        assert white[1].tolist() == pytest.approx([-1.4867746641229922, -0.8105749848773235, 0, 0], rel=3e-8)
        assert white[self.mask == 1].var().item() == pytest.approx(1, abs=1e-7)
        new_values = torch.tensor([[0.4, 0.1, -0.3, 0.9], [0.2, 0.3, 5.0, 5.0]], **DOUBLE)
        value_loss = losses.clipped_value(new_values, self.values, returns, 0.2)
        assert losses.masked_mean(value_loss, self.mask).item() == pytest.approx(
            0.21975012306432004, abs=1e-12
        )
        old = torch.tensor([[-1.0, -2, -0.5, -0.2], [-1.5, -0.7, -3, -3]], **DOUBLE)
        new = torch.tensor([[-0.7, -2.1, -0.9, -0.1], [-1.2, -1.0, -1, -1]], **DOUBLE)
        loss = losses.masked_mean(losses.clipped(new, old, white, 0.2, 0.2), self.mask)
        assert loss.item() == pytest.approx(0.11738281618974931, rel=1e-7)


def random_answers():
    """Return log-probabilities (4, 5) new, old and of a reference, advantages (4,) and a mask, in float64."""
    old = torch.randn(4, 5, **DOUBLE) - 2
    new, reference = old + 0.4 * torch.randn(4, 5, **DOUBLE), old + 0.3 * torch.randn(4, 5, **DOUBLE)
    mask = (torch.arange(5) < torch.tensor([5, 3, 1, 4])[:, None]).long()
    return new, old, reference, torch.randn(4, **DOUBLE), mask


@pytest.mark.parametrize("how", ["grpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_equals_the_grpo_loss_of_trl(how, beta):
    trl = pytest.importorskip("trl")
    new, old, reference, advantages, mask = random_answers()
    trainer = MagicMock(
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=beta,
        loss_type=how,
        epsilon_low=0.2,
        epsilon_high=0.3,
        current_gradient_accumulation_steps=1,
        max_completion_length=7,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
    )
    trainer.accelerator.num_processes = 1
    trainer.accelerator.reduce = lambda x, reduction: x
    trainer.accelerator.gather = lambda x: x
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (new, torch.zeros_like(new), None)
    inputs = {
        "prompt_ids": torch.zeros(4, 1, dtype=torch.long),
        "prompt_mask": torch.ones(4, 1, dtype=torch.long),
        "completion_ids": torch.zeros(4, 5, dtype=torch.long),
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    expected = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
    found = losses.clipped(new, old, advantages[:, None], 0.2, 0.3) + beta * losses.kl(new, reference)
    assert losses.normalize(found, mask, how, longest=7).item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("kind, smoothing", [("sigmoid", 0.0), ("ipo", 0.0), ("robust", 0.1)])
def test_equals_the_dpo_loss_of_trl(kind, smoothing):
    trl = pytest.importorskip("trl")
    logps, _, reference, _, _ = random_answers()
    lengths = torch.tensor([5, 3, 1, 4])
    tokens = (torch.arange(5) < lengths[:, None]).long()
    logps, reference = logps * tokens, reference * tokens
    outputs = MagicMock(log_probs=logps)
    outputs.entropy = outputs.mean_logits = torch.zeros(4, 5)
    outputs.is_top1 = torch.zeros(4, 5, dtype=torch.bool)
    trainer = MagicMock(
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=0.2,
        label_smoothing=smoothing,
        use_weighting=False,
        _total_train_tokens=0,
        _tp_size=1,
        _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
    )
    trainer.accelerator.gather = trainer.accelerator.gather_for_metrics = lambda x: x
    inputs = {
        "input_ids": torch.zeros(4, 6, dtype=torch.long),
        "attention_mask": torch.ones(4, 6, dtype=torch.long),
        "completion_mask": torch.cat([torch.zeros(4, 1, dtype=torch.long), tokens], 1),
        "ref_chosen_logps": reference.sum(1)[:2],
        "ref_rejected_logps": reference.sum(1)[2:],
    }
    expected = trl.DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    new, old = logps.sum(1), reference.sum(1)
    if kind == "ipo":
        new, old = new / lengths, old / lengths
        found = losses.ipo(new[:2], new[2:], old[:2], old[2:], 0.2)
    else:
        found = losses.dpo(new[:2], new[2:], old[:2], old[2:], 0.2, smoothing)
    if (
        kind == "robust"
    ):  # TRL has the unbiased form alone, which differs in the sign of one term and the scale
        margin = 0.2 * (new[:2] - old[:2] - new[2:] + old[2:])
        flipped = -torch.nn.functional.logsigmoid(-margin)
        found = (found - 2 * smoothing * flipped) / (1 - 2 * smoothing)
    assert found.mean().item() == pytest.approx(expected.item(), abs=1e-9)


FIXED = torch.tensor([[0.3, -1.2, 0.8], [-0.4, 0.5, 0.1]], **DOUBLE)
GRADIENTS = {
    "token_log_probabilities": lambda x: losses.token_log_probabilities(
        x[None], torch.tensor([[1, 0, 2]]), 0.7
    ),
    "entropy": lambda x: losses.entropy(x, 0.7),
    "dpo": lambda x: losses.dpo(x[0], x[1], *FIXED, beta=0.3, label_smoothing=0.1),
    "ipo": lambda x: losses.ipo(x[0], x[1], *FIXED, beta=0.3),
    "bradley_terry": lambda x: losses.bradley_terry(x[0], x[1]),
    "clipped": lambda x: losses.clipped(x, torch.zeros_like(x), torch.tensor([[1.0], [-1], [2]]), 0.2, 0.3),
    "k2": lambda x: losses.kl(x[0], x[1], "k2"),
    "k3": lambda x: losses.kl(x[0], x[1], "k3"),
    "clipped_value": lambda x: losses.clipped_value(x[0], *FIXED, 0.2),
    "grpo": lambda x: losses.normalize(x, torch.tril(torch.ones(3, 3)), "grpo", 3),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_equal_finite_differences(name):
    x = torch.randn(3, 3, **DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(GRADIENTS[name], x)


def test_the_gradient_at_ratio_one_is_that_of_the_policy_gradient():
    new, _, _, advantages, _ = random_answers()
    new.requires_grad_()
    losses.clipped(new, new.detach(), advantages[:, None], 0.2, 0.2).sum().backward()
    assert torch.equal(new.grad, -advantages[:, None].expand(4, 5))


def test_kl_estimators_meet_the_divergence():
    p, q = torch.randn(8, **DOUBLE).log_softmax(0), torch.randn(8, **DOUBLE).log_softmax(0)
    exact = (p.exp() * (p - q)).sum()
    for estimator in ("k1", "k3"):  # unbiased: their mean under p is exact
        assert (p.exp() * losses.kl(p, q, estimator)).sum().item() == pytest.approx(exact.item())
    assert (losses.kl(p, q, "k3") >= 0).all()


def test_advantages_are_within_a_group_and_not_over_the_batch():
    rewards = torch.tensor([0.0, 1.0, 10.0, 11.0])
    assert losses.group_advantages(rewards, 2, scale=False).tolist() == [-0.5, 0.5, -0.5, 0.5]


def test_a_group_of_equal_rewards_gives_no_signal():
    assert losses.group_advantages(torch.full((4,), 0.3), 4).tolist() == [0.0] * 4


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="sample at least 2"):
        losses.group_advantages(torch.ones(3), 1)


def test_padding_does_not_leak_into_advantages():
    rewards = torch.tensor([[0.0, 1.0, 0.0]])
    values = torch.tensor([[0.2, 0.4, 0.0]])
    mask = torch.tensor([[1, 1, 0]])
    clean = losses.gae(rewards, values, mask)
    rewards[:, 2], values[:, 2] = 5.0, -3.0
    assert all(torch.equal(a, b) for a, b in zip(clean, losses.gae(rewards, values, mask), strict=True))
    short = losses.gae(rewards[:, :2], values[:, :2], mask[:, :2])
    assert torch.equal(clean[0][:, :2], short[0]) and torch.equal(clean[1][:, :2], short[1])


def test_log_probabilities_follow_the_temperature():
    logits, ids = torch.randn(1, 3, 5, **DOUBLE), torch.tensor([[1, 4, 0]])
    expected = torch.distributions.Categorical(logits=logits / 0.5).log_prob(ids)
    assert torch.allclose(losses.token_log_probabilities(logits, ids, 0.5), expected)
    assert not torch.allclose(losses.token_log_probabilities(logits, ids, 1.0), expected)


def test_parts_of_a_batch_average_to_the_whole_by_their_weight():
    new, old, _, advantages, mask = random_answers()
    each = losses.clipped(new, old, advantages[:, None], 0.2, 0.2)
    for how in ("grpo", "dr_grpo", "dapo"):
        parts = [(each[i : i + 1], mask[i : i + 1]) for i in range(4)]
        weights = [losses.normalization_weight(part, how) for _, part in parts]
        means = [losses.normalize(loss, part, how, 7).item() for loss, part in parts]
        total = sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)
        assert total == pytest.approx(losses.normalize(each, mask, how, 7).item(), abs=1e-12)


ARMS = torch.tensor([0.1, 0.5, 0.9, 0.3])


def pull(policy: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the arms (N,) of a bandit that a policy of logits (4,) pulls, their log-probabilities and rewards."""
    arms = torch.multinomial(policy.detach().softmax(0), count, replacement=True)
    old = policy.detach().log_softmax(0)[arms]
    return arms, old, torch.bernoulli(ARMS[arms])


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_bandit_is_solved(algorithm):
    """The best of four arms pays in nine of ten pulls: a policy that found it has nearly all its probability there."""
    policy, critic = torch.zeros(4, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([policy, critic], lr=0.05)
    for _ in range(120):
        arms, old, rewards = pull(policy, 64)
        ones, value = torch.ones(64, 1), critic.detach().expand(64, 1)
        if algorithm == "grpo":
            advantages, returns = losses.group_advantages(rewards, 16)[:, None], rewards[:, None]
        else:
            advantages, returns = losses.gae(rewards[:, None], value, ones)
            advantages = losses.whiten(advantages, ones)
        for _ in range(2):
            new = policy.log_softmax(0)[arms]
            loss = losses.clipped(new[:, None], old[:, None], advantages, 0.2, 0.2).mean()
            loss = loss + losses.clipped_value(critic.expand(64, 1), value, returns, 0.2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert policy.softmax(0)[2] > 0.95
    if algorithm == "ppo":
        assert critic.item() == pytest.approx(0.9, abs=0.15)


def test_the_entropy_of_one_certain_id_is_zero():
    assert losses.entropy(torch.tensor([[0.0, -math.inf]])).item() == 0.0
