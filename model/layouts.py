"""Weights under the names of other models in transformers, which then runs them with its own code.

    Llama         RMSNorm before each sublayer, rotary positions, SwiGLU, no bias
    Qwen3         the same with qk_norm
    Mixtral       the same as Llama with experts balanced by a loss, none of them shared
    Mamba-2       nothing but state spaces, no positions
    DeepSeek-V3   the same as Llama with latent attention, and experts balanced by a bias, some shared, or none at all

GPT-2's layout is in model.pretrained. A config that no architecture of transformers computes has no layout here.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import llama, pretrained, ssm
from model.config import GPTConfig
from model.experts import BALANCE

# What every layout here has in common, and what no model of transformers has together with it.
COMMON = {
    "bias": False,
    "norm": "rmsnorm",
    "norm_place": "pre",
    "window": None,
    "value_embedding": False,
    "residual_scalars": False,
    "logit_softcap": None,
    "mup_width": None,
}
# What single architectures name otherwise than Llama; it comes before llama.PARTS.
OWN_NAMES = {
    "mixtral": {
        r"\.mlp\.router\.": ".block_sparse_moe.gate.",
        r"\.mlp\.experts\.(\d+)\.c_gate\.": r".block_sparse_moe.experts.\1.w1.",
        r"\.mlp\.experts\.(\d+)\.c_proj\.": r".block_sparse_moe.experts.\1.w2.",
        r"\.mlp\.experts\.(\d+)\.c_fc\.": r".block_sparse_moe.experts.\1.w3.",
    },
    "deepseek_v3": {
        r"\.c_q\.weight": ".q_proj.weight",
        r"\.c_q\.0\.": ".q_a_proj.",
        r"\.c_q\.1\.": ".q_a_layernorm.",
        r"\.c_q\.2\.": ".q_b_proj.",
        r"\.kv_down\.": ".kv_a_proj_with_mqa.",
        r"\.kv_norm\.": ".kv_a_layernorm.",
        r"\.kv_up\.": ".kv_b_proj.",
        r"\.mlp\.router\.": ".mlp.gate.",
        r"\.mlp\.bias": ".mlp.gate.e_score_correction_bias",
        r"\.mlp\.shared\.": ".mlp.shared_experts.",
    },
    "mamba2": {
        r"^wte\.": "backbone.embeddings.",
        r"^ln_f\.": "backbone.norm_f.",
        r"^h\.": "backbone.layers.",
        r"\.ln_1\.": ".norm.",
        r"\.c_in\.": ".in_proj.",
        r"\.conv\.": ".conv1d.",
        r"\.c_proj\.": ".out_proj.",
    },
}
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "mamba2": "Mamba2ForCausalLM",
}


def layout(config: GPTConfig) -> str | None:
    """Return the architecture of transformers that computes what this model does; None if there is none.

    >>> layout(GPTConfig.preset("modern")), layout(GPTConfig.preset("modern", qk_norm=True))
    ('llama', 'qwen3')
    """
    if any(getattr(config, name) != value for name, value in COMMON.items()):
        return None
    if set(config.pattern) == {"m"}:
        return "mamba2" if config.positions == "none" else None
    if config.positions != "rotary" or config.mlp != "swiglu" or "m" in config.pattern:
        return None
    if config.kv_lora_rank:
        shared = config.expert_balance == "bias" and config.n_expert_shared
        return "deepseek_v3" if shared or config.n_expert is None else None
    if config.n_expert is None:
        return "qwen3" if config.qk_norm else "llama"
    plain = not config.qk_norm and not config.n_expert_shared and config.expert_balance == "loss"
    return "mixtral" if plain else None


def save(
    directory: str | Path, config: GPTConfig, state: dict[str, Tensor], tokenizer: str | Path | None = None
) -> None:
    """Write config.json, model.safetensors and the tokenizer for transformers' AutoModelForCausalLM."""
    pretrained.write(directory, to_json(config), to_names(config, state), tokenizer, config)


def to_json(config: GPTConfig) -> dict[str, Any]:
    """Return the content of config.json for the config's layout."""
    kind = layout(config)
    own = (
        {"deepseek_v3": _deepseek, "mamba2": _mamba}[kind](config)
        if kind in ("deepseek_v3", "mamba2")
        else {}
    )
    return {
        "model_type": kind,
        "architectures": [ARCHITECTURES[kind]],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.block_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_size": config.n_embd,
        "intermediate_size": config.inner,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "attention_dropout": config.dropout,
        "tie_word_embeddings": config.tied_head,
        "num_local_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_active,
        "router_aux_loss_coef": BALANCE,
        **own,
    }


def _deepseek(config: GPTConfig) -> dict[str, Any]:
    """Return what only DeepSeek's config has."""
    return {
        "head_dim": config.rotary_dim,  # the part that rotary positions turn
        "kv_lora_rank": config.kv_lora_rank,
        "q_lora_rank": config.q_lora_rank,
        "qk_nope_head_dim": config.head_dim,
        "qk_rope_head_dim": config.rotary_dim,
        "v_head_dim": config.head_dim,
        "n_routed_experts": config.n_expert or 1,
        "n_shared_experts": config.n_expert_shared or 1,
        "moe_intermediate_size": config.inner,
        "first_k_dense_replace": 0 if config.n_expert else config.n_layer,  # layers with one MLP
        "routed_scaling_factor": 1.0,
        **dict.fromkeys(("n_group", "topk_group"), 1),
        "num_mtp_layers": 0,
    }


def _mamba(config: GPTConfig) -> dict[str, Any]:
    """Return what only Mamba-2's config has."""
    return {
        "state_size": config.ssm_state,
        "head_dim": config.ssm_head,
        "num_heads": ssm.EXPAND * config.n_embd // config.ssm_head,
        "expand": ssm.EXPAND,
        "conv_kernel": ssm.TAPS,
        "chunk_size": ssm.CHUNK,
        "n_groups": 1,
        "layer_norm_epsilon": config.norm_eps,
    }


def to_names(config: GPTConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a state dict under the names of the config's layout."""
    named, names = {}, [*OWN_NAMES.get(layout(config), {}).items(), *llama.renamings(llama.PARTS).items()]
    for name, tensor in state.items():
        if name.startswith("ahead."):  # for training alone
            continue
        for part, theirs in _in_their_order(name, tensor, config).items():
            for pattern, replacement in names:
                part = re.sub(pattern, replacement, part)
            named[part] = theirs.contiguous()
    if config.tied_head:
        del named["lm_head.weight"]
    return named


def _in_their_order(name: str, tensor: Tensor, config: GPTConfig) -> dict[str, Tensor]:
    """Return c_attn as q, k and v, with the numbers of each head in the order in which transformers turns them."""
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return {name: halves(tensor)}
    if not name.endswith("attn.c_attn.weight"):
        return {name: tensor}
    parts = split_attention(config, tensor, by_halves=True)
    return {name.replace("c_attn", f"{part}_proj"): rows for part, rows in parts.items()}


def split_attention(config: GPTConfig, weight: Tensor, by_halves: bool) -> dict[str, Tensor]:
    """Return the rows of q, k and v in c_attn's weight ((H + 2 KV) D, C), heads as they are or by `halves`."""
    heads = weight.unflatten(0, (-1, config.head_dim))  # ((H + 2 KV) D, C) -> (H + 2 KV, D, C)
    q, k, v = heads.split([config.n_head, config.kv_heads, config.kv_heads])
    if by_halves:
        q, k = halves(q, 1), halves(k, 1)
    return {"q": q.flatten(0, 1), "k": k.flatten(0, 1), "v": v.flatten(0, 1)}  # (H, D, C) -> (H D, C)


def halves(x: Tensor, dim: int = 0) -> Tensor:
    """Put the first of each neighbouring pair before all the second: rotary pairs are (j, j + D/2) there.

    >>> halves(torch.tensor([0, 1, 2, 3])).tolist()
    [0, 2, 1, 3]
    """
    even, odd = torch.arange(x.shape[dim]).view(-1, 2).unbind(1)
    return x.index_select(dim, torch.cat([even, odd]).to(x.device))
