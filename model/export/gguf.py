"""GGUF, the format of llama.cpp, Ollama and LM Studio: one file with the weights, the tokenizer and the chat template.

Three of llama.cpp's architectures compute what a model here does: gpt2 (LayerNorm, learned positions, GELU), llama
(RMSNorm, rotary positions, SwiGLU, with or without Mixtral's experts) and qwen3 (the same with normed queries and
keys). The `gguf` package writes the file; its fields are described in
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from common.files import atomic, read_json
from model import layouts
from model.config import GPTConfig
from model.pretrained import END_OF_TEXT, is_gpt2

Precision = Literal["f32", "f16", "q8_0"]
BLOCK = 32  # numbers that share a scale in q8_0

# Ends of our names after h.N, and llama.cpp's after blk.N.
NAMES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "attn.q_norm": "attn_q_norm",
    "attn.k_norm": "attn_k_norm",
    "mlp.c_gate": "ffn_gate",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "mlp.router": "ffn_gate_inp",
}
# llama.cpp's names for layouts of model.layouts.
ARCHITECTURES = {"llama": "llama", "mixtral": "llama", "qwen3": "qwen3"}
OUTER = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output"}
# The split patterns that llama.cpp knows, by the regular expression in tokenizer.json, and its name for each.
LLAMA3 = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s"
)
HF_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = dict.fromkeys((LLAMA3, HF_LLAMA3), "llama-bpe")
PATTERNS |= {text.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2" for text in (LLAMA3, HF_LLAMA3)}


def architecture(config: GPTConfig) -> str:
    """Return which of llama.cpp's architectures computes this model; ValueError if none does.

    >>> architecture(GPTConfig.preset("gpt2")), architecture(GPTConfig.preset("modern"))
    ('gpt2', 'llama')
    """
    if is_gpt2(config) and config.mlp == "gelu":
        return "gpt2"
    kind = layouts.layout(config)
    if kind in ARCHITECTURES:
        return ARCHITECTURES[kind]
    raise ValueError(
        "llama.cpp computes models of the kind of GPT-2, Llama, Mixtral and Qwen3, and this one is none of these: "
        "train with the preset quickstart, gpt2 or modern, or export with --to hf"
    )


def save(
    path: Path,
    config: GPTConfig,
    state: dict[str, Tensor],
    tokenizer: Path,
    precision: Precision = "f32",
    name: str = "slm",
) -> None:
    """Write a GGUF file of a model's state dict and of the tokenizer.json, with the chat template next to it.

    Matrices take the precision, everything else float32. ValueError for a model or a tokenizer that llama.cpp would
    compute otherwise, ImportError without the package `gguf`.
    """
    import gguf

    kind = architecture(config)
    fields = _tokenizer_fields(tokenizer, config.vocab_size)
    with atomic(path) as file:
        writer = gguf.GGUFWriter(None, kind)
        writer.add_name(name)
        _add_shape(writer, config, kind)
        for add, value in fields.items():
            getattr(writer, add)(value)
        for tensor_name, tensor in tensors(config, state):
            _add_tensor(writer, tensor_name, tensor.float().numpy(), precision)
        writer.write_header_to_file(Path(file.name))
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _add_shape(writer: Any, config: GPTConfig, kind: str) -> None:
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.inner)
    writer.add_head_count(config.n_head)
    writer.add_vocab_size(config.vocab_size)
    if kind == "gpt2":
        writer.add_layer_norm_eps(config.norm_eps)
        return
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.n_expert is not None:
        writer.add_expert_count(config.n_expert)
        writer.add_expert_used_count(config.n_expert_active)


def tensors(config: GPTConfig, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights under llama.cpp's names.

    Its llama turns neighbouring pairs of a head, as ours does, so q and k keep their order; its qwen3 turns the halves,
    as Hugging Face does. The experts of a block are one tensor there. Its gpt2 has biases everywhere.
    """
    kind, experts = architecture(config), {}
    for name, tensor in state.items():
        if name == "lm_head.weight" and config.tied_head:
            continue
        stem, _, end = name.rpartition(".")
        if stem in OUTER:
            yield f"{OUTER[stem]}.{end}", tensor
            continue
        _, layer, inside = stem.split(".", 2)
        if kind != "gpt2" and inside == "attn.c_attn":
            for part, rows in layouts.split_attention(config, tensor, kind == "qwen3").items():
                yield f"blk.{layer}.attn_{part}.weight", rows
        elif expert := re.fullmatch(r"mlp\.experts\.\d+\.(\w+)", inside):
            parts = experts.setdefault((layer, expert[1]), [])
            parts.append(tensor)
            if len(parts) == config.n_expert:
                yield f"blk.{layer}.{NAMES[f'mlp.{expert[1]}']}_exps.weight", torch.stack(parts)
        else:
            is_turned = inside in ("attn.q_norm", "attn.k_norm")
            yield f"blk.{layer}.{NAMES[inside]}.{end}", layouts.halves(tensor) if is_turned else tensor


def _add_tensor(writer: Any, name: str, values: np.ndarray, precision: Precision) -> None:
    from gguf import GGMLQuantizationType, quants

    if values.ndim < 2 or name == "position_embd.weight" or precision == "f32":
        writer.add_tensor(name, values)
    elif precision == "q8_0" and values.shape[-1] % BLOCK == 0:
        kind = GGMLQuantizationType.Q8_0
        writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, values.astype(np.float16))


def _tokenizer_fields(path: Path, vocab_size: int) -> dict[str, Any]:
    """Return the calls of GGUFWriter that write the tokenizer, with the argument of each."""
    from gguf import TokenType

    content = read_json(path)
    model, added = content["model"], {each["id"]: each for each in content.get("added_tokens") or []}
    names = {id: token for token, id in model["vocab"].items()} | {
        id: each["content"] for id, each in added.items()
    }
    tokens, kinds = [], []
    for id in range(vocab_size):
        special = added.get(id)
        tokens.append(names.get(id, f"[unused{id}]"))
        kind = TokenType.NORMAL if id in names else TokenType.UNUSED
        if special is not None:
            kind = TokenType.CONTROL if special["special"] else TokenType.USER_DEFINED
        kinds.append(kind)
    merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    return {
        "add_tokenizer_model": "gpt2",
        "add_tokenizer_pre": _pre_tokenizer(content, path),
        "add_token_list": tokens,
        "add_token_types": kinds,
        **({"add_token_merges": merges} if merges else {}),
        **_special_fields(content, {each["content"]: id for id, each in added.items()}, path),
    }


def _pre_tokenizer(content: dict[str, Any], path: Path) -> str:
    """Return llama.cpp's name for the way in which the tokenizer splits text before merging."""
    steps = content.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    if (
        content.get("normalizer") is None
        and steps[0].get("type") == "ByteLevel"
        and steps[0].get("use_regex", True)
    ):
        return "gpt-2"
    pattern = steps[0].get("pattern", {}).get("Regex")
    if content.get("normalizer") is None and pattern in PATTERNS:
        return PATTERNS[pattern]
    raise ValueError(
        f"llama.cpp does not split text as {path} says: train a tokenizer with the pattern gpt2, llama3 or qwen2"
    )


def _special_fields(content: dict[str, Any], special: dict[str, int], path: Path) -> dict[str, Any]:
    """Return what special tokens are for: a text begins with the first, ends with the second."""
    end = content["model"].get("end_of_text", END_OF_TEXT)
    config = path.parent / "tokenizer_config.json"
    settings = read_json(config) if config.is_file() else {}
    eos = settings.get("eos_token", end)
    eos = eos["content"] if isinstance(eos, dict) else eos
    fields: dict[str, Any] = {"add_add_bos_token": end in special}
    if end in special:
        fields["add_bos_token_id"] = special[end]
    if eos in special:
        fields["add_eos_token_id"] = special[eos]
        fields["add_eot_token_id"] = special[eos]
    if isinstance(settings.get("chat_template"), str):
        fields["add_chat_template"] = without_generation(settings["chat_template"])
    return fields


def without_generation(template: str) -> str:
    """Return a chat template whose {% generation %} blocks, which transformers alone knows, are plain ones.

    >>> without_generation("{%- generation %}{{ answer }}{% endgeneration %}")
    '{%- if true %}{{ answer }}{% endif %}'
    """
    template = re.sub(r"(\{%-?\s*)generation(\s*-?%\})", r"\1if true\2", template)
    return re.sub(r"(\{%-?\s*)endgeneration(\s*-?%\})", r"\1endif\2", template)
