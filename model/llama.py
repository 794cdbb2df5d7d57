"""Weights of Llama's kind in: SmolLM, TinyLlama and their like as Hugging Face keeps them, and llama2.c's .bin files.

The architecture is ours with RMSNorm, rotary positions, SwiGLU and no biases; `model.layouts` writes it out. Two things
differ: q, k and v are three matrices, and Hugging Face turns pairs (j, j + D/2) of a head where ours are neighbours.
llama2.c turns neighbours too.
"""

import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import GPTConfig

KIND = {"norm": "rmsnorm", "positions": "rotary", "mlp": "swiglu", "bias": False}
# Their config's names for ours.
FIELDS = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "block_size",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "n_kv_head",
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "rms_norm_eps": "norm_eps",
    "attention_dropout": "dropout",
}
OPTIONAL = ("num_key_value_heads", "rms_norm_eps", "attention_dropout")
# What changes the arithmetic in a way that ours does not know, and the values that do not.
UNCHANGED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "hidden_act": (None, "silu"),
    "rope_scaling": (None, {}),
    "pretraining_tp": (None, 1),
    "quantization_config": (None,),
}
# Parts of our names, in this order, and Hugging Face's; one that has no dot in front begins a name.
PARTS = (
    ("wte.", "model.embed_tokens."),
    ("ln_f.", "model.norm."),
    ("h.", "model.layers."),
    (".ln_1.", ".input_layernorm."),
    (".ln_2.", ".post_attention_layernorm."),
    (".attn.c_proj.", ".self_attn.o_proj."),
    (".attn.", ".self_attn."),
    (".c_gate.", ".gate_proj."),
    (".c_fc.", ".up_proj."),
    (".c_proj.", ".down_proj."),
)
HEADER = struct.Struct("<7i")  # llama2.c: width, inner, layers, heads, KV heads, ids, context


def renamings(parts: Iterable[tuple[str, str]]) -> dict[str, str]:
    r"""Return regular expressions and replacements that turn the first parts of names into the second.

    >>> renamings([("h.", "model.layers."), (".ln_1.", ".norm.")])
    {'^h\\.': 'model.layers.', '\\.ln_1\\.': '.norm.'}
    """
    return {("" if old[0] == "." else "^") + re.escape(old): new for old, new in parts}


def fields(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the fields of GPTConfig for the content of a Llama's config.json; ValueError names what ours cannot do."""
    missing = [theirs for theirs in FIELDS if theirs not in (*OPTIONAL, *content)]
    if missing:
        raise ValueError(f"{path} does not describe a Llama: it has no {', '.join(missing)}")
    rope = content.get("rope_parameters") or {}
    odd = [f"{name}={content[name]}" for name, known in UNCHANGED.items() if content.get(name) not in known]
    if rope.get("rope_type", "default") != "default":
        odd.append(f"rope_type={rope['rope_type']}")
    width = content.get("head_dim") or content["hidden_size"] // content["num_attention_heads"]
    if width * content["num_attention_heads"] != content["hidden_size"]:
        odd.append(f"head_dim={width}")
    if odd:
        raise ValueError(f"{path} asks for what this GPT does not compute: {', '.join(odd)}")
    found = {ours: content[theirs] for theirs, ours in FIELDS.items() if content.get(theirs) is not None}
    theta = rope.get("rope_theta", content.get("rope_theta", 10000.0))
    tied = content.get("tie_word_embeddings", False)
    return {**KIND, **found, "rope_theta": float(theta), "tied_head": tied}


def has_names(weights: dict[str, Tensor]) -> bool:
    """True if weights have Llama's names."""
    return any(name.startswith("model.layers.") for name in weights)


def from_names(weights: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Return the weights under our names and in our order; those that are missing stay so."""
    found, parts = {}, {}
    renames = renamings((theirs, ours) for ours, theirs in PARTS)
    for name, tensor in weights.items():
        if name.endswith("rotary_emb.inv_freq"):  # a constant that old files carry
            continue
        for pattern, replacement in renames.items():
            name = re.sub(pattern, replacement, name)
        if match := re.fullmatch(r"(.*\.attn\.)([qkv])_proj\.weight", name):
            parts.setdefault(match[1] + "c_attn.weight", {})[match[2]] = tensor
        else:
            found[name] = tensor
    for name, part in parts.items():
        turned = {
            which: rows if which == "v" else _pairs(rows, config.head_dim) for which, rows in part.items()
        }
        found[name] = torch.cat([turned[which] for which in "qkv" if which in turned])
    return found


def _pairs(weight: Tensor, width: int) -> Tensor:
    """Put numbers j and j + D/2 of each head side by side: weight (H D, C) -> (H D, C).

    >>> _pairs(torch.tensor([[0], [2], [1], [3]]), 4)[:, 0].tolist()
    [0, 1, 2, 3]
    """
    halves = weight.unflatten(0, (-1, 2, width // 2))  # (H D, C) -> (H, 2, D/2, C)
    return halves.transpose(1, 2).flatten(0, 2)  # -> (H D, C)


def read_llama2c(path: Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Return the config and the state dict in a model file of llama2.c (version 0); ValueError for any other file."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        raise ValueError(f"{path} is no model of llama2.c: it has {size} bytes")
    width, inner, layers, heads, kv_heads, ids, context = HEADER.unpack(head)
    try:
        config = GPTConfig(
            vocab_size=abs(ids), block_size=context, n_layer=layers, n_head=heads, n_kv_head=kv_heads,
            n_embd=width, n_inner=inner, tied_head=ids > 0, **KIND,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{path} is no model of llama2.c: {error}") from None
    kv_width = kv_heads * config.head_dim
    shapes = {
        "wte": (abs(ids), width), "ln_1": (layers, width), "q": (layers, width, width),
        "k": (layers, kv_width, width), "v": (layers, kv_width, width), "c_proj": (layers, width, width),
        "ln_2": (layers, width), "gate": (layers, inner, width), "down": (layers, width, inner),
        "up": (layers, inner, width), "ln_f": (width,), "angles": (context, config.head_dim),
        **({} if ids > 0 else {"head": (abs(ids), width)}),
    }  # fmt: skip
    counts = [int(np.prod(shape)) for shape in shapes.values()]
    if size != HEADER.size + 4 * sum(counts):
        expected = HEADER.size + 4 * sum(counts)
        raise ValueError(
            f"{path} is no whole model of llama2.c: it has {size} bytes, its head says {expected}"
        )
    numbers = torch.from_numpy(np.fromfile(path, "<f4", offset=HEADER.size))
    flat = zip(shapes.items(), numbers.split(counts), strict=True)
    found = {name: part.view(shape) for (name, shape), part in flat}
    return config, _from_llama2c(found, layers)


def _from_llama2c(found: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Return our state dict for llama2.c's arrays, each of which holds all layers."""
    state = {"wte.weight": found["wte"], "ln_f.weight": found["ln_f"]}
    state["lm_head.weight"] = found.get("head", found["wte"])
    inside = {"ln_1": "ln_1", "attn.c_proj": "c_proj", "ln_2": "ln_2"}
    inside |= {"mlp.c_gate": "gate", "mlp.c_fc": "up", "mlp.c_proj": "down"}
    for layer in range(layers):
        for ours, theirs in inside.items():
            state[f"h.{layer}.{ours}.weight"] = found[theirs][layer]
        state[f"h.{layer}.attn.c_attn.weight"] = torch.cat([found[part][layer] for part in "qkv"])
    return state
