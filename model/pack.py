"""A copy of a model made for generation: its matrices converted once, so that each step reads fewer bytes.

A decode step multiplies each weight with one number, so its time is that of reading the weights from memory:

    float32    the same numbers, laid out in the blocks in which oneDNN's kernels read them (CPU)
    bfloat16   half the bytes: 8 bits of mantissa, also in blocks on the CPU
    int8       a quarter: each row of a weight is 127 steps of its own size; CPU only, for small batches

What a packed model cannot do is compute a loss, train or be saved: keep the original for that.
"""

import copy
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.gpt import GPT

Precision = Literal["float32", "bfloat16", "int8"]
SMALL = (
    1 << 20
)  # below as many float32 weights, oneDNN's start takes longer than a plain product with one row


class BlockedLinear(nn.Module):
    """A linear layer whose weight, float32 or bfloat16, lies in oneDNN's blocked layout; (…, in) -> (…, out)."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        weight = linear.weight.detach().to(dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)  # for no batch size in particular
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        small = dtype == torch.float32 and weight.numel() < SMALL
        self.plain = weight if small else None

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) of float32 -> (…, out) of float32; products in the weight's dtype, sums in float32."""
        if self.plain is not None and x.numel() == x.shape[-1]:
            return F.linear(x, self.plain, self.bias)
        rows = x.to(self.weight.dtype)
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "").to(x.dtype)


class Int8Linear(nn.Module):
    """A linear layer with weights -127 … 127 and a scale for each output; (…, in) -> (…, out).

    Absolute maximum quantization by rows, as in LLM.int8() (Dettmers et al. 2022) for the weights alone.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        # torch's kernel takes 32 inputs at a time and does not look whether they are there: the rest are zeros.
        self.padding = 0, -linear.in_features % 32
        self.weight, scales = quantize_rows(F.pad(linear.weight.detach(), self.padding))
        self.scales = scales.bfloat16()
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in) of float32, rounded to bfloat16 on the way, -> (…, out) of float32."""
        rows = x.reshape(-1, x.shape[-1]).bfloat16()  # (…, in) -> (n, in)
        rows = F.pad(rows, self.padding) if self.padding[1] else rows
        y = torch._weight_int8pack_mm(rows, self.weight, self.scales)  # (n, out)
        y = y.to(x.dtype) if self.bias is None else y + self.bias  # a sum with a float32 bias is float32
        return y.view(*x.shape[:-1], -1)  # (n, out) -> (…, out)


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (out, in) -> int8 (out, in) and scales (out,) whose product is nearest to it.

    >>> quantize_rows(torch.tensor([[1.0, -0.5], [0.0, 0.0]]))[0].tolist()
    [[127, -64], [0, 0]]
    """
    scales = weight.abs().amax(1) / 127
    steps = weight / scales.clamp_min(torch.finfo(weight.dtype).tiny)[:, None]
    return steps.round().to(torch.int8), scales


def pack(gpt: GPT, precision: Precision = "float32") -> GPT:
    """A copy of `gpt` that says the same in fewer bytes, on its device, ready to evaluate.

    On a CPU only the matrices change: all that stands between them stays float32, and where this build of torch
    has no oneDNN for the precision, so do they. On a GPU the whole model takes the dtype; int8 is a ValueError.
    """
    if precision not in ("float32", "bfloat16", "int8"):
        raise ValueError(f"precision is {precision!r}: choose float32, bfloat16 or int8")
    on_cpu = gpt.wte.weight.device.type == "cpu"
    if precision == "int8" and not on_cpu:
        raise ValueError("int8 is for the CPU: choose bfloat16 on a GPU")
    packed = copy.deepcopy(gpt).eval().requires_grad_(False)
    if not on_cpu:
        return packed.to(getattr(torch, precision))
    if precision == "int8":
        _replace_linears(packed, Int8Linear)
    elif _has_onednn(precision):
        dtype = getattr(torch, precision)
        _replace_linears(packed, lambda linear: BlockedLinear(linear, dtype))
    return packed


def _has_onednn(precision: Precision) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return precision == "float32" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _replace_linears(gpt: GPT, convert: Callable[[nn.Linear], nn.Module]) -> None:
    for module in list(gpt.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, convert(child))
