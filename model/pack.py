"""A copy of a model for generation: fewer bytes to read for each token, and fewer calls.

A decode step multiplies each weight with one number, so it takes as long as reading the weights from memory:

    float32    the same numbers
    bfloat16   half the bytes: 8 bits of mantissa
    int8       a quarter: each row of a weight is 127 steps of its own size; CPU only

On the CPU a block becomes five calls of kernels.decode, with float32 between and inside them, and a step of generation
one call, if the op knows the model (model.step). A packed model cannot compute a loss, train or be saved: keep the
original for that.
"""

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from kernels import decode
from model import step
from model.attention import Cache
from model.config import GPTConfig
from model.gpt import GPT, Block, check_unpacked
from model.layers import LayerNorm, RMSNorm, SwiGLU

Precision = Literal["float32", "bfloat16", "int8"]


class PackedLinear(nn.Module):
    """A norm, a linear layer, an activation and a residual sum in one call; (…, in) -> (…, out)."""

    def __init__(
        self, linear: nn.Linear, precision: Precision, norm: nn.Module | None = None, activation: str = "none"
    ):
        super().__init__()
        weight, scales = quantize(linear.weight.detach(), precision)
        self.weight, self.scales = decode.pack_weight(weight), scales
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.norm = _norm_arguments(norm)
        self.arguments = linear.out_features, scales, self.bias, *self.norm, activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map x (…, in) and residual (…, out) of float32 to (…, out) of float32."""
        return decode.packed_linear(x, self.weight, *self.arguments, residual)


def _norm_arguments(norm: nn.Module | None) -> tuple[str, Tensor | None, Tensor | None, float]:
    """Return the norm's kind, weight, bias and eps."""
    if isinstance(norm, RMSNorm):
        return "rmsnorm", norm.weight.detach(), None, norm.eps
    if isinstance(norm, LayerNorm):
        return "layernorm", norm.weight.detach(), None if norm.bias is None else norm.bias.detach(), norm.eps
    return "none", None, None, 1.0


class PackedBlock(nn.Module):
    """A model.gpt.Block in five calls (six with a gate, two more if it normalizes after)."""

    def __init__(self, block: Block, precision: Precision):
        super().__init__()
        before = (None, None) if block.post else (block.ln_1, block.ln_2)
        self.after = (block.ln_1, block.ln_2) if block.post else (nn.Identity(), nn.Identity())
        self.attn = block.attn
        self.c_attn = PackedLinear(block.attn.c_attn, precision, before[0])
        self.c_proj = PackedLinear(block.attn.c_proj, precision)
        gated, self.act = isinstance(block.mlp, SwiGLU), nn.Identity()
        name = "silu" if gated else type(block.mlp.act).__name__.lower()
        if name == "relu2":  # which the kernel does not know
            name, self.act = "none", block.mlp.act
        self.gate = PackedLinear(block.mlp.c_gate, precision, before[1], name) if gated else None
        self.inner = PackedLinear(block.mlp.c_fc, precision, before[1], "none" if gated else name)
        self.outer = PackedLinear(block.mlp.c_proj, precision)
        self.attn.c_attn = self.attn.c_proj = None  # packed: their memory can go

    def forward(
        self,
        x: Tensor,
        angles: Tensor | None = None,
        cache: Cache | None = None,
        values: Tensor | None = None,
    ) -> Tensor:
        """Map x (B, T, C) to (B, T, C)."""
        y = self.attn.mix(self.c_attn(x), angles, cache, values)
        x = self.after[0](self.c_proj(y, x))
        inner = self.act(self.inner(x))
        if self.gate is not None:
            inner = inner * self.gate(x)
        return self.after[1](self.outer(inner, x))


def quantize(weight: Tensor, precision: Precision) -> tuple[Tensor, Tensor | None]:
    """Return weight (out, in) in the precision, and for int8 the scales (out,) of its rows."""
    if precision == "int8":
        return quantize_rows(weight)
    return weight.to(getattr(torch, precision)), None


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 (out, in) and scales (out,) whose product is nearest to weight (out, in).

    Absolute maximum quantization by rows, as in LLM.int8() (Dettmers et al. 2022) for the weights alone.

    >>> quantize_rows(torch.tensor([[1.0, -0.5], [0.0, 0.0]]))[0].tolist()
    [[127, -64], [0, 0]]
    """
    scales = weight.abs().amax(1) / 127
    steps = weight / scales.clamp_min(torch.finfo(weight.dtype).tiny)[:, None]
    return steps.round().to(torch.int8), scales


@torch.no_grad()
def pack(gpt: GPT, precision: Precision = "float32") -> GPT:
    """Return a copy of `gpt` with weights of fewer bytes, on its device, ready to evaluate.

    On a CPU only the matrices change: everything between them stays float32. Without the C++ kernels, or with experts,
    latent attention or state spaces, they are rounded and torch computes with them as before, no faster. On a GPU the
    whole model takes the dtype; int8 is a ValueError.
    """
    if precision not in ("float32", "bfloat16", "int8"):
        raise ValueError(f"precision is {precision!r}: choose float32, bfloat16 or int8")
    check_unpacked(gpt, "be packed again")
    on_cpu = gpt.wte.weight.device.type == "cpu"
    if precision == "int8" and not on_cpu:
        raise ValueError("int8 is for the CPU: choose bfloat16 on a GPU")
    packed = copy.deepcopy(gpt).eval().requires_grad_(False)
    if not on_cpu:
        return packed.to(getattr(torch, precision))
    if not is_packable(gpt.config):
        return _rounded(packed, precision)
    packed.h = nn.ModuleList(PackedBlock(block, precision) for block in packed.h)
    packed.lm_head = PackedLinear(packed.lm_head, precision, packed.ln_f)
    packed.ln_f = nn.Identity()
    linears = [module for module in packed.modules() if isinstance(module, PackedLinear)]
    for linear, weight in zip(linears, decode.side_by_side([each.weight for each in linears]), strict=True):
        linear.weight = weight
    if decode.HAS_STEP and step.is_plain(gpt.config):
        packed.fused_step = step.Step(packed)
    return packed


def for_decoding(gpt: GPT) -> GPT:
    """Return the model packed in float32 on a CPU, where that decodes faster; itself if there is no such way."""
    return pack(gpt) if gpt.wte.weight.is_cpu and is_packable(gpt.config) else gpt


def is_packable(config: GPTConfig) -> bool:
    """True if there are C++ kernels, and every block is one that PackedBlock knows."""
    return (
        decode.available()
        and config.n_expert is None
        and config.kv_lora_rank is None
        and "m" not in config.pattern
    )


def _rounded(gpt: GPT, precision: Precision) -> GPT:
    """Return `gpt` with the numbers of its matrices rounded, in float32; a tied embedding is not rounded."""
    for module in gpt.modules():
        if isinstance(module, nn.Linear):
            weight, scales = quantize(module.weight, precision)
            wide = weight.float() if scales is None else weight * scales[:, None]
            module.weight = nn.Parameter(wide, requires_grad=False)
    return gpt
