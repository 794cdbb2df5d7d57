"""The accounts against the thing itself: real parameters, torch's own count of operations, saved tensors."""

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import kernels
from basics import gpt as written_out
from kernels import reference
from model import GPT, GPTConfig
from model.__main__ import main
from model.accounting import (
    activations,
    flops_per_token,
    largest_batch,
    mean_context,
    memory,
    parameters,
    saved_bytes,
)


def test_parameters_by_part_are_those_of_the_model(tiny, variant):
    gpt = tiny(**variant)
    counts = parameters(gpt.config)
    assert counts["total"] == sum(p.numel() for p in gpt.parameters())
    assert counts["attention"] == sum(p.numel() for block in gpt.h for p in block.attn.parameters())
    assert counts["MLP"] == sum(p.numel() for block in gpt.h for p in block.mlp.parameters())
    assert counts["head"] == (0 if gpt.config.tied_head else 61 * 32)


def test_operations_equal_torchs_count_of_the_matrix_products(tiny, batch, variant):
    gpt, (idx, targets) = tiny(**variant), batch
    # torch's plain attention consists of products that the counter sees
    with kernels.use("torch"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        gpt(idx)
    config, tokens = gpt.config, idx.numel()
    masked = 4 * config.n_embd * (32 - mean_context(config, 32)) * config.n_layer  # torch counts these too
    assert counter.get_total_flops() / tokens == pytest.approx(
        flops_per_token(config, 32)["forward"] + masked
    )
    with kernels.use("torch"), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        gpt(idx, targets, with_logits=False)[1].backward()
    assert counter.get_total_flops() / tokens == pytest.approx(
        sum(flops_per_token(config, 32).values()) + 3 * masked
    )


@pytest.mark.parametrize("window", [None, 1, 4, 50])
def test_mean_context_is_the_mean_over_the_mask(window):
    expected = reference.seen(9, window).sum(1).float().mean().item()
    assert mean_context(GPTConfig(window=window), 9) == pytest.approx(expected)


def test_activations_are_to_the_byte_what_autograd_saves(tiny, variant, each_kernel):
    gpt, idx = tiny(**variant, n_layer=3).train(), torch.zeros(5, 32, dtype=torch.long)
    owned = {p.untyped_storage().data_ptr() for p in gpt.parameters()}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = gpt.hidden(idx)
    in_the_loss = hidden.nbytes + 4 * gpt.wte.weight.numel() + 2 * 4 * idx.numel() * 61
    counted = sum(activations(gpt.config, 5).values())
    assert counted == sum(storage.nbytes() for storage in saved.values()) + in_the_loss


def test_what_checkpointing_and_flash_save(chosen):
    config = GPTConfig.preset("tinystories")
    size = activations(config, 8)["blocks"]
    with torch.device("meta"):
        plain = written_out.GPT(written_out.GPTConfig(50257, 128, 6, 6, 384, dropout=0.1))
        owned = {p.untyped_storage()._cdata for p in plain.parameters()}
        idx = torch.zeros(8, 128, dtype=torch.long)
        kept = saved_bytes(lambda: plain(idx), owned)
    assert kept - size > config.n_layer * 4 * 8 * 6 * 128 * 128  # at least the weights, T × T
    checkpointed = dataclasses.replace(config, checkpoint_activations=True)
    assert activations(checkpointed, 8)["blocks"] < size / 4


def test_the_largest_batch_fits_and_one_more_does_not():
    config = GPTConfig.preset("gpt2")
    largest = largest_batch(config, 16)
    assert memory(config, largest).total <= 0.9 * 16e9 < memory(config, largest + 1).total
    assert largest_batch(GPTConfig.preset("gpt2-xl"), 8) == 0


def test_count_prints_every_table(capsys):
    main(["count", "quickstart", "--batch-size", "4", "--kernels", "torch"])
    text = capsys.readouterr().out
    for word in ("token embedding", "1,104,640", "MFLOP", "optimizer", "80 GB", "up to batch"):
        assert word in text


def test_count_counts_variants(capsys):
    main(["count", "quickstart", "n_expert=4", "mlp=relu2", "layers=aamm", "n_ahead=1", "--kernels", "torch"])
    text = capsys.readouterr().out
    config = GPTConfig.preset("quickstart", n_expert=4, mlp="relu2", layers="aamm", n_ahead=1)
    for name, count in parameters(config).items():
        assert (f"{count:,}" in text) and (name in text or not count)
    assert "state space" in text and "tokens ahead" in text


def test_count_reads_a_saved_config(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    GPT(GPTConfig.preset("quickstart", n_layer=1)).save_pretrained("[bold]")
    main(["count", "[bold]"])
    shown = capsys.readouterr().out
    assert "509,824" in shown
    assert shown.startswith("[bold], batch 8")  # a name is no markup


@pytest.mark.parametrize(
    "argv, message",
    [
        (["count", "gpt9"], "unknown preset 'gpt9'"),
        (["count", "gpt2", "--batch-size", "0"], "batch_size is 0"),
        (["count", "gpt2", "experts=8"], "'experts=8' changes no field of the config: give FIELD=VALUE"),
        (["count", "gpt2", "n_expert=8", "n_expert_active=9"], "n_expert_active 9 is more than n_expert 8"),
        (
            ["count", "modern", "kv_lora_rank=64", "n_kv_head=4"],
            "kv_lora_rank excludes n_kv_head: the heads share one latent",
        ),
        (["count", "quickstart", "layers=aam"], "layers 'aam' names 3 blocks, n_layer is 4"),
        (["count", "quickstart", "layers=aamm", "window=64"], "layers 'aamm' excludes a window (64)"),
        (["count", "gpt2", "--precision", "int4"], "int4"),
    ],
)
def test_mistakes_are_named(refused, argv, message):
    assert message in refused(main, *argv)
