"""GPTConfig: every choice that shapes a model, and the presets that have names.

Grown from the GPTConfig of basics/gpt.py, which has the six fields of a GPT-2. A config is frozen; an impossible one is
a ValueError that lists every field at fault.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT."""

    vocab_size: int = 50257
    """Number of token ids."""
    block_size: int = 1024
    """Longest context, in tokens."""
    n_layer: int = 12
    """Number of blocks."""
    layers: str | None = None
    """What each block is: a for attention with an MLP, m for a state space (Mamba-2), as in "aam" (None: all a)."""
    n_head: int = 12
    """Attention heads per block."""
    n_kv_head: int | None = None
    """Key and value heads, shared by groups of query heads (None: as many as n_head)."""
    n_embd: int = 768
    """Width of the residual stream."""
    n_inner: int | None = None
    """Width inside the MLP (None: 4 times n_embd)."""
    dropout: float = 0.0
    """Fraction of activations dropped in training: embeddings, attention weights, block outputs."""
    bias: bool = True
    """Give linear layers and LayerNorm a bias, as in GPT-2."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Which normalization."""
    norm_place: Literal["pre", "post"] = "pre"
    """Normalize before each sublayer (GPT-2) or after each residual addition (the first transformer)."""
    norm_eps: float = 1e-5
    """Added to the variance before its root is taken."""
    positions: Literal["learned", "sinusoidal", "rotary", "none"] = "learned"
    """How the model knows the position of a token."""
    rope_theta: float = 10000.0
    """Base of the wavelengths of rotary positions."""
    mlp: Literal["gelu", "silu", "relu2", "swiglu"] = "gelu"
    """Which MLP: two matrices around GELU, SiLU or ReLU squared, or the gated SwiGLU with three."""
    window: int | None = None
    """Sliding window: each token sees itself and the window - 1 tokens before it (None: all)."""
    tied_head: bool = True
    """Use the token embedding itself as the output head."""
    qk_norm: bool = False
    """Normalize each query and key before their product, with learned scales (Qwen3)."""
    value_embedding: bool = False
    """Add a second token embedding to the values of every layer (modded-nanogpt)."""
    residual_scalars: bool = False
    """Mix the stream and the embedding by two learned numbers before each block (modded-nanogpt)."""
    zero_init: bool = False
    """Start the projections that add to the stream at 0, so that every block begins as the identity."""
    mimetic_init: bool = False
    """Start with heads that look for tokens like their own and copy them, as in trained models."""
    mup_width: int | None = None
    """Width that the learning rates were chosen for: all widths with as many heads then share them, by the maximal
    update parametrization (Yang et al. 2022) (None: GPT-2's initialization)."""
    logit_softcap: float | None = None
    """Keep logits inside plus and minus this, by a tanh (Gemma 2) (None: leave them)."""
    kv_lora_rank: int | None = None
    """Rebuild keys and values from this many numbers a token: multi-head latent attention (None: plain heads)."""
    q_lora_rank: int | None = None
    """With latent attention, project queries in two steps through this many numbers (None: in one)."""
    rope_dim: int | None = None
    """With latent attention, the part of a query that rotary positions turn (None: half a head)."""
    ssm_state: int = 64
    """Numbers that a state-space layer remembers for each channel."""
    ssm_head: int = 64
    """Width of a head of a state-space layer, which is 2 times n_embd wide."""
    n_expert: int | None = None
    """Experts in place of each MLP, each as wide as it; a router chooses for every token (None: one MLP)."""
    n_expert_active: int = 2
    """Experts that a token uses."""
    n_expert_shared: int | None = None
    """Experts that every token uses besides (None: no such)."""
    expert_balance: Literal["loss", "bias"] = "loss"
    """Keep the experts' load even by a term of the loss (Mixtral) or by a bias on each score (DeepSeek-V3)."""
    expert_capacity: float | None = None
    """Tokens that an expert takes in training, as a multiple of its even share (None: all)."""
    n_ahead: int | None = None
    """Learn to predict this many tokens after the next as well; only training uses it (None: no such)."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass: a third more arithmetic, far less memory."""

    def __post_init__(self) -> None:
        faults = [*self._out_of_range(), *self._unknown_choices()]
        faults = faults or self._ill_fitting()
        if faults:
            raise ValueError("GPTConfig: " + "; ".join(faults))

    def _out_of_range(self) -> list[str]:
        faults = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and type(None) in get_args(field.type):
                continue
            if field.type == float | None and not (_is_number(value) and 0 < value < math.inf):
                faults.append(f"{field.name} is {value!r}, must be a number above 0")
            if field.type in (int, int | None) and not (type(value) is int and value >= 1):
                faults.append(f"{field.name} is {value!r}, must be a whole number of at least 1")
            if field.type is bool and type(value) is not bool:
                faults.append(f"{field.name} is {value!r}, must be true or false")
        if self.layers is not None and not (type(self.layers) is str and set(self.layers) <= set("am")):
            faults.append(f"layers is {self.layers!r}, must be letters a and m")
        if not (_is_number(self.dropout) and 0 <= self.dropout < 1):
            faults.append(f"dropout is {self.dropout!r}, must be in [0, 1)")
        for name in ("norm_eps", "rope_theta"):
            if not (_is_number(getattr(self, name)) and 0 < getattr(self, name) < math.inf):
                faults.append(f"{name} is {getattr(self, name)!r}, must be a number above 0")
        return faults

    def _unknown_choices(self) -> list[str]:
        choices = {f.name: f.type.__args__ for f in dataclasses.fields(self) if _is_choice(f.type)}
        return [
            f"{name} is {getattr(self, name)!r}, must be one of {', '.join(known)}"
            for name, known in choices.items()
            if getattr(self, name) not in known
        ]

    def _ill_fitting(self) -> list[str]:
        faults = []
        if self.n_embd % self.n_head:
            faults.append(f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}")
        if self.n_head % self.kv_heads:
            faults.append(f"n_head {self.n_head} is not divisible by n_kv_head {self.kv_heads}")
        if self.positions == "rotary" and self.rotary_dim % 2:
            origin = "rope_dim" if self.kv_lora_rank else "n_embd / n_head"
            faults.append(f"rotary positions need an even head size, {origin} is {self.rotary_dim}")
        if self.positions == "sinusoidal" and self.n_embd % 2:
            faults.append(f"sinusoidal positions need an even n_embd, not {self.n_embd}")
        faults += [*self._latent_faults(), *self._pattern_faults()]
        if self.mimetic_init:
            others = [name for name in ("zero_init", "kv_lora_rank", "mup_width") if getattr(self, name)]
            faults += [f"mimetic_init excludes {name}" for name in others]
        if self.mup_width is not None:
            others = ("kv_lora_rank", "n_expert", "n_ahead", "value_embedding")
            faults += [f"mup_width excludes {name}" for name in others if getattr(self, name)]
            faults += ["mup_width excludes layers with a state space"] if "m" in self.pattern else []
        if self.n_expert is not None and self.n_expert_active > self.n_expert:
            faults.append(f"n_expert_active {self.n_expert_active} is more than n_expert {self.n_expert}")
        if self.n_expert is None and (self.n_expert_shared or self.expert_capacity):
            faults.append("n_expert_shared and expert_capacity need an n_expert")
        return faults

    def _pattern_faults(self) -> list[str]:
        """Return what does not go together with the pattern of layers."""
        faults = []
        if len(self.pattern) != self.n_layer:
            faults.append(
                f"layers {self.layers!r} names {len(self.pattern)} blocks, n_layer is {self.n_layer}"
            )
        if "m" not in self.pattern:
            return faults
        if self.window is not None:
            faults.append(f"layers {self.layers!r} excludes a window ({self.window}): a state has no window")
        if 2 * self.n_embd % self.ssm_head:
            faults.append(f"2 n_embd {2 * self.n_embd} is not divisible by ssm_head {self.ssm_head}")
        attends = [name for name in ("value_embedding", "kv_lora_rank", "n_expert") if getattr(self, name)]
        if "a" not in self.pattern:
            faults += [f"layers {self.layers!r} has no attention, which {name} needs" for name in attends]
        return faults

    def _latent_faults(self) -> list[str]:
        """Return what does not go together with latent attention, or only with it."""
        if self.kv_lora_rank is None:
            return [
                f"{name} needs a kv_lora_rank"
                for name in ("q_lora_rank", "rope_dim")
                if getattr(self, name) is not None
            ]
        faults = []
        if self.kv_heads != self.n_head:
            faults.append("kv_lora_rank excludes n_kv_head: the heads share one latent, not keys and values")
        if self.positions != "rotary":
            faults.append(f"kv_lora_rank needs rotary positions, positions is {self.positions!r}")
        others = [name for name in ("qk_norm", "value_embedding") if getattr(self, name)]
        return faults + [f"kv_lora_rank excludes {name}" for name in others]

    @property
    def head_dim(self) -> int:
        """Return the width of one head.

        >>> GPTConfig(n_embd=96, n_head=3).head_dim
        32
        """
        return self.n_embd // self.n_head

    @property
    def pattern(self) -> str:
        """Return what each block is, a letter for each.

        >>> GPTConfig(n_layer=3).pattern
        'aaa'
        """
        return "a" * self.n_layer if self.layers is None else self.layers

    @property
    def rotary_dim(self) -> int:
        """Return how many numbers of a query are turned by rotary positions.

        >>> GPTConfig(n_embd=96, n_head=3, positions="rotary", kv_lora_rank=16).rotary_dim
        16
        """
        if self.kv_lora_rank is None:
            return self.head_dim
        return self.head_dim // 2 if self.rope_dim is None else self.rope_dim

    @property
    def width_ratio(self) -> float:
        """Return how many times wider than `mup_width` the model is; 1 without the parametrization.

        >>> GPTConfig(n_embd=96, n_head=3, mup_width=48).width_ratio
        2.0
        """
        return 1.0 if self.mup_width is None else self.n_embd / self.mup_width

    @property
    def kv_heads(self) -> int:
        """Return the number of key and value heads."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def inner(self) -> int:
        """Return the width inside the MLP."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "GPTConfig":
        """Return the preset called `name`, with `changes` to single fields.

        >>> GPTConfig.preset("gpt2", dropout=0.0).n_layer
        12
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})


# Fields that configs of earlier versions have, with the values that those versions knew. `attention` said which kernels
# compute, never what: kernels.use and --kernels choose that now.
RETIRED = {"attention": ("torch", "sdpa", "fused")}


def without_retired(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a config file without the fields of earlier versions that change no result.

    >>> without_retired({"n_layer": 2, "attention": "sdpa"})
    {'n_layer': 2}
    """
    return {name: value for name, value in values.items() if value not in RETIRED.get(name, ())}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _is_choice(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) is Literal


PRESETS: dict[str, dict[str, Any]] = {
    "quickstart": {"vocab_size": 2048, "block_size": 384, "n_layer": 4, "n_head": 4, "n_embd": 128},
    "tinystories": {
        "vocab_size": 50257,
        "block_size": 128,
        "n_layer": 6,
        "n_head": 6,
        "n_embd": 384,
        "dropout": 0.1,
    },
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "dropout": 0.1},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "dropout": 0.1},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280, "dropout": 0.1},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600, "dropout": 0.1},
    "modern": {
        "vocab_size": 10_000,
        "block_size": 256,
        "n_layer": 4,
        "n_head": 16,
        "n_embd": 512,
        "n_inner": 1344,
        "bias": False,
        "norm": "rmsnorm",
        "positions": "rotary",
        "mlp": "swiglu",
    },
}
