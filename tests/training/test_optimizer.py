"""Our AdamW against torch's, the decay groups, and clipping against torch's."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from model import GPT
from training import optimizer


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 11))


def train(model: nn.Module, step: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for i in range(steps):
        ids = torch.randint(11, (4, 6), generator=generator)
        for group in step.param_groups:
            group["lr"] = 1e-2 * (1 + i % 3)  # the rate changes from step to step, as in a schedule
        step.zero_grad()
        nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        step.step()


def our_adamw(model: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    groups = optimizer.parameter_groups(model.parameters(), weight_decay)
    return optimizer.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_our_adamw_equals_torchs(weight_decay):
    ours, theirs = small_model(), small_model()
    train(ours, our_adamw(ours, weight_decay), steps=50)
    train(
        theirs,
        torch.optim.AdamW(
            optimizer.parameter_groups(theirs.parameters(), weight_decay), lr=1e-2, betas=(0.9, 0.95)
        ),
        50,
    )
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_weights_without_a_gradient_stay():
    model = small_model()
    model[4].weight.grad = None
    before = copy.deepcopy(model.state_dict())
    our_adamw(model, 0.1).step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_closure_is_called_with_gradients_on():
    model = small_model()

    def closure() -> torch.Tensor:
        loss = model(torch.arange(4)).square().mean()
        loss.backward()
        return loss

    assert our_adamw(model, 0.0).step(closure).requires_grad


def test_only_matrices_decay():
    decayed, spared = optimizer.parameter_groups(small_model().parameters(), 0.1)
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    assert [tuple(p.shape) for p in decayed["params"]] == [(11, 8), (16, 8), (11, 16)]
    assert all(p.dim() == 1 for p in spared["params"])
    assert len(spared["params"]) == 4


@pytest.mark.parametrize("limit", [0.01, 1e6, 0.0])
def test_clipping_equals_torchs(limit):
    ours, theirs = small_model(), small_model()
    for model in (ours, theirs):
        model(torch.arange(11)).square().sum().backward()
    norm = optimizer.clip_gradient(list(ours.parameters()), limit)
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), limit or float("inf"))
    torch.testing.assert_close(norm, expected)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.parametrize("kind", ["fused", "ours", "muon"])
def test_every_parameter_has_one_optimizer_and_its_share_of_the_rate(tiny, kind):
    config = dataclasses.replace(tiny, optimizer=kind, learning_rate=0.01, muon_learning_rate=0.02)
    model = GPT(config.model)
    optimizers = optimizer.make_optimizers(model, config, torch.float32)
    optimizer.set_learning_rate(optimizers, 0.005)  # half way down the schedule
    rates = {id(p): g["lr"] for each in optimizers for g in each.param_groups for p in g["params"]}
    assert sum(len(g["params"]) for each in optimizers for g in each.param_groups) == len(
        list(model.parameters())
    )
    for name, parameter in model.named_parameters():
        by_muon = kind == "muon" and name.startswith("h.") and parameter.dim() == 2
        assert rates[id(parameter)] == pytest.approx(0.01 if by_muon else 0.005), name


def test_a_process_whose_share_holds_no_matrix_has_a_muon_that_moves_nothing(tiny):
    config = dataclasses.replace(tiny, optimizer="muon")
    model = GPT(config.model)
    shares = ({id(model.wte.weight)}, {id(model.h[0].attn.c_proj.weight)})
    for share in shares:
        optimizers = optimizer.make_optimizers(model, config, torch.float32, share)
        held = [id(p) for each in optimizers for group in each.param_groups for p in group["params"]]
        assert held == list(share)
        for each in optimizers:
            each.step()
