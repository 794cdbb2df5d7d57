"""Tokens ahead: what they see, what they are judged by, and that nothing but training has them."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import kernels
from model.accounting import flops_per_token, mean_context, parameters
from model.ahead import AHEAD


def ahead_losses(gpt, idx, targets):
    """Return the loss of token i + 1 + k for k = 0, 1, …, each place written out."""
    hidden, losses = gpt.hidden(idx), []
    losses.append(F.cross_entropy(gpt.logits(hidden).flatten(0, 1), targets.flatten()))
    for depth, module in enumerate(gpt.ahead, 1):
        seen = torch.cat([targets[:, depth - 1 :], torch.zeros_like(targets[:, : depth - 1])], dim=1)
        hidden = module(hidden, gpt.wte(seen), None, None)
        logits = gpt.logits(hidden)[:, :-depth]
        losses.append(F.cross_entropy(logits.flatten(0, 1), targets[:, depth:].flatten()))
    return losses


def test_the_gradient_is_that_of_all_losses_and_the_value_that_of_the_next_token(tiny, batch):
    gpt = tiny(n_ahead=2).train()
    next_token, *later = ahead_losses(gpt, *batch)
    expected = torch.autograd.grad(next_token + AHEAD * sum(later) / 2, list(gpt.parameters()))
    loss = gpt(*batch)[1]
    torch.testing.assert_close(loss, next_token)
    found = torch.autograd.grad(loss, list(gpt.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_place_sees_no_token_that_it_predicts(tiny, batch):
    gpt, (idx, targets) = tiny(n_ahead=1).eval(), batch
    changed = targets.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 61
    hidden = gpt.hidden(idx)
    first, second = (gpt.ahead[0](hidden, gpt.wte(t), None, None) for t in (targets, changed))
    assert torch.equal(first[:, :9], second[:, :9])  # place 8 predicts target 9
    assert not torch.allclose(first[:, 9], second[:, 9])


def test_evaluation_and_generation_do_without(tiny, batch):
    gpt, plain = tiny(n_ahead=1).eval(), tiny().eval()
    plain.load_state_dict({k: v for k, v in gpt.state_dict().items() if not k.startswith("ahead")})
    assert torch.equal(gpt(*batch)[1], plain(*batch)[1])
    assert parameters(gpt.config)["tokens ahead"] == sum(p.numel() for p in gpt.ahead.parameters())


@pytest.mark.parametrize("depth", [1, 2])
def test_operations_of_training_are_counted(tiny, batch, depth):
    gpt, (idx, targets) = tiny(n_ahead=depth).train(), batch
    with kernels.use("torch"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        gpt(idx, targets, with_logits=False)[1].backward()
    masked = (2 + depth) * 4 * 32 * (32 - mean_context(gpt.config, 32))
    counted = counter.get_total_flops() / idx.numel()
    assert counted == pytest.approx(sum(flops_per_token(gpt.config, 32).values()) + 3 * masked)
