"""Promises that hold for every variant of the GPT."""

import copy
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from model import GPT, GPTConfig
from model.gpt import Block, stream_dtype


def test_logits_for_all_positions_and_a_first_loss_of_guessing(tiny, batch, variant):
    gpt, (idx, targets) = tiny(**variant), batch
    logits, loss = gpt(idx)
    assert logits.shape == (3, 32, 61) and loss is None
    assert gpt(idx, targets)[1].item() == pytest.approx(math.log(61), abs=0.15)
    torch.testing.assert_close(gpt(idx, targets)[0], logits.detach())


def test_logits_may_be_asked_for_at_some_tokens_alone(tiny, batch, variant):
    gpt, (idx, targets) = tiny(**variant).eval(), batch
    wanted = targets % 3 == 0
    torch.testing.assert_close(gpt(idx, at=wanted)[0], gpt(idx)[0][wanted])


def test_later_tokens_change_no_bit_before_them(tiny, batch, variant, each_kernel):
    gpt, (idx, other) = tiny(**variant).eval(), batch
    for cut in (1, 9, 31):
        changed = torch.cat([idx[:, :cut], (other[:, cut:] + 1) % 61], dim=1)
        before, after = gpt(idx)[0], gpt(changed)[0]
        assert torch.equal(before[:, :cut], after[:, :cut])
        assert not torch.equal(before[:, cut:], after[:, cut:])


def test_a_windows_reach_is_the_window_in_each_layer(tiny, batch):
    gpt, idx = tiny(window=4, positions="none").eval(), batch[0]
    changed = idx.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 61
    differs = (gpt(idx)[0] != gpt(changed)[0]).any(-1).any(0)
    assert differs.nonzero().flatten().tolist() == list(range(7))  # two layers, each three tokens back


def test_every_parameter_is_reached_by_the_gradient(tiny, batch, variant):
    gpt = tiny(**variant)
    gpt(*batch)[1].backward()
    assert [name for name, p in gpt.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_fast_paths_equal_the_written_out(tiny, batch, variant, each_kernel, written_out):
    def loss_and_gradients():
        gpt = tiny(**variant)
        loss = gpt(*batch)[1]
        loss.backward()
        return loss, [p.grad for p in gpt.parameters()]

    (loss, gradients), (expected_loss, expected) = loss_and_gradients(), written_out(loss_and_gradients)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)


def test_dropout_is_for_training_only(tiny, batch, each_kernel):
    idx, gpt = batch[0], tiny(dropout=0.5)
    plain = tiny()(idx)[0]
    assert torch.equal(gpt.eval()(idx)[0], plain)
    gpt.train()
    assert not torch.equal(gpt(idx)[0], gpt(idx)[0])


def test_a_batch_can_be_overfitted(tiny, batch, variant):
    gpt, (idx, targets) = tiny(**variant), [t[:, :12] for t in batch]
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(80):
        optimizer.zero_grad()
        loss = gpt(idx, targets)[1]
        loss.backward()
        optimizer.step()
    assert gpt(idx, targets)[1].item() < 0.05


def test_a_state_dict_makes_the_same_model_again(tiny, batch, variant):
    gpt = tiny(**variant).eval()
    again = GPT(gpt.config).eval()
    assert not torch.equal(gpt(batch[0])[0], again(batch[0])[0])
    again.load_state_dict(copy.deepcopy(gpt.state_dict()))
    assert torch.equal(gpt(batch[0])[0], again(batch[0])[0])


def test_checkpointed_activations_give_the_same_gradients(tiny, batch, variant):
    gradients = []
    for checkpointed in (False, True):
        gpt = tiny(**variant, checkpoint_activations=checkpointed, dropout=0.2)
        torch.manual_seed(3)  # the recomputed dropout must drop the same values
        gpt(*batch)[1].backward()
        gradients.append([p.grad for p in gpt.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_near_float32(tiny, batch, variant, dtype, chosen):
    gpt = tiny(**variant)
    exact = gpt(*batch)[1]
    with torch.autocast("cpu", dtype):
        loss = gpt(*batch)[1]
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in gpt.parameters())


@pytest.mark.parametrize(
    "device, dtype, low, expected",
    [
        ("cuda", torch.float32, torch.bfloat16, torch.bfloat16),
        ("cuda", torch.float32, torch.float16, torch.float32),
        ("cuda", torch.float32, None, torch.float32),
        ("cuda", torch.float64, torch.bfloat16, torch.float64),
        ("cpu", torch.float32, torch.bfloat16, torch.float32),
        ("meta", torch.float32, torch.bfloat16, torch.float32),
    ],
)
def test_the_stream_is_bfloat16_under_a_gpus_autocast_to_it(device, dtype, low, expected, monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: low is not None)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: low)
    with FakeTensorMode():
        assert stream_dtype(torch.empty(2, 3, dtype=dtype, device=device)) == expected


def test_a_stream_in_bfloat16_as_on_a_gpu_stays_near_float32(tiny, batch, variant, chosen, monkeypatch):
    gpt = tiny(**variant)
    exact = gpt(*batch)[1]
    exact_grads = torch.autograd.grad(exact, list(gpt.parameters()))
    monkeypatch.setattr("model.gpt.stream_dtype", lambda x: torch.bfloat16)
    seen = []
    gpt.h[-1].register_forward_hook(lambda block, inputs, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = gpt(*batch)[1]
    assert seen == [torch.bfloat16]
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    grads = torch.autograd.grad(loss, list(gpt.parameters()))
    assert all(g.dtype == torch.float32 for g in grads)
    difference, size = (
        sum(x.square().sum() for x in xs).sqrt()
        for xs in ([a - b for a, b in zip(grads, exact_grads, strict=True)], exact_grads)
    )
    assert difference < 0.05 * size


def test_initial_weights_have_gpt2s_spread():
    config = GPTConfig(vocab_size=500, block_size=64, n_layer=8, n_head=4, n_embd=128)
    gpt = GPT(config)
    for name, parameter in gpt.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif parameter.dim() == 2:
            expected = 0.02 / math.sqrt(2 * 8) if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
    assert gpt.lm_head.weight is gpt.wte.weight


@pytest.mark.parametrize("place", ["pre", "post"])
def test_norms_are_where_the_config_says(place):
    block = Block(GPTConfig(n_embd=16, n_head=2, norm_place=place)).eval()
    x = torch.randn(2, 5, 16)
    if place == "pre":
        middle = x + block.attn(block.ln_1(x))
        expected = middle + block.mlp(block.ln_2(middle))
    else:
        middle = block.ln_1(x + block.attn(x))
        expected = block.ln_2(middle + block.mlp(middle))
    torch.testing.assert_close(block(x), expected)


def test_ignored_targets_do_not_count(tiny, batch):
    gpt, (idx, targets) = tiny(), batch
    ignored = targets.clone()
    ignored[:, 10:] = -100
    torch.testing.assert_close(gpt(idx, ignored)[1], gpt(idx[:, :10], targets[:, :10])[1])


@pytest.mark.parametrize(
    "idx, targets, message",
    [
        (torch.zeros(1, 33, dtype=torch.long), None, "33 tokens is longer than block_size 32"),
        (torch.tensor([[0, 61, -1]]), None, "idx holds ids outside the vocabulary of 61: -1, 61"),
        (torch.tensor([[0, 1]]), torch.tensor([[-100, 99]]), "targets holds ids .* of 61: 99"),
        (torch.tensor([0, 1]), None, r"must both be \(batch, tokens\): idx is \(2,\)"),
        (torch.tensor([[0, 1]]), torch.tensor([[0]]), r"idx is \(1, 2\), targets \(1, 1\)"),
    ],
)
def test_bad_input_is_named(tiny, idx, targets, message):
    with pytest.raises(ValueError, match=message):
        tiny()(idx, targets)
