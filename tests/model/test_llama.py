"""Llama's layouts in: the logits of transformers' own model, of its files and of llama2.c's."""

import json
import struct

import numpy as np
import pytest
import torch

from model import GPT, layouts

transformers = pytest.importorskip("transformers")


def llama(**changes):
    settings = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        **changes,
    }  # fmt: skip
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return theirs


def assert_same(ours, theirs):
    ids = torch.randint(0, 97, (3, 20))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids)[0], theirs(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": True}, {"rope_theta": 500000.0}, {"num_key_value_heads": 4}]
)
def test_a_directory_of_transformers_is_read(tmp_path, changes):
    theirs = llama(**changes)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same(GPT.from_pretrained(tmp_path), theirs)


def test_what_we_write_as_a_llama_we_read(tiny, tmp_path):
    ours = tiny(
        norm="rmsnorm", positions="rotary", mlp="swiglu", bias=False, n_kv_head=2, rope_theta=777.0
    ).eval()
    layouts.save(tmp_path, ours.config, ours.state_dict())
    again = GPT.from_pretrained(tmp_path)
    assert again.config.rope_theta == 777.0
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


MISTAKES = {
    "a scaled rope": ({"rope_scaling": {"factor": 8.0}}, "rope_scaling="),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act=gelu"),
    "biases": ({"attention_bias": True}, "attention_bias=True"),
    "wide heads": ({"head_dim": 64}, "head_dim=64"),
    "no width": ({"hidden_size": ...}, "it has no hidden_size"),
}


@pytest.mark.parametrize("changes, message", MISTAKES.values(), ids=MISTAKES)
def test_what_ours_does_not_compute_is_refused(tmp_path, changes, message):
    llama().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text()) | changes
    content = {name: value for name, value in content.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(tmp_path)


def to_llama2c(theirs, path):
    """Write a model as llama2.c's export.py does (version 0): rotary pairs side by side, each array for all layers."""
    config, state = theirs.config, theirs.state_dict()
    size = config.hidden_size // config.num_attention_heads

    def turned(weight):
        return weight.view(-1, 2, size // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)

    def layers(name, change=lambda weight: weight):
        return [change(state[f"model.layers.{i}.{name}.weight"]) for i in range(config.num_hidden_layers)]

    arrays = [
        state["model.embed_tokens.weight"], *layers("input_layernorm"), *layers("self_attn.q_proj", turned),
        *layers("self_attn.k_proj", turned), *layers("self_attn.v_proj"), *layers("self_attn.o_proj"),
        *layers("post_attention_layernorm"), *layers("mlp.gate_proj"), *layers("mlp.down_proj"),
        *layers("mlp.up_proj"), state["model.norm.weight"],
        torch.zeros(config.max_position_embeddings * size),
        *([] if config.tie_word_embeddings else [state["lm_head.weight"]]),
    ]  # fmt: skip
    head = struct.pack(
        "<7i", config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads,
        config.num_key_value_heads, config.vocab_size * (1 if config.tie_word_embeddings else -1),
        config.max_position_embeddings,
    )  # fmt: skip
    path.write_bytes(head + b"".join(array.numpy().astype("<f4").tobytes() for array in arrays))


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_of_llama2c_is_read(tmp_path, tied):
    theirs = llama(tie_word_embeddings=tied, rms_norm_eps=1e-5)
    to_llama2c(theirs, tmp_path / "model.bin")
    assert_same(GPT.from_pretrained(tmp_path / "model.bin"), theirs)


def test_a_damaged_file_of_llama2c_is_refused(tmp_path):
    path = tmp_path / "model.bin"
    to_llama2c(llama(), path)
    whole = path.read_bytes()
    for damaged, message in (
        (whole[:-4], "it has .* bytes, its head says"),
        (b"abc", "no model of llama2.c"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            GPT.from_pretrained(path)
    path.write_bytes(np.zeros(7, "<i4").tobytes())
    with pytest.raises(ValueError, match=r"no model of llama2\.c: GPTConfig"):
        GPT.from_pretrained(path)
