"""Presets, flags and the saved configuration."""

import dataclasses
import math
import re
from pathlib import Path

import pytest

from model import GPTConfig
from training import config as cfg


def flags(corpus, *more: str) -> list[str]:
    return ["--data", str(corpus), *more]


def test_flags_go_over_the_preset_and_the_vocabulary_follows_the_data(corpus):
    config = cfg.parse_config(flags(corpus, "--steps", "7", "--n-layer", "2"))
    assert (config.steps, config.model.n_layer) == (7, 2)
    assert config.model.n_embd == GPTConfig.preset("quickstart").n_embd
    assert config.model.vocab_size == 384
    assert cfg.parse_config(flags(corpus, "--vocab-size", "512")).model.vocab_size == 512


@pytest.mark.parametrize("path", sorted(cfg.PRESETS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_preset_is_valid_and_its_batch_divides(path):
    config = cfg.read_config(path)
    assert config.accumulation >= 1


def test_a_preset_of_ones_own(corpus, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('steps = 5\nlearning_rate = 1\n[model]\npreset = "quickstart"\nn_layer = 1\n')
    config = cfg.parse_config(flags(corpus, "--preset", str(path)))
    assert (config.steps, config.learning_rate, config.model.n_layer) == (5, 1, 1)
    assert config.run_directory.name == "mine"


@pytest.mark.parametrize("attention", ["torch", "sdpa", "fused"])
def test_files_of_earlier_versions_are_read_without_their_choice_of_kernels(tiny, tmp_path, attention):
    """It chose who computes, not what: --kernels does that now."""
    cfg.save_config(tiny)
    path = tiny.run / "config.toml"
    path.write_text(path.read_text() + f'attention = "{attention}"\n')  # [model] is the last table
    assert cfg.read_config(path) == tiny


def test_the_saved_configuration_reads_back_equal(tiny):
    odd = dataclasses.replace(tiny, grad_clip=math.inf, data=Path('tokens/a "b" \\ 🦔'))
    for config in (tiny, odd):
        cfg.save_config(config)
        assert cfg.read_config(tiny.run / "config.toml") == config


def test_a_step_takes_the_whole_micro_batches_that_fit(tiny):
    config = dataclasses.replace(tiny, batch_tokens=900, micro_batch=8)  # 8 windows of 32 tokens
    assert (config.accumulation, config.step_tokens) == (3, 768)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("stepz = 5", "unknown field 'stepz': did you mean 'steps'?"),
        ("steps = 'many'", "steps is 'many', not an int"),
        ("steps = true", "steps is True, not an int"),
        ("[model]\nn_layers = 5", "unknown field 'n_layers': did you mean 'n_layer'?"),
        ("[model]\npreset = 'gpt9'", "gpt9"),
        ("[model]\nattention = 'flash'", "unknown field 'attention'"),
        ("kernels = 'sdpa'", "kernels is 'sdpa', not 'auto' or 'torch' or 'fused' or 'emulated'"),
        ("model = 5", "must be a table"),
        ("steps = ", "not valid TOML"),
    ],
)
def test_a_preset_with_a_mistake_is_refused(tmp_path, text, complaint):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint.replace("?", r"\?")):
        cfg.read_config(path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"beta2": 1.0}, "beta2 is 1.0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"batch_tokens": 100}, "less than one micro_batch of 8 x block_size 32 = 256"),
        ({"resume": True, "overwrite": True}, "contradict"),
    ],
)
def test_values_that_cannot_work_are_refused(tiny, change, complaint):
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(tiny, **change)


@pytest.mark.parametrize(
    "unused",
    [
        "--optimizer fused --muon-learning-rate 0.1",
        "--schedule cosine --decay-share 0.5",
        "--schedule constant --final-learning-rate 0.1",
    ],
)
def test_a_flag_that_nothing_reads_is_refused(corpus, unused):
    with pytest.raises(ValueError, match=r"has no effect with --(optimizer|schedule)"):
        cfg.parse_config(flags(corpus, *unused.split()))
    cfg.parse_config(flags(corpus, *unused.split()[:2]))


def test_help_is_short_and_help_all_is_whole(corpus, capsys):
    shown = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stop:
            cfg.parse_config(flags(corpus, flag))
        assert stop.value.code == 0
        shown[flag] = set(
            re.findall(r"^(?:[│|] )? *(--[a-z][a-z0-9-]*)", capsys.readouterr().out, flags=re.MULTILINE)
        )
    everyday = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(cfg.Everyday)}
    assert shown["--help"] == everyday and len(everyday) == 15
    settings = [*dataclasses.fields(cfg.TrainConfig), *dataclasses.fields(GPTConfig)]
    assert shown["--help-all"] == {f"--{f.name.replace('_', '-')}" for f in settings if f.name != "model"}


def test_packed_documents_need_layers_that_can_keep_them_apart():
    model = GPTConfig(block_size=64, n_layer=2, n_head=2, n_embd=64, layers="am", positions="none")
    with pytest.raises(ValueError, match="layers of plain attention only: the model has layers"):
        cfg.TrainConfig(model=model, batches="packed")
