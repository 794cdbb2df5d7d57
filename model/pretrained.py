"""Weights in and out, in the layout of GPT-2 on the Hugging Face hub: config.json and model.safetensors.

A model that GPT-2's code can express loads in transformers.GPT2LMHeadModel. Every other one is written in the
same way, but under model_type "slm", so that nobody takes it for a GPT-2; what GPT-2's config has no name for
stands under the key "slm". Nothing is pickled.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from common.files import atomic, read_json, write_json
from model.config import GPTConfig

if TYPE_CHECKING:
    from model.gpt import GPT

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"

# GPTConfig's name -> Hugging Face's, for what both configs have and mean alike.
SHARED = {
    "vocab_size": "vocab_size",
    "block_size": "n_positions",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "n_inner": "n_inner",
    "norm_eps": "layer_norm_epsilon",
    "tied_head": "tie_word_embeddings",
}
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "silu": "silu", "swish": "silu"}
# What GPT-2's code cannot express, and the value of each field that it stands for.
GPT2_ONLY = {"bias": True, "norm": "layernorm", "norm_place": "pre", "positions": "learned", "window": None}
# Options of transformers' GPT2Config that change the arithmetic; ours knows only these values.
UNCHANGED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def save(gpt: "GPT", directory: str | Path, tokenizer: str | Path | None = None) -> None:
    """Writes model.safetensors (in the parameters' dtype) and config.json into `directory`.

    With the path of a tokenizer.json, the tokenizer is written too, for transformers.AutoTokenizer, and
    config.json names the id of <|endoftext|>, at which generation ends.
    """
    from safetensors.torch import save as to_bytes

    from model.gpt import check_unpacked

    check_unpacked(gpt, "be saved")
    directory = Path(directory)
    end = None if tokenizer is None else _save_tokenizer(Path(tokenizer), directory, gpt.config.block_size)
    with atomic(directory / WEIGHTS) as file:
        file.write(to_bytes(to_gpt2_names(gpt), metadata={"format": "pt"}))
    write_json(directory / CONFIG, {**to_json(gpt.config), "bos_token_id": end, "eos_token_id": end})


def _save_tokenizer(source: Path, directory: Path, block_size: int) -> int | None:
    """Copies tokenizer.json and says beside it what its special token is for; returns that token's id."""
    content = read_json(source)
    if not isinstance(content, dict) or "model" not in content:
        raise ValueError(f"{source} is no tokenizer.json: give the one that the model was trained with")
    special = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
    role = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT} if END_OF_TEXT in special else {}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size, **role}
    write_json(directory / TOKENIZER, content)
    write_json(directory / "tokenizer_config.json", settings)
    return special.get(END_OF_TEXT)


def load(directory: str | Path, **changes: Any) -> "GPT":
    """The model in `directory`, in float32, on the CPU, ready to evaluate.

    `changes` replace fields of its config, such as dropout=0.0 or attention="fused". Raises FileNotFoundError
    where a file is missing, and a ValueError that lists every weight that is missing, unexpected or of
    another shape.
    """
    from safetensors.torch import load_file

    from model.gpt import GPT

    check(directory, **changes)  # before there is memory for what the config asks for
    gpt, path = GPT(read_config(directory, **changes)), _existing(directory, WEIGHTS)
    gpt.load_state_dict(from_gpt2_names(gpt, load_file(path), path))
    return gpt.eval()


def check(directory: str | Path, **changes: Any) -> None:
    """Raises what `load` would, but reads no weight: the head of the file has their names and shapes."""
    from safetensors import safe_open

    from model.gpt import GPT

    with torch.device("meta"):
        gpt = GPT(read_config(directory, **changes))
    path = _existing(directory, WEIGHTS)
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no dict
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error})") from error
    from_gpt2_names(gpt, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, path)


def read_config(directory: str | Path, **changes: Any) -> GPTConfig:
    """The config in `directory`, with `changes` to single fields."""
    path = _existing(directory, CONFIG)
    return from_json(read_json(path), path, changes)


def _existing(directory: str | Path, name: str) -> Path:
    path = Path(directory) / name
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no {name}: give the directory of a saved model")
    return path


def to_json(config: GPTConfig) -> dict[str, Any]:
    """The content of config.json for `config`."""
    ours = dataclasses.asdict(config)
    gpt2 = is_gpt2(config)
    both = {theirs: ours.pop(name) for name, theirs in SHARED.items()}
    drops = dict.fromkeys(DROPOUTS, ours.pop("dropout"))
    return {
        "model_type": "gpt2" if gpt2 else "slm",
        "architectures": ["GPT2LMHeadModel"] if gpt2 else ["GPT"],
        **both,
        **drops,
        "activation_function": "silu" if config.mlp == "silu" else "gelu_new",
        "slm": ours,
    }


def is_gpt2(config: GPTConfig) -> bool:
    """Whether GPT-2's code, with its own choice of sizes, computes what this model does."""
    plain = all(getattr(config, name) == value for name, value in GPT2_ONLY.items())
    return plain and config.mlp != "swiglu" and config.kv_heads == config.n_head


def from_json(content: Any, path: Path, changes: dict[str, Any]) -> GPTConfig:
    """The GPTConfig that config.json's `content` describes; `path` is named in errors."""
    if not isinstance(content, dict) or not isinstance(content.get("slm", {}), dict):
        raise ValueError(f"{path} does not describe a model: give the config.json of a GPT")
    if content.get("model_type") not in ("gpt2", "slm"):
        raise ValueError(f"{path} is of model_type {content.get('model_type')!r}, not gpt2 or slm")
    fields = {name: content[theirs] for name, theirs in SHARED.items() if theirs in content}
    fields |= {"mlp": _mlp(content, path), "dropout": _dropout(content, path, changes)}
    fields |= {**content.get("slm", {}), **changes}
    unknown = fields.keys() - {field.name for field in dataclasses.fields(GPTConfig)}
    if unknown:
        raise ValueError(f"{path}: GPTConfig has no field called {', '.join(sorted(unknown))}")
    return GPTConfig(**fields)


def _mlp(content: dict[str, Any], path: Path) -> str:
    odd = [
        f"{name}={content[name]}" for name, value in UNCHANGED.items() if content.get(name, value) != value
    ]
    activation = content.get("activation_function", "gelu_new")
    if activation not in tuple(ACTIVATIONS):
        odd.append(f"activation_function={activation}")
    if odd:
        raise ValueError(f"{path} asks for what this GPT does not compute: {', '.join(odd)}")
    return ACTIVATIONS[activation]


def _dropout(content: dict[str, Any], path: Path, changes: dict[str, Any]) -> float:
    rates = [content.get(name, 0.1) for name in DROPOUTS]  # 0.1 is GPT-2's default
    if rates != rates[:1] * len(rates) and "dropout" not in changes:
        raise ValueError(f"{path} has several dropout rates {rates}: choose one with dropout=…")
    return rates[0]


def to_gpt2_names(gpt: "GPT") -> dict[str, Tensor]:
    """The parameters under GPT-2's names and in its layout: matrices of the blocks stored (in, out)."""
    named = {}
    for name, tensor in gpt.state_dict().items():
        if name == "lm_head.weight":
            if not gpt.config.tied_head:
                named[name] = tensor.contiguous()
            continue
        named[f"transformer.{name}"] = (tensor.mT if _is_conv1d(name, tensor) else tensor).contiguous()
    return named


def from_gpt2_names(gpt: "GPT", weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The state dict for `gpt` from weights under GPT-2's names, the prefix "transformer." or not."""
    found = {}
    for name, tensor in weights.items():
        name = name.removeprefix("transformer.")
        if not name.endswith((".attn.bias", ".attn.masked_bias")):  # causal masks that old files carry
            found[name] = tensor.mT if _is_conv1d(name, tensor) else tensor
    wanted = gpt.state_dict()
    if gpt.config.tied_head:
        found["lm_head.weight"] = found.get("wte.weight", wanted["wte.weight"])
    _compare(wanted, found, path)
    return found


def _is_conv1d(name: str, tensor: Tensor) -> bool:
    """Whether transformers keeps this one in a Conv1D, whose weight is the transpose of a Linear's."""
    return name.startswith("h.") and name.endswith(".weight") and tensor.dim() == 2


def _compare(wanted: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    faults = [f"missing {name}" for name in wanted.keys() - found.keys()]
    faults += [f"unexpected {name}" for name in found.keys() - wanted.keys()]
    faults += [
        f"{name} is {tuple(found[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted.keys() & found.keys()
        if wanted[name].shape != found[name].shape
    ]
    if faults:
        more = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise ValueError(f"{path} does not fit its config: {'; '.join(sorted(faults)[:8])}{more}")
