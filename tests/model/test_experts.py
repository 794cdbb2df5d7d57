"""Experts against a loop over tokens, and the router and its balance against transformers' Mixtral and DeepSeek-V3."""

import copy

import pytest
import torch
from torch.nn import functional as F

from model import GPTConfig, experts
from model.experts import Experts

KINDS = {
    "loss": {"expert_balance": "loss"},
    "bias, shared": {"expert_balance": "bias", "n_expert_shared": 1, "mlp": "swiglu"},
}


def layer(**changes):
    made = Experts(GPTConfig(**{"n_embd": 16, "n_head": 2, "n_inner": 24, "n_expert": 4, **changes}))
    if made.bias is not None:
        torch.nn.init.normal_(made.bias)
    return made


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_token_gets_the_weighted_sum_of_its_experts(kind):
    ours, x = layer(**kind), torch.randn(3, 5, 16)
    found = ours(x)
    for row, expected in zip(x.flatten(0, 1), found.flatten(0, 1), strict=True):
        _, weights, chosen = ours.route(row[None])
        parts = [w * ours.experts[e](row) for w, e in zip(weights[0], chosen[0].tolist(), strict=True)]
        shared = ours.shared(row) if ours.shared else 0
        assert weights.sum().item() == pytest.approx(1)
        torch.testing.assert_close(sum(parts) + shared, expected)


def test_the_balance_is_that_of_mixtral():
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    ours, x = layer().train(), torch.randn(3, 5, 16)
    ours(x)
    logits = ours.router(x.flatten(0, 1))
    torch.testing.assert_close(ours.guide, mixtral.load_balancing_loss_func((logits,), 4, 2))


def test_the_router_with_a_bias_is_the_gate_of_deepseek_v3():
    deepseek = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    sizes = {
        "hidden_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
    }
    gate = deepseek.DeepseekV3TopkRouter(deepseek.DeepseekV3Config(**sizes, routed_scaling_factor=1.0))
    ours, rows = layer(expert_balance="bias"), torch.randn(50, 16)
    gate.load_state_dict({"weight": ours.router.weight, "e_score_correction_bias": ours.bias.detach()})
    _, weights, chosen = gate(rows)
    _, our_weights, our_chosen = ours.route(rows)
    dense = [torch.zeros(50, 4).scatter(1, c, w) for c, w in ((chosen, weights), (our_chosen, our_weights))]
    torch.testing.assert_close(*dense)


def test_beyond_its_capacity_an_expert_drops_the_later_tokens_in_training_only():
    ours, x = layer(expert_capacity=1.0), torch.rand(8, 16)
    with torch.no_grad():  # positive inputs: all choose expert 0, then 1
        ours.router.weight.copy_(torch.tensor([2.0, 1.0, -1.0, -2.0])[:, None].expand(4, 16))
    whole, dropping = ours.eval()(x), ours.train()(x)
    assert ours.load.tolist() == [1, 1, 0, 0]
    assert ours.dropped == 0.5  # 16 choices; experts 0 and 1 take 4 each
    torch.testing.assert_close(dropping[:4], whole[:4])
    assert not dropping[4:].any()
    assert experts.figures(ours) == {"expert_load": 2.0, "expert_dropped": 0.5}
    ours.eval()(x)
    assert ours.dropped == 0


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_the_balance_moves_gradients_and_not_the_loss(tiny, batch, kind):
    gpt = tiny(n_expert=4, **kind).train()
    trained = gpt(*batch)[1]
    torch.testing.assert_close(trained, gpt.eval()(*batch)[1])
    target = gpt.h[0].mlp.router.weight if kind["expert_balance"] == "loss" else gpt.h[0].mlp.bias
    (gradient,) = torch.autograd.grad(trained, target)
    plain = torch.autograd.grad(gpt(*batch)[1], target, allow_unused=True)[0]
    assert plain is None or not torch.allclose(gradient, plain)
    copy.deepcopy(gpt.train())


@pytest.mark.parametrize("balance", ["loss", "bias"])
def test_balancing_evens_the_load(balance):
    ours, x = layer(expert_balance=balance).train(), torch.rand(200, 16)
    torch.nn.init.zeros_(ours.bias) if balance == "bias" else None
    with torch.no_grad():
        ours.router.weight[0] += 0.2  # inputs are positive: nearly all tokens choose expert 0
    ours(x)
    before, optimizer = experts.figures(ours)["expert_load"], torch.optim.Adam(ours.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        ours(x)
        sum(experts.balance(ours)).backward()
        optimizer.step()
    ours(x)
    assert before > 1.9 and experts.figures(ours)["expert_load"] < 1.3


def test_an_expert_that_nobody_chose_has_a_gradient_of_zero():
    ours = layer()
    with torch.no_grad():
        ours.router.weight.copy_(torch.tensor([2.0, 1.0, -1.0, -2.0])[:, None].expand(4, 16))
    F.mse_loss(ours(torch.rand(8, 16)), torch.zeros(8, 16)).backward()
    assert all(p.grad is not None and not p.grad.any() for p in ours.experts[3].parameters())
    assert all(p.grad.any() for p in ours.experts[0].parameters())
