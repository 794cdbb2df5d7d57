"""A state-space layer, Mamba-2's SSD (Dao and Gu 2024): a memory of fixed size in place of keys and values.

Each head keeps a state S, a matrix of P × N numbers. A token lets it fade by a factor and writes to it; then it reads:

    S ← exp(a) S + x bᵀ        y = S c

a, x, b and c are made from the token. Written out, y_i = Σ_{j <= i} exp(a_{j+1} + … + a_i) (c_i · b_j) x_j: attention
without softmax, whose scores fade. So a sequence can be computed in two ways that are equal: token by token with the
recurrence, as decoding does (`step`), or in chunks that are attention inside and pass a state on (`ssd`).
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import GPTConfig
from model.layers import RMSNorm

EXPAND = 2  # width inside, relative to n_embd
TAPS = 4  # tokens that the convolution sees
CHUNK = 64  # tokens that are computed as attention
STEPS = (
    0.001,
    0.1,
)  # a token's step at first; A is drawn between 1 and 16: what is remembered lasts 1 to 1,000 tokens


class StateCache(Protocol):
    """Where a layer keeps its state and the convolution's last inputs; see model.cache."""

    def load(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the inputs (B, TAPS - 1, I + 2 N), the states (B, H, P, N), and which of `count` tokens are real."""

    def store(self, inputs: Tensor, state: Tensor) -> None:
        """Keep the last of inputs (B, TAPS - 1 + T, I + 2 N) that are real, and the states (B, H, P, N)."""


class StateSpace(nn.Module):
    """The mixer of Mamba-2 with one group of b and c, on torch's ops whatever `kernels.use` says.

    x, b and c pass a short causal convolution, and the output is gated and normalized.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        inner, heads = EXPAND * config.n_embd, EXPAND * config.n_embd // config.ssm_head
        self.sizes, self.head_dim = [inner, config.ssm_state, config.ssm_state], config.ssm_head
        self.c_in = nn.Linear(config.n_embd, inner + sum(self.sizes) + heads, config.bias)
        self.conv = nn.Conv1d(sum(self.sizes), sum(self.sizes), TAPS, groups=sum(self.sizes))
        low, high = map(math.log, STEPS)
        first = torch.empty(heads).uniform_(low, high).exp()
        self.dt_bias = nn.Parameter(
            first + torch.log(-torch.expm1(-first))
        )  # softplus of it is the first step
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = RMSNorm(inner, config.norm_eps)
        self.c_proj = nn.Linear(inner, config.n_embd, config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: StateCache | None = None) -> Tensor:
        """Map x (B, T, C) to (B, T, C)."""
        inner, heads = self.sizes[0], len(self.D)
        gate, inputs, dt = self.c_in(x).split([inner, sum(self.sizes), heads], dim=-1)
        if cache is None:
            past, real = inputs.new_zeros(len(x), TAPS - 1, sum(self.sizes)), None
            state = x.new_zeros(len(x), heads, self.head_dim, self.sizes[1])
        else:
            past, state, real = cache.load(x.shape[1])
        inputs = torch.cat([past, inputs], dim=1)  # (B, TAPS - 1 + T, I + 2 N)
        mixed = F.silu(self.conv(inputs.mT).mT)  # (B, T, I + 2 N)
        with torch.autocast(x.device.type, enabled=False):  # sums over the whole text need their bits
            y, state = self._remember(_wide(mixed), _wide(dt), state, real)
        if cache is not None:
            cache.store(inputs, state)
        y = self.norm(y.flatten(2).to(gate.dtype) * F.silu(gate))  # (B, T, H, P) -> (B, T, I)
        return self.resid_dropout(self.c_proj(y))

    def _remember(
        self, mixed: Tensor, dt: Tensor, state: Tensor, real: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return y (B, T, H, P) and the last state of mixed (B, T, I + 2 N), dt (B, T, H) and state (B, H, P, N)."""
        x, b, c = mixed.split(self.sizes, dim=-1)
        x = x.unflatten(-1, (-1, self.head_dim))  # (B, T, I) -> (B, T, H, P)
        dt = F.softplus(dt + self.dt_bias)
        if real is not None:
            dt = dt * real[..., None]  # padding takes no step: nothing fades, nothing is written
        scan = step if len(mixed[0]) == 1 else ssd
        y, state = scan(x * dt[..., None], -dt * self.A_log.exp(), b, c, state)
        return y + self.D[:, None] * x, state


def step(x: Tensor, decay: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return y (B, 1, H, P) and the next state of x (B, 1, H, P), decay (B, 1, H), b, c (B, 1, N): the recurrence."""
    state = decay.exp().mT[..., None] * state + x.movedim(1, -1) * b[:, None]  # (B, H, P, 1) (B, 1, 1, N)
    return (state @ c[:, None].mT).movedim(-1, 1), state  # (B, H, P, N) @ (B, 1, N, 1) -> (B, 1, H, P)


def ssd(
    x: Tensor, decay: Tensor, b: Tensor, c: Tensor, state: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Return y (B, T, H, P) and the last state (B, H, P, N) for x (B, T, H, P), decay (B, T, H), b and c (B, T, N).

    `decay` is the logarithm of what a token leaves of the state (B, H, P, N).
    """
    found = []
    for xs, a, bs, cs in zip(*(t.split(chunk, dim=1) for t in (x, decay, b, c)), strict=True):
        reach = a.cumsum(1)  # (B, Q, H): what each token leaves of the chunk's first state
        fade = (reach[:, :, None] - reach[:, None]).movedim(-1, 1)  # (B, H, Q, Q): from token j to token i
        later = torch.ones(fade.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        scores = (cs @ bs.mT)[:, None] * fade.masked_fill(later, -math.inf).exp()  # (B, H, Q, Q)
        inside = torch.einsum("bhij,bjhp->bihp", scores, xs)
        before = torch.einsum("bin,bhpn->bihp", cs, state) * reach.exp()[..., None]
        found.append(inside + before)  # (B, Q, H, P)
        left = (reach[:, -1:] - reach).exp()  # (B, Q, H): what the chunk's end still has of each token
        written = torch.einsum("bjhp,bjn->bhpn", xs * left[..., None], bs)
        state = reach[:, -1].exp()[..., None, None] * state + written
    return torch.cat(found, dim=1), state


def flops(config: GPTConfig, tokens: int) -> float:
    """Return the operations per token of one layer besides those of its matrices, in sequences of `tokens`."""
    inner, state = EXPAND * config.n_embd, config.ssm_state
    whole, rest = divmod(tokens, CHUNK)
    scores = (whole * CHUNK**2 + rest**2) / tokens  # of each token, on average
    return 2 * TAPS * (inner + 2 * state) + 2 * scores * (state + inner) + 4 * state * inner


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
