"""The parts of a transformer, one idea each: norms, positions, MLPs. Attention has its own file.

Grown from basics/gpt.py, where LayerNorm and GELU are written out. Which kernels compute norms and
MLPs is what `kernels.use` chose.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import kernels
from kernels import ops
from model.config import GPTConfig


class LayerNorm(nn.Module):
    """Each row to mean 0 and variance 1, then scaled and shifted (Ba et al. 2016).

    >>> LayerNorm(2, eps=1e-12)(torch.tensor([1.0, 3.0])).tolist()
    [-1.0, 1.0]
    """

    def __init__(self, width: int, bias: bool = True, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) to (…, C); the statistics are float32 whatever the dtype."""
        plain = kernels.runs_on(x.device.type) == "torch"
        norm = ops.torch_layer_norm if plain else kernels.layer_norm
        return norm(x, self.weight, self.bias, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the norm of x + residual, and x + residual itself: one pass over memory in the kernel."""
        plain = kernels.runs_on(x.device.type) == "torch"
        norm = ops.torch_add_layer_norm if plain else kernels.add_layer_norm
        return norm(x, residual, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """Each row to a root mean square of 1, then scaled; no mean, no shift (Zhang and Sennrich 2019).

    >>> RMSNorm(2, eps=1e-12)(torch.tensor([3.0, 3.0])).tolist()
    [1.0, 1.0]
    """

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) to (…, C); the statistics are float32 whatever the dtype."""
        if kernels.runs_on(x.device.type) != "torch":
            return kernels.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps).to(x.dtype)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the norm of x + residual, and x + residual itself: one pass over memory in the kernel."""
        if kernels.runs_on(x.device.type) != "torch":
            return kernels.add_rms_norm(x, residual, self.weight, self.eps)
        total = x + residual
        return self(total), total


class LearnedPositions(nn.Embedding):
    """Positions (…) -> (…, C): one learned row for each position (GPT-2)."""


class SinusoidalPositions(nn.Module):
    """Positions (…) -> (…, C): sines and cosines of ever longer waves, nothing learned (Vaswani et al. 2017).

    Column 2i holds sin(p / 10000^(2i/C)), column 2i + 1 the cosine of the same angle.
    """

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, positions: Tensor) -> Tensor:
        """Map positions (…) of int64 to (…, C) float32."""
        return sines(positions, self.width)


def sines(positions: Tensor, width: int) -> Tensor:
    """Return (…, width) float32 for positions (…): the sines and cosines of `position_angles`, in turn."""
    angles = position_angles(positions, width)  # (…, width/2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)  # (…, width/2, 2) -> (…, width)


def position_angles(positions: Tensor, width: int, base: float = 10000.0) -> Tensor:
    """Return (…, width/2) float32 for positions p (…): p / base^(2i / width), for sinusoids and rotary positions.

    >>> position_angles(torch.tensor([0, 2]), 4).tolist()
    [[0.0, 0.0], [2.0, 0.019999999552965164]]
    """
    exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    return positions[..., None].float() * base**-exponents


class ReLU2(nn.Module):
    """max(x, 0)²: cheap, and most of its values are exactly 0 (So et al. 2021).

    >>> ReLU2()(torch.tensor([-3.0, 3.0])).tolist()
    [0.0, 9.0]
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (…) to (…)."""
        return F.relu(x).square()


class MLP(nn.Module):
    """A linear layer, an activation, a linear layer: (…, C) -> (…, inner) -> (…, C)."""

    def __init__(self, width: int, inner: int, activation: nn.Module, bias: bool = True):
        super().__init__()
        self.c_fc = nn.Linear(width, inner, bias)
        self.act = activation
        self.c_proj = nn.Linear(inner, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) to (…, C)."""
        if isinstance(self.act, nn.GELU) and kernels.runs_on(x.device.type) != "torch":
            wide = F.linear(x, self.c_fc.weight)  # its bias is added with the activation
            return self.c_proj(kernels.gelu(wide, self.c_fc.bias, self.act.approximate))
        return self.c_proj(self.act(self.c_fc(x)))


class SwiGLU(nn.Module):
    """An MLP whose inner values are multiplied by a SiLU gate, a second projection of the input (Shazeer 2020)."""

    def __init__(self, width: int, inner: int, bias: bool = True):
        super().__init__()
        self.c_gate = nn.Linear(width, inner, bias)
        self.c_fc = nn.Linear(width, inner, bias)
        self.c_proj = nn.Linear(inner, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) to (…, C)."""
        if kernels.runs_on(x.device.type) != "torch":
            gate, value = F.linear(x, self.c_gate.weight), F.linear(x, self.c_fc.weight)
            return self.c_proj(kernels.swiglu(gate, value, self.c_gate.bias, self.c_fc.bias))
        return self.c_proj(F.silu(self.c_gate(x)) * self.c_fc(x))


def make_norm(config: GPTConfig) -> nn.Module:
    """Return the norm that the config names."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.n_embd, config.norm_eps)
    return LayerNorm(config.n_embd, config.bias, config.norm_eps)


def make_mlp(config: GPTConfig, inner: int) -> nn.Module:
    """Return the MLP that the config names, `inner` wide inside."""
    if config.mlp == "swiglu":
        return SwiGLU(config.n_embd, inner, config.bias)
    activations = {"gelu": nn.GELU(approximate="tanh"), "silu": nn.SiLU(), "relu2": ReLU2()}
    return MLP(config.n_embd, inner, activations[config.mlp], config.bias)
