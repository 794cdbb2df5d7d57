"""ONNX, the format of onnxruntime: one graph that reads a prompt and that also makes one cached step.

    inputs    input_ids (batch, tokens) int64; past_key_i, past_value_i (batch, heads, past, width) for each layer i
    outputs   logits (batch, tokens, vocabulary); present_key_i, present_value_i (batch, heads, past + tokens, width)

With a `past` of 0 tokens it is the pass over a prompt; what it returns as `present` is the next call's past. All three
lengths may differ from call to call. torch.onnx writes the graph; here is what it traces.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import kernels
from common.files import atomic
from model.gpt import GPT


class Past:
    """The keys and values of one layer, (B, KV, P, D), grown by concatenation: a `Cache` that can be traced."""

    fused = False

    def __init__(self, keys: Tensor, values: Tensor, mask: Tensor):
        self.keys, self.values, self.mask = keys, values, mask

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Add k and v (B, T, KV, D); return all keys and values (B, KV, P + T, D) and the mask (T, P + T)."""
        self.keys = torch.cat([self.keys, k.transpose(1, 2)], 2)
        self.values = torch.cat([self.values, v.transpose(1, 2)], 2)
        return self.keys, self.values, self.mask


class Step(nn.Module):
    """A pass over new tokens, with the keys and values of earlier ones as arguments and results."""

    def __init__(self, gpt: GPT):
        super().__init__()
        self.gpt = gpt

    def forward(self, input_ids: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Map ids (B, T) and each layer's keys and values to logits (B, T, V) and the longer keys and values."""
        before, count = past[0].shape[2], input_ids.shape[1]
        positions = torch.arange(before, before + count)  # (T,)
        keys = torch.arange(before + count)  # (P + T,)
        mask = keys <= positions[:, None]
        if self.gpt.config.window is not None:
            mask = mask & (keys > positions[:, None] - self.gpt.config.window)
        layers = [Past(*pair, mask) for pair in zip(past[::2], past[1::2], strict=True)]
        logits = self.gpt.logits(self.gpt.hidden(input_ids, positions, layers))
        return logits, *(each for layer in layers for each in (layer.keys, layer.values))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the exporter's warnings, which are about other people's models."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def save(path: Path, gpt: GPT) -> None:
    """Write the graph with its weights; ValueError for a model with layers other than plain attention."""
    config = gpt.config
    if "m" in config.pattern or config.kv_lora_rank or config.n_expert:
        raise ValueError(
            "ONNX export knows plain attention and MLPs: no state spaces, latent attention or experts"
        )
    pasts = [torch.zeros(2, config.kv_heads, 3, config.head_dim) for _ in range(2 * config.n_layer)]
    batch, tokens, before = (torch.export.Dim(name) for name in ("batch", "tokens", "past"))
    names = [f"{kind}_{layer}" for layer in range(config.n_layer) for kind in ("key", "value")]
    with atomic(path) as file, kernels.use("torch"), _quiet():
        program = torch.onnx.export(
            Step(gpt).eval(),
            (torch.zeros(2, 4, dtype=torch.long), pasts),
            input_names=["input_ids", *(f"past_{name}" for name in names)],
            output_names=["logits", *(f"present_{name}" for name in names)],
            dynamic_shapes=({0: batch, 1: tokens}, [{0: batch, 2: before}] * len(pasts)),
            dynamo=True,
            verbose=False,
        )
        file.write(program.model_proto.SerializeToString())
