"""Low-rank adaptation (Hu et al. 2021): train W + (alpha / r) · B A with W frozen, and save A and B alone.

    adapters = attach(model, LoRA(rank=8, alpha=16, targets=("c_attn", "c_proj")), tokens=[2048, 2049])
    …                                                  # train what requires a gradient
    adapters.save(directory)                           # PEFT's layout
    adapters.merge()                                   # a plain model again, with the same logits
    load(base_model, directory)                        # adapters of ours or of PEFT

The update is a parametrization of the weight (torch.nn.utils.parametrize): whatever reads `layer.weight`, a module or a
fused kernel, reads the sum. So any linear layer will do, and tied weights stay tied. It costs one product of small
matrices a pass; it saves the optimizer's state and the file, not the backward pass.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.nn.utils import parametrize

from common import files
from inference.chat import CHAT_TOKENS, ChatTemplate
from model import GPT
from training.objective import Objective

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ALL_LINEAR = "all-linear"
PREFIX = "base_model.model."
ROWS = "token_adapter.trainable_tokens_delta"
# Options of PEFT's LoraConfig that change the arithmetic; ours knows only these values.
UNCHANGED = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "exclude_modules": (None, []),
    "layers_to_transform": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
}


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Which layers are adapted and how much."""

    rank: int
    """Columns of B and rows of A."""
    alpha: float
    """The update is multiplied by alpha / rank."""
    targets: tuple[str, ...] | str = (ALL_LINEAR,)
    """Names, or ends of names, of linear layers; "all-linear" is every one but the head; a text is a regular expression
    for whole names, as in PEFT."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora rank is {self.rank}: it must be at least 1")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"lora alpha is {self.alpha}: it must be above 0, such as twice the rank")

    def names(self, model: nn.Module) -> list[str]:
        """Return the layers of the model that are adapted; ValueError if a target is no linear layer of it."""
        linear = [name for name, module in model.named_modules() if _is_linear(module)]
        body = [name for name in linear if name != "lm_head"]
        if isinstance(self.targets, str) and self.targets != ALL_LINEAR:
            found = [name for name in linear if re.fullmatch(self.targets, name)]
        else:
            targets = (self.targets,) if isinstance(self.targets, str) else self.targets
            per_target = {
                target: _ends(body if target == ALL_LINEAR else linear, target) for target in targets
            }
            for target, names in per_target.items():
                if not names:
                    ends = sorted({name.rpartition(".")[2] for name in linear})
                    raise ValueError(
                        f"{target!r} is no linear layer: choose among {', '.join(ends)}, {ALL_LINEAR}"
                    )
            wanted = {name for names in per_target.values() for name in names}
            found = [name for name in linear if name in wanted]
        if not found:
            raise ValueError(f"no linear layer has a name that is {self.targets!r}")
        return found


def _ends(names: Sequence[str], target: str) -> list[str]:
    return [name for name in names if target == ALL_LINEAR or f".{name}".endswith(f".{target}")]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    """True for transformers' Conv1D, a linear layer that stores its weight as (in, out): PEFT's fan_in_fan_out."""
    return type(module).__name__.removeprefix("Parametrized") == "Conv1D"


class LowRank(nn.Module):
    """The weight plus (alpha / rank) · B A; B begins at zero, so that training begins at the base."""

    def __init__(self, weight: Tensor, lora: LoRA, fan_in_fan_out: bool) -> None:
        super().__init__()
        fan_out, fan_in = reversed(weight.shape) if fan_in_fan_out else weight.shape
        like = {"device": weight.device, "dtype": weight.dtype}
        self.lora_A = nn.Parameter(torch.empty(lora.rank, fan_in, **like))
        self.lora_B = nn.Parameter(torch.zeros(fan_out, lora.rank, **like))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as a linear layer begins, and as in PEFT
        self.scale, self.fan_in_fan_out = lora.alpha / lora.rank, fan_in_fan_out

    def forward(self, weight: Tensor) -> Tensor:
        """Map a weight (out, in), or (in, out) with fan_in_fan_out, to one of the same shape."""
        update = self.scale * (self.lora_B @ self.lora_A)  # (out, r) @ (r, in)
        return weight + (update.mT if self.fan_in_fan_out else update)


class TrainedRows(nn.Module):
    """An embedding with some rows replaced by trained ones: those of tokens that the base does not know."""

    def __init__(self, weight: Tensor, ids: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("ids", torch.tensor(list(ids), device=weight.device), persistent=False)
        self.rows = nn.Parameter(weight.detach()[self.ids].clone())

    def forward(self, weight: Tensor) -> Tensor:
        """Map an embedding (V, C) to one of the same shape."""
        return weight.index_copy(0, self.ids, self.rows)


class Adapters:
    """The adapters of a model, as `attach` returns them."""

    def __init__(self, model: nn.Module, lora: LoRA, tokens: Sequence[int]) -> None:
        """Attach the adapters and freeze everything else; see `attach`."""
        if any(parametrize.is_parametrized(module) for module in model.modules()):
            raise ValueError("the model has adapters already: merge them first")
        self.model, self.lora, self.tokens = model, lora, list(tokens)
        self.names = lora.names(model)
        self.embedding = _embedding(model)
        _check_untied(model, self.names, self.embedding)
        self.base = _fingerprint(model, self.names)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for name in self.names:
            module = model.get_submodule(name)
            update = LowRank(module.weight, lora, _is_conv1d(module))
            parametrize.register_parametrization(module, "weight", update)
        if self.tokens:
            self._train_rows()

    def _train_rows(self) -> None:
        """Replace the tokens' rows in the embedding and, by the same trained rows, in a head that is tied to it."""
        weight = self.model.get_submodule(self.embedding).weight
        outside = [id for id in self.tokens if not 0 <= id < len(weight)]
        if outside:
            raise ValueError(f"token {outside[0]} has no row: the embedding has {len(weight)}")
        rows = TrainedRows(weight, self.tokens)
        for module in [m for m in self.model.modules() if getattr(m, "weight", None) is weight]:
            parametrize.register_parametrization(module, "weight", rows)

    def _added(self) -> Iterator[tuple[str, nn.Module, str]]:
        """Yield each trained tensor's key in PEFT's file, the module that has it, and its name there."""
        for name in self.names:
            update = self.model.get_submodule(name).parametrizations.weight[0]
            for part in ("lora_A", "lora_B"):
                yield f"{self._key(name)}.{part}.weight", update, part
        if self.tokens:
            rows = self.model.get_submodule(self.embedding).parametrizations.weight[0]
            yield f"{self._key(self.embedding)}.{ROWS}", rows, "rows"

    def _key(self, name: str) -> str:
        """Return a layer's name in PEFT's file, where the body of a GPT-2 is called transformer."""
        ours = isinstance(self.model, GPT) and name != "lm_head"
        return f"{PREFIX}{'transformer.' if ours else ''}{name}"

    def save(self, directory: Path) -> None:
        """Write adapter_config.json and adapter_model.safetensors; the latter's metadata names the base's weights."""
        tensors = {
            key: getattr(module, part).detach().cpu().contiguous() for key, module, part in self._added()
        }
        with files.atomic(directory / WEIGHTS) as file:
            file.write(to_bytes(tensors, metadata={"format": "pt", "base": self.base}))
        files.write_json(directory / CONFIG, self._config())

    def _config(self) -> dict[str, Any]:
        """Return the content of adapter_config.json. A GPT of ours is saved as GPT-2, whose layers are Conv1D."""
        conv1d = any(_is_conv1d(self.model.get_submodule(name)) for name in self.names)
        names = [self._key(name).removeprefix(PREFIX) for name in self.names]
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": None,
            "r": self.lora.rank,
            "lora_alpha": self.lora.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": names,
            "fan_in_fan_out": conv1d or isinstance(self.model, GPT),
            "trainable_token_indices": self.tokens or None,
            "inference_mode": True,
        }

    @torch.no_grad()
    def load_tensors(self, path: Path) -> None:
        """Fill the adapters from adapter_model.safetensors; ValueError if it fits other layers or another base."""
        try:
            with safe_open(path, "pt") as file:
                base = (file.metadata() or {}).get("base", self.base)
                found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error}): save the adapters again") from error
        wanted = {key: getattr(module, part) for key, module, part in self._added()}
        for key in wanted.keys() ^ found.keys():
            raise ValueError(f"{path} {'lacks' if key in wanted else 'has an unknown'} {key}")
        for key, tensor in wanted.items():
            if tensor.shape != found[key].shape:
                raise ValueError(
                    f"{path}: {key} is {tuple(found[key].shape)}, the model needs {tuple(tensor.shape)}"
                )
        if base != self.base:
            raise ValueError(
                f"{path} was trained on other weights than these; if they are those of the same run, its adapters are "
                "merged into them already: load them into what the run began from"
            )
        for key, tensor in wanted.items():
            tensor.copy_(found[key])

    def merge(self) -> None:
        """Add the updates to the weights for good; ValueError if that has been done."""
        adapted = [module for module in self.model.modules() if parametrize.is_parametrized(module, "weight")]
        if not adapted:
            raise ValueError("the adapters are merged already")
        tied = [module for module in adapted if not _is_linear_named(self.model, module, self.names)]
        for module in adapted:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        for module in tied[1:]:  # the weight of an embedding and its head is one tensor again
            module.weight = tied[0].weight
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptation:
    """Train small adapters instead of all weights (LoRA)."""

    lora_rank: int = 0
    """Rank of the adapters; 0 trains all weights."""
    lora_alpha: float = 0.0
    """The adapters' update is multiplied by alpha / rank. Default: twice the rank."""
    lora_targets: str = ALL_LINEAR
    """Linear layers to adapt, by the ends of their names with commas between; all-linear takes all but the head."""


class Adapting(Objective):
    """An objective that trains the whole model or, if its `config` says so, adapters and the role tokens' rows."""

    config: Any
    template: ChatTemplate
    adapters: Adapters | None = None

    def adapt(self, model: GPT) -> GPT:
        """Return the model, with adapters attached if the configuration has a rank for them."""
        config, special = self.config, self.template.tokenizer.special_tokens
        if config.lora_rank:
            lora = LoRA(
                config.lora_rank,
                config.lora_alpha or 2 * config.lora_rank,
                ALL_LINEAR if config.lora_targets == ALL_LINEAR else tuple(config.lora_targets.split(",")),
            )
            self.adapters = attach(model, lora, [special[name] for name in CHAT_TOKENS if name in special])
        return model

    def save(self, model: GPT, directory: Path) -> None:
        """Write the adapters in PEFT's files; the weights next to them have them merged in."""
        if self.adapters:
            self.adapters.save(directory)


def _is_linear_named(model: nn.Module, module: nn.Module, names: Sequence[str]) -> bool:
    return any(model.get_submodule(name) is module for name in names)


def _embedding(model: nn.Module) -> str:
    """Return the name of the token embedding: the first one in the model."""
    return next(name for name, module in model.named_modules() if isinstance(module, nn.Embedding))


def _check_untied(model: nn.Module, names: Sequence[str], embedding: str) -> None:
    """Raise ValueError if a layer to adapt shares its weight with the embedding: PEFT would adapt one of the two."""
    shared = model.get_submodule(embedding).weight
    for name in names:
        if model.get_submodule(name).weight is shared:
            raise ValueError(
                f"{name} is tied to {embedding}: an adapter would change both; choose other targets"
            )


def _fingerprint(model: nn.Module, names: Sequence[str]) -> str:
    """Return the SHA-256 of the weights that are adapted, in whatever layout they are."""
    digest = hashlib.sha256()
    for name in names:
        module = model.get_submodule(name)
        weight = module.weight.detach().cpu().float()
        weight = weight.mT if _is_conv1d(module) else weight  # (out, in)
        digest.update(weight.contiguous().numpy().tobytes())
    return digest.hexdigest()


def attach(model: nn.Module, lora: LoRA, tokens: Sequence[int] = ()) -> Adapters:
    """Adapt layers of a model and train the embedding's rows of `tokens`; all other weights are frozen.

    ValueError for a target that is no linear layer of it, or one that is tied to the embedding.
    """
    return Adapters(model, lora, tokens)


def load(model: nn.Module, directory: Path) -> Adapters:
    """Attach the adapters in a directory, of ours or of PEFT; ValueError if they do not fit the model.

    What changes the result in PEFT's configuration and is not known here is refused by name.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{directory} holds no adapters (no {CONFIG}): give the directory of some")
    config = files.read_json(path)
    for name, values in UNCHANGED.items():
        if name in config and config[name] not in values:
            raise ValueError(f"{path}: {name} {json.dumps(config[name])} is not supported")
    targets = config.get("target_modules") or ()
    ours = isinstance(model, GPT)
    targets = (
        targets
        if isinstance(targets, str)
        else tuple(t.removeprefix("transformer.") if ours else t for t in targets)
    )
    lora = LoRA(config["r"], config["lora_alpha"], targets)
    adapters = attach(model, lora, _tokens(config.get("trainable_token_indices"), path))
    adapters.load_tensors(directory / WEIGHTS)
    return adapters


def _tokens(indices: Any, path: Path) -> list[int]:
    """Return the ids whose rows were trained; PEFT may also give them by the name of the embedding."""
    if isinstance(indices, dict):
        if len(indices) > 1:
            raise ValueError(f"{path}: trainable_token_indices of several embeddings are not supported")
        indices = next(iter(indices.values()), None)
    return list(indices or [])
