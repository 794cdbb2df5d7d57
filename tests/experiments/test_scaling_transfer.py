"""µP: the rules of Yang et al. 2022 (table 8), and its coordinate check: changes that do not grow with the width."""

import math

import pytest
import torch

from data.prepare import Prepare, prepare
from experiments.__main__ import main
from experiments.scaling import transfer
from model import GPT, GPTConfig
from training import optimizer
from training.config import TrainConfig

SMALL = {"vocab_size": 64, "block_size": 16, "n_layer": 2, "n_head": 2}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer")
    text = folder / "text.txt"
    text.write_text("".join(f"{n} times {n + 1} is {n * (n + 1)}.\n\n" for n in range(3000)))
    prepare(
        Prepare(
            source=(f"text:{text}",),
            vocab_size=300,
            out=folder / "tokens",
            split_documents="line",
            val_fraction=0.1,
        )
    )
    return folder / "tokens"


def test_at_the_width_of_the_rates_nothing_changes():
    models = []
    for mup_width in (None, 32):
        torch.manual_seed(0)
        models.append(GPT(GPTConfig(**SMALL, n_embd=32, mup_width=mup_width)))
    ids = torch.arange(32).view(2, 16)
    assert torch.equal(models[0](ids)[0], models[1](ids)[0])


def test_the_rules_of_the_paper_for_adam():
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(**SMALL, n_embd=256, mup_width=32))
    config = TrainConfig(model=gpt.config, optimizer="fused")
    groups = optimizer.make_optimizers(gpt, config, torch.float32)[0].param_groups
    scales = {id(p): group["scale"] for group in groups for p in group["params"]}
    assert set(scales) == {id(p) for p in gpt.parameters()}
    for name, parameter in gpt.named_parameters():
        hidden = parameter.dim() == 2 and name.startswith("h.")
        assert scales[id(parameter)] == (1 / 8 if hidden else 1)
        if parameter.dim() == 2:
            std = 0.02 * (math.sqrt(1 / 8) if hidden else 1) * (0.5 if name.endswith("c_proj.weight") else 1)
            assert parameter.std().item() == pytest.approx(std, rel=0.05)
    x = torch.randn(1, 8, 256)
    q, k, v = gpt.h[0].attn.c_attn(x).view(1, 8, 3, 2, 128).transpose(1, 3).unbind(2)  # 3 × (B, H, T, D)
    # 1/d in place of 1/sqrt(d), equal to it at the width of the rates, where d is 16
    scale = math.sqrt(16) / 128
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    expected = gpt.h[0].attn.c_proj(expected.transpose(1, 2).flatten(2))  # (B, H, T, D) -> (B, T, C)
    torch.testing.assert_close(gpt.h[0].attn(x), expected)
    ids = torch.arange(16)[None]
    seen = []
    gpt.ln_f.register_forward_hook(lambda norm, inputs, output: seen.append(output))
    torch.testing.assert_close(gpt(ids)[0], gpt.lm_head(seen[0]) / 8)


def test_with_mup_changes_do_not_grow_with_the_width(tokens, tmp_path):
    options = transfer.Transfer(
        data=tokens, out=tmp_path, widths=(32, 256), rates=(2e-3, 4e-3, 8e-3), seeds=1
    )
    slopes = {}
    for name, mup_width in (("standard", None), ("µP", 32)):
        changes = transfer.coordinates(transfer.grid(options, mup_width))["logits"]
        slopes[name] = math.log(changes[256][-1] / changes[32][-1]) / math.log(8)
    assert abs(slopes["µP"]) < 0.25 < 0.5 < slopes["standard"]


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--widths", "64", "32"], "--widths (64, 32): give at least 2 values in rising order"),
        (["--rates", "1e-3", "2e-3"], "--rates (0.001, 0.002): give at least 3 values in rising order"),
    ],
)
def test_bad_grids_are_refused(flags, fault, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["scaling", "transfer", "tokens", *flags])
    assert exit.value.code == 2
    assert fault in capsys.readouterr().err.replace("\n", " ")


def test_mup_excludes_what_it_has_no_rules_for():
    with pytest.raises(ValueError, match="mup_width excludes n_expert"):
        GPTConfig(**SMALL, n_embd=32, mup_width=16, n_expert=4)
