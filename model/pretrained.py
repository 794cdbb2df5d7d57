"""Weights in and out, in the layout of GPT-2 on the Hugging Face hub: config.json and model.safetensors.

A model that GPT-2's code can express loads in transformers.GPT2LMHeadModel. Every other one is written in the same
way, but under model_type "slm", so that no library takes it for a GPT-2; what GPT-2's config has no name for is under
the key "slm". What changes the result in a config that is read is honoured or refused by name. Nothing is pickled.
This file knows configs and state dicts only; GPT.from_pretrained and GPT.save_pretrained use it.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from common import hub
from common.files import atomic, read_json, write_json
from model import llama
from model.config import GPTConfig, without_retired

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
INDEX = f"{WEIGHTS}.index.json"  # of weights in several files: which one holds which
PICKLES = ("*.bin", "*.pt", "*.pth")
END_OF_TEXT = "<|endoftext|>"  # closes documents where a tokenizer.json of ours names no other token
PREFIX, HEAD, EMBEDDING, POSITIONS = "transformer.", "lm_head.weight", "wte.weight", "wpe.weight"

# GPTConfig's name -> Hugging Face's, for what both configs have and mean the same by.
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
# Second names that transformers accepts for a field.
ALIASES = {
    "max_position_embeddings": "n_positions",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
}
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
GELUS = (
    "gelu_new",
    "gelu_pytorch_tanh",
    "gelu_python_tanh",
    "gelu_fast",
    "gelu_accurate",
)  # all the tanh form
ACTIVATIONS = {**dict.fromkeys(GELUS, "gelu"), "silu": "silu", "swish": "silu"}
# What GPT-2's code cannot express, and the value of each field that it assumes.
GPT2_ONLY = {
    "bias": True,
    "norm": "layernorm",
    "norm_place": "pre",
    "positions": "learned",
    "window": None,
    "qk_norm": False,
    "value_embedding": False,
    "residual_scalars": False,
    "logit_softcap": None,
    "mup_width": None,
    "n_expert": None,
    "kv_lora_rank": None,
    "layers": None,
    "n_ahead": None,
}
# Options of transformers' GPT2Config that change the arithmetic; ours knows only these values.
UNCHANGED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "quantization_config": None,
    "pruned_heads": {},
}
# Fields that say which weights there are and how they are used: another value gives wrong logits, or no model at all.
USE = (
    *("n_head", "n_kv_head", "norm", "norm_place", "norm_eps", "positions", "rope_theta", "mlp"),
    *("qk_norm", "value_embedding", "residual_scalars", "logit_softcap", "mup_width"),
    *("n_expert", "n_expert_active", "n_expert_shared", "expert_balance"),
    *("kv_lora_rank", "q_lora_rank", "rope_dim", "layers", "ssm_state", "ssm_head", "n_ahead"),
)


def save(
    directory: str | Path, config: GPTConfig, state: dict[str, Tensor], tokenizer: str | Path | None = None
) -> None:
    """Write a model's state dict (in its own dtype) and config into `directory`.

    With the path of a tokenizer.json, the tokenizer is written too, for transformers.AutoTokenizer, and
    config.json names the id of its end-of-text token, which ends a generation and pads a batch.
    """
    write(directory, to_json(config), to_gpt2_names(state, config), tokenizer, config)


def write(
    directory: str | Path,
    content: dict[str, Any],
    weights: dict[str, Tensor],
    tokenizer: str | Path | None,
    config: GPTConfig,
) -> None:
    """Write the `content` of config.json, weights and tokenizer as `save` says, in whatever layout they are."""
    directory = Path(directory)
    end = None if tokenizer is None else _save_tokenizer(Path(tokenizer), directory, config)
    with atomic(directory / WEIGHTS) as file:
        file.write(to_bytes(weights, metadata={"format": "pt"}))
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end)
    write_json(directory / CONFIG, {**content, **ids})


def _save_tokenizer(source: Path, directory: Path, config: GPTConfig) -> int | None:
    """Copy tokenizer.json and write what its end-of-text token is for; return that token's id."""
    content = read_json(source)
    if not isinstance(content, dict) or "model" not in content:
        raise ValueError(f"{source} is no tokenizer.json: give the one that the model was trained with")
    special = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
    count = 1 + max([*content["model"].get("vocab", {}).values(), *special.values()], default=-1)
    if count > config.vocab_size:
        raise ValueError(
            f"{source} has {count} tokens, the model only {config.vocab_size}: it is another model's tokenizer"
        )
    end = content["model"].get("end_of_text", END_OF_TEXT)
    roles = dict.fromkeys(("bos_token", "eos_token", "pad_token"), end) if end in special else {}
    # On the left, so that every row of a batch is continued from its own last token.
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.block_size,
        "padding_side": "left",
    }
    write_json(directory / TOKENIZER, content)
    write_json(directory / TOKENIZER_CONFIG, {**settings, **roles, **_chat(source.parent)})
    return special.get(end)


def located(name: str | Path) -> Path:
    """Return the directory that a name means: itself, or a model of the hub in its cache; OSError if it has none.

    A name is one of the hub if there is no such file, and it is NAME or, where there is no folder OWNER, OWNER/NAME.
    """
    path = Path(name)
    if (
        path.exists()
        or path.is_absolute()
        or len(path.parts) > 2
        or (path.parent.name and path.parent.is_dir())
    ):
        return path
    return hub.model(str(name))


def _chat(directory: Path) -> dict[str, Any]:
    """Return the chat template in a tokenizer's directory, and the token that ends a turn; nothing if there is none."""
    path = directory / TOKENIZER_CONFIG
    settings = read_json(path) if path.is_file() else {}
    return {name: settings[name] for name in ("chat_template", "eos_token") if "chat_template" in settings}


def read_config(directory: str | Path, **changes: Any) -> GPTConfig:
    """Return the config in `directory`, with `changes` to single fields.

    ValueError for a change that the weights do not allow: block_size can be lowered, and what says how weights are
    used must stay.
    """
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no {CONFIG}: give the directory of a saved model")
    stored = from_json(read_json(path), path, changes)
    if stored.tied_head and has_weights(directory) and _has_own_head(Path(directory)):
        stored = dataclasses.replace(stored, tied_head=False)  # the file is right, as in transformers
    _check_changes(stored, changes, path)
    return dataclasses.replace(stored, **changes)


def _check_changes(stored: GPTConfig, changes: dict[str, Any], path: Path) -> None:
    for name in USE:
        if changes.get(name, getattr(stored, name)) != getattr(stored, name):
            raise ValueError(
                f"{name} is {changes[name]!r}, but the weights of {path} were trained with {getattr(stored, name)!r}: "
                f"leave {name} out"
            )
    if changes.get("tied_head") and not stored.tied_head:
        raise ValueError(f"the weights of {path} have a head that is not the embedding: leave tied_head out")
    if stored.positions == "learned" and changes.get("block_size", 0) > stored.block_size:
        raise ValueError(
            f"the weights of {path} know {stored.block_size} positions: choose a block_size of at most that, not "
            f"{changes['block_size']}"
        )


def has_weights(directory: str | Path) -> bool:
    """True if `directory` holds weights in safetensors, in one file or in several."""
    return any((Path(directory) / name).is_file() for name in (WEIGHTS, INDEX))


def _weight_files(directory: Path) -> list[Path]:
    """Return the files that hold the weights; an error says what is there instead and what to do."""
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if (directory / INDEX).is_file():
        return _shards(directory)
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        raise FileNotFoundError(
            f"{directory} holds no {WEIGHTS}, only {pickles[0]}, a pickle, which may run code when it is read: convert "
            f"it where you trust it, for example with transformers: "
            f"AutoModelForCausalLM.from_pretrained({str(directory)!r}).save_pretrained(NEW_DIRECTORY)"
        )
    raise FileNotFoundError(f"{directory} holds no {WEIGHTS}: give the directory of a saved model")


def _shards(directory: Path) -> list[Path]:
    """Return the files that the index names."""
    index = read_json(directory / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    names = set(places.values()) if isinstance(places, dict) else set()
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise ValueError(f"{directory / INDEX} has no weight_map from weights to files of its directory")
    missing = sorted(name for name in names if not (directory / name).is_file())
    if missing:
        raise FileNotFoundError(
            f"{directory} holds no {missing[0]}, which {INDEX} names: fetch all of its files"
        )
    return [directory / name for name in sorted(names)]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file, of which nothing but its head is read at first."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error})") from error


def _shapes(directory: Path) -> dict[str, Tensor]:
    """Return the weights as tensors that have a shape and no memory; nothing but the heads of the files is read."""
    found = {}
    for path in _weight_files(directory):
        with _opened(path) as file:
            names = file.keys()
            found |= {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}
    return found


def _has_own_head(directory: Path) -> bool:
    """True if the weights hold a head other than the token embedding."""
    names = {HEAD, EMBEDDING, PREFIX + EMBEDDING}
    if HEAD not in _shapes(directory):
        return False
    found = {}
    for path in _weight_files(directory):
        with _opened(path) as file:
            found |= {name.removeprefix(PREFIX): file.get_tensor(name) for name in names & set(file.keys())}
    return EMBEDDING in found and not torch.equal(found[HEAD], found[EMBEDDING])


def check_weights(
    directory: str | Path, config: GPTConfig, wanted: dict[str, Tensor], *, crop: bool = False
) -> None:
    """Raise what `read_weights` would, but read no weight: a file's head has their names and shapes."""
    from_gpt2_names(_shapes(Path(directory)), config, wanted, Path(directory), crop=crop)


def read_weights(
    directory: str | Path, config: GPTConfig, wanted: dict[str, Tensor], *, crop: bool = False
) -> dict[str, Tensor]:
    """Return the state dict in `directory` for a model of `config` whose state dict has the shapes of `wanted`.

    With `crop`, learned positions beyond block_size are left out. Raises FileNotFoundError if a file is missing, and a
    ValueError that lists every weight that is missing, unexpected or of another shape.
    """
    weights = {}
    for path in _weight_files(Path(directory)):
        weights |= load_file(path)
    return from_gpt2_names(weights, config, wanted, Path(directory), crop=crop)


def to_json(config: GPTConfig) -> dict[str, Any]:
    """Return the content of config.json for `config`."""
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
    """True if GPT-2's code, with its own choice of sizes, computes what this model does."""
    plain = all(getattr(config, name) == value for name, value in GPT2_ONLY.items())
    return plain and config.mlp in ("gelu", "silu") and config.kv_heads == config.n_head


def from_json(content: Any, path: Path, changes: dict[str, Any]) -> GPTConfig:
    """Return the GPTConfig that config.json's `content` describes; `path` is named in errors.

    Of `changes` only the dropout counts here: with one, unequal rates in the file need no choice.
    """
    if not isinstance(content, dict) or not isinstance(content.get("slm", {}), dict):
        raise ValueError(f"{path} does not describe a model: give the config.json of a GPT")
    if content.get("model_type") == "llama":
        return GPTConfig(**llama.fields(content, path))
    if content.get("model_type") not in ("gpt2", "slm"):
        raise ValueError(f"{path} is of model_type {content.get('model_type')!r}, not gpt2, llama or slm")
    content = _without_aliases(content, path)
    fields = {name: content[theirs] for name, theirs in SHARED.items() if theirs in content}
    fields |= {"mlp": _mlp(content, path), "dropout": _dropout(content, path, changes)}
    fields |= without_retired(content.get("slm", {}))
    unknown = (fields.keys() | changes.keys()) - {field.name for field in dataclasses.fields(GPTConfig)}
    if unknown:
        raise ValueError(f"{path}: GPTConfig has no field called {', '.join(sorted(unknown))}")
    return GPTConfig(**fields)


def _without_aliases(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the content with every field under its first name."""
    for alias, name in ALIASES.items():
        if content.get(alias, content.get(name)) != content.get(name, content.get(alias)):
            raise ValueError(
                f"{path} has {name} {content[name]} and {alias} {content[alias]}: leave one of them out"
            )
    renamed = {ALIASES.get(name, name): value for name, value in content.items()}
    return renamed


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
    """Return the rate of the residual stream, in training also used where the file has another."""
    rates = {name: content.get(name, 0.1) for name in DROPOUTS}  # 0.1 is GPT-2's default
    taken = rates[DROPOUTS[0]]
    if any(rate != taken for rate in rates.values()) and "dropout" not in changes:
        listed = ", ".join(f"{name} {rate}" for name, rate in rates.items())
        print(f"{path} has {listed}: training would use {taken} for all three", file=sys.stderr)
    return taken


def to_gpt2_names(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Return the parameters under GPT-2's names and in its layout: matrices of the blocks stored (in, out)."""
    named = {}
    for name, tensor in state.items():
        if name == HEAD:
            if not config.tied_head:
                named[name] = tensor.contiguous()
            continue
        named[PREFIX + name] = (tensor.mT if _is_conv1d(name, tensor) else tensor).contiguous()
    return named


def from_gpt2_names(
    weights: dict[str, Tensor],
    config: GPTConfig,
    wanted: dict[str, Tensor],
    path: Path,
    *,
    crop: bool = False,
) -> dict[str, Tensor]:
    """Return the state dict for a model from weights under GPT-2's names, with or without the prefix, or Llama's."""
    found = llama.from_names(weights, config) if llama.has_names(weights) else _without_prefix(weights)
    if crop and POSITIONS in found and config.positions == "learned":
        found[POSITIONS] = found[POSITIONS][
            : config.block_size
        ]  # (positions of the file, C) -> (block_size, C)
    if config.tied_head:
        found[HEAD] = found.get(EMBEDDING, wanted[EMBEDDING])
    _compare(wanted, found, path)
    return found


def _without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights that have GPT-2's names under ours."""
    found = {}
    for name, tensor in weights.items():
        name = name.removeprefix(PREFIX)
        if not name.endswith((".attn.bias", ".attn.masked_bias")):  # causal masks that old files carry
            found[name] = tensor.mT if _is_conv1d(name, tensor) else tensor
    return found


def _is_conv1d(name: str, tensor: Tensor) -> bool:
    """True if transformers keeps this one in a Conv1D, whose weight is the transpose of a Linear's."""
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
