"""GPTConfig: presets, and one message that lists everything wrong."""

import dataclasses

import pytest
import tyro

from model import PRESETS, GPTConfig
from model.accounting import parameters


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid(name):
    assert GPTConfig.preset(name).block_size >= 128


@pytest.mark.parametrize(
    "name, millions",  # GPT-2's as published with its weights; the others by hand
    [
        ("gpt2", 124.4),
        ("gpt2-medium", 354.8),
        ("gpt2-large", 774.0),
        ("gpt2-xl", 1557.6),
        ("quickstart", 1.105),
    ],
)
def test_presets_have_the_published_number_of_parameters(name, millions):
    assert parameters(GPTConfig.preset(name))["total"] / 1e6 == pytest.approx(millions, rel=1e-3)


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown preset 'gpt5': choose one of quickstart, tinystories"):
        GPTConfig.preset("gpt5")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"n_embd": 100}, "n_embd 100 is not divisible by n_head 12"),
        ({"n_kv_head": 5}, "n_head 12 is not divisible by n_kv_head 5"),
        ({"n_layer": 0}, "n_layer is 0, must be a whole number of at least 1"),
        ({"window": -1}, "window is -1"),
        ({"vocab_size": None}, "vocab_size is None, must be a whole number of at least 1"),
        ({"n_head": True}, "n_head is True, must be a whole number of at least 1"),
        ({"bias": "no"}, "bias is 'no', must be true or false"),
        ({"dropout": 1.0}, "dropout is 1.0, must be in"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"norm_eps": float("inf")}, "norm_eps is inf"),
        ({"logit_softcap": 0.0}, "logit_softcap is 0.0, must be a number above 0"),
        ({"n_expert": 2, "n_expert_active": 3}, "n_expert_active 3 is more than n_expert 2"),
        ({"expert_capacity": 1.5}, "n_expert_shared and expert_capacity need an n_expert"),
        (
            {"kv_lora_rank": 8, "n_kv_head": 6, "positions": "rotary"},
            "kv_lora_rank excludes n_kv_head: the heads share",
        ),
        ({"kv_lora_rank": 8}, "kv_lora_rank needs rotary positions, positions is 'learned'"),
        ({"kv_lora_rank": 8, "positions": "rotary", "qk_norm": True}, "kv_lora_rank excludes qk_norm"),
        ({"kv_lora_rank": 8, "positions": "rotary", "rope_dim": 5}, "even head size, rope_dim is 5"),
        ({"rope_dim": 8}, "rope_dim needs a kv_lora_rank"),
        ({"layers": "aam", "n_layer": 4}, "layers 'aam' names 3 blocks, n_layer is 4"),
        ({"layers": "aab", "n_layer": 3}, "layers is 'aab', must be letters a and m"),
        ({"layers": "am", "n_layer": 2, "window": 8}, r"layers 'am' excludes a window \(8\)"),
        ({"layers": "mm", "n_layer": 2, "n_expert": 4}, "layers 'mm' has no attention, which n_expert needs"),
        ({"layers": "m", "n_layer": 1, "ssm_head": 100}, "2 n_embd 1536 is not divisible by ssm_head 100"),
        ({"positions": "alibi"}, "positions is 'alibi', must be one of learned, sinusoidal, rotary, none"),
        ({"n_embd": 36, "positions": "rotary"}, "even head size, n_embd / n_head is 3"),
        ({"n_embd": 7, "n_head": 7, "positions": "sinusoidal"}, "even n_embd, not 7"),
        ({"n_embd": 0, "n_head": 0, "dropout": 2.0}, "n_head is 0.*n_embd is 0.*dropout is 2.0"),
    ],
)
def test_impossible_configs_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**fields)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GPTConfig().n_layer = 3


def test_every_field_is_a_flag_with_help(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(GPTConfig, args=["--help"])
    text = capsys.readouterr().out
    for field in dataclasses.fields(GPTConfig):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "Number of token ids." in text
    assert tyro.cli(GPTConfig, args=["--window", "7", "--no-bias"]) == GPTConfig(window=7, bias=False)
