"""Variants under the names of transformers' models: its code computes our logits."""

import json

import pytest
import torch

from model import layouts

transformers = pytest.importorskip("transformers")

LLAMA = {"norm": "rmsnorm", "positions": "rotary", "mlp": "swiglu", "bias": False, "n_inner": 48}
LAYOUTS = {
    "llama": LLAMA,
    "qwen3": {**LLAMA, "qk_norm": True, "n_kv_head": 2, "tied_head": False},
    "mixtral": {**LLAMA, "n_expert": 4, "n_kv_head": 2},
    "deepseek_v3": {**LLAMA, "kv_lora_rank": 12, "q_lora_rank": 20},
    "mamba2": {
        "norm": "rmsnorm",
        "positions": "none",
        "bias": False,
        "layers": "mm",
        "ssm_state": 8,
        "ssm_head": 16,
    },
    "deepseek_v3, experts": {
        **LLAMA,
        "kv_lora_rank": 12,
        "n_expert": 4,
        "expert_balance": "bias",
        "n_expert_shared": 1,
        "tied_head": False,
    },
}


def scattered(gpt):
    """Return the model with all its parameters far from their first values."""
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return gpt.eval()


@pytest.mark.parametrize("name", LAYOUTS)
def test_transformers_computes_our_logits(tiny, batch, tmp_path, name):
    ours = scattered(tiny(**LAYOUTS[name]))
    layouts.save(tmp_path, ours.config, ours.state_dict())
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert theirs.config.model_type == name.partition(",")[0]
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = theirs.eval()(batch[0]).logits
    torch.testing.assert_close(ours(batch[0])[0], expected, rtol=1e-5, atol=1e-5)


def test_what_no_model_of_transformers_computes_has_no_layout(tiny):
    for change in ({"window": 4}, {"value_embedding": True}, {"positions": "none"}, {"bias": True}):
        assert layouts.layout(tiny(**{**LLAMA, **change}).config) is None


def test_the_export_command_takes_the_layout(babble, tiny, tmp_path, capsys):
    from model import GPT
    from model.__main__ import main

    vocab_size = GPT.from_pretrained(babble / "best").config.vocab_size
    gpt = tiny(**LLAMA, vocab_size=vocab_size)
    gpt.save_pretrained(tmp_path / "run" / "best")
    (tmp_path / "run" / "tokenizer.json").write_bytes((babble / "tokenizer.json").read_bytes())
    main(["export", str(tmp_path / "run"), str(tmp_path / "out")])
    assert "for transformers, as a llama" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert content["model_type"] == "llama" and content["eos_token_id"] is not None
    assert (tmp_path / "out" / "tokenizer_config.json").exists()
