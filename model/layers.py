"""The parts of a transformer, one idea each: dropout, norms, positions, MLPs. Attention has a file of its
own.

`backend` says who computes: "torch" is the arithmetic written out, "sdpa" torch's own op, "fused" our kernel
where there is one and torch's op where there is none. The results are equal; only the speed is not.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Backend = Literal["torch", "sdpa", "fused"]


class Dropout(nn.Module):
    """In training, zeroes each value with probability p and scales the rest by 1 / (1 - p)."""

    def __init__(self, p: float, backend: Backend = "torch"):
        super().__init__()
        self.p, self.backend = p, backend

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape -> the same shape."""
        if not self.training or self.p == 0:
            return x
        if self.backend != "torch":
            return F.dropout(x, self.p)
        kept = torch.rand_like(x, dtype=torch.float32) >= self.p  # in 16 bits p would be rounded
        return x * kept / (1 - self.p)


class LayerNorm(nn.Module):
    """Each row to mean 0 and variance 1, then scaled and shifted (Ba et al. 2016).

    >>> LayerNorm(2, eps=0.0)(torch.tensor([1.0, 3.0])).tolist()
    [-1.0, 1.0]
    """

    def __init__(self, width: int, bias: bool = True, eps: float = 1e-5, backend: Backend = "torch"):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.eps, self.backend = eps, backend

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) -> (…, C); the statistics are float32 whatever the dtype."""
        if self.backend == "fused":
            from kernels import layer_norm

            return layer_norm(x, self.weight, self.bias, self.eps)
        if self.backend == "sdpa":
            # autocast on a GPU would give float32 back
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)
        wide = x.float()
        centered = wide - wide.mean(-1, keepdim=True)
        variance = centered.square().mean(-1, keepdim=True)  # (…, 1)
        y = centered * (variance + self.eps).rsqrt() * self.weight
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and x + residual itself: one pass over memory in the kernel."""
        if self.backend == "fused":
            from kernels import add_layer_norm

            return add_layer_norm(x, residual, self.weight, self.bias, self.eps)
        total = x + residual
        return self(total), total


class RMSNorm(nn.Module):
    """Each row to a root mean square of 1, then scaled; no mean, no shift (Zhang and Sennrich 2019).

    >>> RMSNorm(2, eps=0.0)(torch.tensor([3.0, 3.0])).tolist()
    [1.0, 1.0]
    """

    def __init__(self, width: int, eps: float = 1e-5, backend: Backend = "torch"):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps, self.backend = eps, backend

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) -> (…, C); the statistics are float32 whatever the dtype."""
        if self.backend != "torch":
            return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps).to(x.dtype)
        wide = x.float()
        y = wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return (y * self.weight).to(x.dtype)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and x + residual itself."""
        total = x + residual
        return self(total), total


class LearnedPositions(nn.Embedding):
    """Positions (…) -> (…, C): a row of its own for each position, learned like any weight (GPT-2)."""


class SinusoidalPositions(nn.Module):
    """Positions (…) -> (…, C): sines and cosines of ever longer waves, nothing learned (Vaswani et al. 2017).

    Column 2i holds sin(p / 10000^(2i/C)), column 2i + 1 the cosine of the same angle.
    """

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, positions: Tensor) -> Tensor:
        """Positions (…) of int64 -> (…, C) float32."""
        angles = position_angles(positions, self.width)  # (…, C/2)
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)  # (…, C/2, 2) -> (…, C)


def position_angles(positions: Tensor, width: int, base: float = 10000.0) -> Tensor:
    """Positions (…) -> (…, width/2) float32: p / base^(2i / width), for sinusoids and for rotary positions.

    >>> position_angles(torch.tensor([0, 2]), 4).tolist()
    [[0.0, 0.0], [2.0, 0.019999999552965164]]
    """
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    return positions[..., None].float() * base**-exponents


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions: each pair of neighbours (x[2i], x[2i+1]) turned by its angle (Su et al. 2021).

    x (B, T, H, D), angles (T, D/2) or (B, T, D/2). The dot product of a turned query and a turned key depends
    on how far apart they stand and on nothing else about their positions.
    """
    cos, sin = angles.cos()[..., None, :], angles.sin()[..., None, :]  # (…, T, D/2) -> (…, T, 1, D/2)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (B, T, H, D) -> two of (B, T, H, D/2)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)  # (B, T, H, D/2, 2) -> (B, T, H, D)


class GELU(nn.Module):
    """x times the part of a normal distribution below it, in GPT-2's tanh form (Hendrycks, Gimpel 2016)."""

    def __init__(self, backend: Backend = "torch"):
        super().__init__()
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape -> the same shape."""
        if self.backend != "torch":
            return F.gelu(x, approximate="tanh")
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class SiLU(nn.Module):
    """x times its own sigmoid (Elfwing et al. 2017)."""

    def __init__(self, backend: Backend = "torch"):
        super().__init__()
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape -> the same shape."""
        return F.silu(x) if self.backend != "torch" else x * torch.sigmoid(x)


class MLP(nn.Module):
    """Widen, bend, narrow: (…, C) -> (…, inner) -> (…, C)."""

    def __init__(self, width: int, inner: int, activation: nn.Module, bias: bool = True):
        super().__init__()
        self.c_fc = nn.Linear(width, inner, bias)
        self.act = activation
        self.c_proj = nn.Linear(inner, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) -> (…, C)."""
        return self.c_proj(self.act(self.c_fc(x)))


class SwiGLU(nn.Module):
    """An MLP whose inner values are multiplied by a SiLU gate, a projection of its own (Shazeer 2020)."""

    def __init__(self, width: int, inner: int, bias: bool = True, backend: Backend = "torch"):
        super().__init__()
        self.c_gate = nn.Linear(width, inner, bias)
        self.c_fc = nn.Linear(width, inner, bias)
        self.act = SiLU(backend)
        self.c_proj = nn.Linear(inner, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) -> (…, C)."""
        return self.c_proj(self.act(self.c_gate(x)) * self.c_fc(x))
