"""A packed model's pass over new tokens as one call of kernels.decode, for models of plain blocks.

In a model of a million parameters the calls from Python (some forty a pass) take longer than the arithmetic. One call
computes the same numbers, bit for bit. Models that the op does not know take the way through model.gpt.
"""

import array
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from kernels import decode
from model.config import GPTConfig
from model.layers import position_angles

# The op has no name for what else these may be.
PLAIN = {
    "norm_place": "pre",
    "qk_norm": False,
    "value_embedding": False,
    "residual_scalars": False,
    "logit_softcap": None,
    "mup_width": None,
}


class Stored(Protocol):
    """The keys and values of one layer in pages, (pages, KV, L, D)."""

    keys: Tensor
    values: Tensor


class Step:
    """The tensors of a packed model, in the order in which the op takes them."""

    def __init__(self, gpt: nn.Module):
        """Collect them; `gpt` is a model.gpt.GPT whose blocks are model.pack.PackedBlocks."""
        config = gpt.config
        places = None if gpt.wpe is None else gpt.wpe.weight
        self.weights = [gpt.wte.weight, places, *_turns(config), *_norm(gpt.lm_head), *_linear(gpt.lm_head)]
        for block in gpt.h:
            self.weights += [*_norm(block.c_attn), *_linear(block.c_attn), *_linear(block.c_proj)]
            self.weights += [*_norm(block.inner), *_linear(block.gate), *_linear(block.inner)]
            self.weights += _linear(block.outer)
        activation = "silu" if config.mlp == "swiglu" else config.mlp
        self.options = config.norm, config.norm_eps, activation, config.window

    def __call__(
        self,
        ids: list[Tensor],
        positions: list[Tensor],
        pages: list[Tensor],
        layers: Sequence[Stored],
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Store the new tokens and return the logits (rows, V) after those that are `wanted`, or after all.

        Each list has a segment of b texts with t new tokens each: ids and positions (b, t), pages (b, n), of int64.
        """
        keys, values = [layer.keys for layer in layers], [layer.values for layer in layers]
        return decode.step(ids, positions, pages, wanted, keys, values, self.weights, *self.options)


def integers(values: Iterable[int]) -> Tensor:
    """Return a tensor of int64 on the CPU, several times sooner than torch.tensor, which asks each number for its type.

    >>> integers([3, 1])
    tensor([3, 1])
    """
    return torch.frombuffer(array.array("q", values), dtype=torch.int64)


def is_plain(config: GPTConfig) -> bool:
    """True if the op computes the packed blocks of such a model.

    >>> is_plain(GPTConfig()), is_plain(GPTConfig.preset("modern")), is_plain(GPTConfig(qk_norm=True))
    (True, True, False)
    """
    known = config.positions != "sinusoidal" and config.mlp != "relu2"
    return known and all(getattr(config, name) == value for name, value in PLAIN.items())


def _turns(config: GPTConfig) -> tuple[Tensor | None, Tensor | None]:
    """Return the cosines and sines of rotary positions, (block_size, D/2) each."""
    if config.positions != "rotary":
        return None, None
    angles = position_angles(torch.arange(config.block_size), config.rotary_dim, config.rope_theta)
    return angles.cos(), angles.sin()


def _linear(linear: nn.Module | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the weight, scales and bias of a model.pack.PackedLinear."""
    return (None, None, None) if linear is None else (linear.weight, linear.scales, linear.bias)


def _norm(linear: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Return the weight and bias of the norm before a model.pack.PackedLinear."""
    return linear.norm[1:3]
