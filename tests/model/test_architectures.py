"""Promises that hold for every architecture, those whose last bits depend on the batch included."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import kernels
from model import GPT
from model.accounting import flops_per_token, mean_context, memory, parameters, per_key
from model.cache import KVCache
from model.generate import generate_batch, stream
from model.pack import pack

ARCHITECTURES = {
    "experts": {"n_expert": 4, "mlp": "relu2"},
    "experts, bias": {"n_expert": 4, "expert_balance": "bias", "n_expert_shared": 1, "n_expert_active": 1},
    "state space": {"layers": "mm", "positions": "none", "ssm_state": 8, "ssm_head": 16},
    "hybrid": {
        "n_layer": 3,
        "layers": "mam",
        "norm": "rmsnorm",
        "ssm_state": 8,
        "ssm_head": 32,
        "n_expert": 4,
    },
    "ahead": {"n_ahead": 2, "positions": "rotary", "value_embedding": True, "n_expert": 4},
    "latent": {"positions": "rotary", "kv_lora_rank": 12},
    "latent, narrow": {
        "positions": "rotary",
        "kv_lora_rank": 8,
        "q_lora_rank": 20,
        "rope_dim": 6,
        "window": 7,
    },
}


@pytest.fixture(params=ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def architecture(request):
    return request.param


def test_later_tokens_change_nothing_before_them(tiny, batch, architecture, chosen):
    gpt, (idx, other) = tiny(**architecture).eval(), batch
    for cut in (1, 9, 31):
        changed = torch.cat([idx[:, :cut], (other[:, cut:] + 1) % 61], dim=1)
        before, after = gpt(idx)[0], gpt(changed)[0]
        torch.testing.assert_close(before[:, :cut], after[:, :cut])
        assert not torch.allclose(before[:, cut:], after[:, cut:], atol=1e-3)


def test_cached_steps_equal_the_whole_forward_pass(tiny, batch, architecture, chosen):
    """Of rows that are at different positions, too."""
    gpt, idx = tiny(**architecture).eval(), batch[0]
    cache, lengths = KVCache(gpt, rows=3, length=32), [20, 7, 13]
    with torch.no_grad():
        whole = gpt(idx)[0]
        contexts = [row[:length].tolist() for row, length in zip(idx, lengths, strict=True)]
        found = cache.read(contexts, [0, 0, 0], range(3))
        for step in range(12):
            expected = torch.stack([whole[row, length + step - 1] for row, length in enumerate(lengths)])
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            places = [length + step for length in lengths]
            contexts = [[idx[row, place].item()] for row, place in enumerate(places)]
            found = cache.read(contexts, places, range(3))


def test_rows_of_a_batch_say_what_each_says_alone_past_the_context_too(tiny, architecture):
    gpt, prompts = tiny(**architecture), [[5], [7, 8, 9, 10], list(range(30))]
    together = generate_batch(gpt, prompts, 40, temperature=0.9, seed=11)
    assert together == [list(stream(gpt, p, 40, temperature=0.9, seed=11 + i)) for i, p in enumerate(prompts)]


def test_it_comes_back_from_its_files_as_it_was(tiny, batch, tmp_path, architecture):
    gpt = tiny(**architecture).eval()
    gpt.save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path)
    assert again.config == gpt.config
    assert torch.equal(again(batch[0])[0], gpt(batch[0])[0])


def test_parameters_and_operations_are_counted(tiny, batch, architecture):
    gpt, (idx, _) = tiny(**{**architecture, "n_ahead": None}).eval(), batch
    config = gpt.config
    assert parameters(config)["total"] == sum(p.numel() for p in gpt.parameters())
    with kernels.use("torch"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        gpt(idx)
    hidden = config.pattern.count("a") * (32 - mean_context(config, 32))
    masked = hidden * per_key(config)  # torch counts these too
    counted = counter.get_total_flops() / idx.numel()
    assert counted == pytest.approx(flops_per_token(config, 32)["forward"] + masked)
    assert memory(config, 4).activations > 0


def test_checkpointed_activations_give_the_same_gradients(tiny, batch, architecture):
    gradients = []
    for checkpointed in (False, True):
        gpt = tiny(**architecture, checkpoint_activations=checkpointed).train()
        gpt(*batch)[1].backward()
        gradients.append([p.grad for p in gpt.parameters()])
    torch.testing.assert_close(*gradients)


def test_it_learns_a_batch_under_autocast(tiny, batch, architecture):
    gpt, (idx, targets) = tiny(**architecture).train(), [t[:, :12] for t in batch]
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(60):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = gpt(idx, targets)[1]
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in gpt.parameters())
        optimizer.step()
    assert gpt.eval()(idx, targets)[1].item() < 0.3


def test_packed_it_computes_the_same(tiny, batch, architecture):
    gpt = tiny(**architecture).eval()
    with torch.no_grad():
        torch.testing.assert_close(pack(gpt)(batch[0])[0], gpt(batch[0])[0], rtol=1e-4, atol=1e-5)
