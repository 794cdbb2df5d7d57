"""The parts of a transformer, one idea each: norms, positions, MLPs, dropout. Attention has a file of its
own.

Every module is plain torch. Where a config's `attention` says so, norms call torch's op or our kernel instead
of the written-out arithmetic; the results are equal.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import GPTConfig


class LayerNorm(nn.Module):
    """(…, C) -> (…, C): mean 0, variance 1 over the last axis, then scaled and shifted (Ba et al. 2016)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if config.bias else None
        self.eps, self.backend = config.norm_eps, config.attention

    def forward(self, x: Tensor) -> Tensor:
        if self.backend == "fused":
            from kernels import layer_norm

            return layer_norm(x, self.weight, self.bias, self.eps)
        if self.backend == "sdpa":
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return layer_norm_written_out(x, self.weight, self.bias, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and x + residual itself: one pass over memory where a kernel does it."""
        if self.backend == "fused":
            from kernels import add_layer_norm

            return add_layer_norm(x, residual, self.weight, self.bias, self.eps)
        total = x + residual
        return self(total), total


def layer_norm_written_out(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm in plain arithmetic; statistics in float32, result in the dtype of x.

    >>> layer_norm_written_out(torch.tensor([1.0, 3.0]), torch.ones(2), None, 0.0).tolist()
    [-1.0, 1.0]
    """
    wide = x.float()
    centered = wide - wide.mean(-1, keepdim=True)
    variance = centered.square().mean(-1, keepdim=True)
    y = centered * (variance + eps).rsqrt() * weight
    return (y if bias is None else y + bias).to(x.dtype)


class RMSNorm(nn.Module):
    """(…, C) -> (…, C): root mean square 1 over the last axis, then scaled (Zhang and Sennrich 2019)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.eps, self.backend = config.norm_eps, config.attention

    def forward(self, x: Tensor) -> Tensor:
        if self.backend != "torch":
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        wide = x.float()
        y = wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight
        return y.to(x.dtype)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and x + residual itself."""
        total = x + residual
        return self(total), total


class SinusoidalPositions(nn.Module):
    """Positions (…) -> (…, C): sines and cosines of geometric wavelengths, nothing learned (Vaswani et al.
    2017).

    Even columns 2i hold sin(p / 10000^(2i/C)), odd columns 2i + 1 the cosine of the same angle.
    """

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, positions: Tensor) -> Tensor:
        angles = position_angles(positions, self.width)  # (…, C/2)
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)  # (…, C/2, 2) -> (…, C)


def position_angles(positions: Tensor, width: int, base: float = 10000.0) -> Tensor:
    """Positions (…) -> (…, width/2), float32: p / base^(2i / width), the angles of both schemes."""
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    return positions[..., None].float() * base**-exponents


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): each pair of neighbours (x[2i], x[2i+1]) turned by its angle.

    x (B, T, H, D), angles (T, D/2) or (B, T, D/2). The dot product of a turned query and a turned key depends
    only on how far apart they stand.
    """
    cos, sin = angles.cos()[..., None, :], angles.sin()[..., None, :]  # (…, T, 1, D/2)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (B, T, H, D) -> two of (B, T, H, D/2)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)  # (B, T, H, D/2, 2) -> (B, T, H, D)


class MLP(nn.Module):
    """(…, C) -> (…, C): widen, bend, narrow; GPT-2's has GELU in the tanh approximation."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.inner, bias=config.bias)
        self.c_proj = nn.Linear(config.inner, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.smooth = config.mlp == "silu"

    def forward(self, x: Tensor) -> Tensor:
        inner = self.c_fc(x)  # (…, C) -> (…, inner)
        inner = F.silu(inner) if self.smooth else F.gelu(inner, approximate="tanh")
        return self.dropout(self.c_proj(inner))


class SwiGLU(nn.Module):
    """(…, C) -> (…, C): a SiLU gate multiplies a second projection, no bend elsewhere (Shazeer 2020)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_gate = nn.Linear(config.n_embd, config.inner, bias=config.bias)
        self.c_fc = nn.Linear(config.n_embd, config.inner, bias=config.bias)
        self.c_proj = nn.Linear(config.inner, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(F.silu(self.c_gate(x)) * self.c_fc(x)))
