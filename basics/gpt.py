"""A GPT-2 in plain PyTorch, every formula written out: what model/ computes, with more variants and faster.

    python basics/gpt.py my.txt      # the shapes on the way through an untrained model, and its first loss

Shapes: B sequences of T tokens; C = n_embd numbers for each token; H heads of D = C / H numbers; V token ids.
Parameter names are GPT-2's, so that its weights can be loaded. basics/train.py trains this model.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class GPTConfig:
    """Sizes. The defaults learn from bytes in a minute; GPT-2 has 50257, 1024, 12, 12, 768 and dropout 0.1."""

    vocab_size: int = 256
    block_size: int = 64
    n_layer: int = 3
    n_head: int = 4
    n_embd: int = 96
    dropout: float = 0.0


class LayerNorm(nn.Module):
    """Bring each token's vector to mean 0 and variance 1, then scale and shift it by learned numbers."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.bias, self.eps = (
            nn.Parameter(torch.ones(width)),
            nn.Parameter(torch.zeros(width)),
            eps,
        )

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)  # (B, T, C)
        variance = centered.square().mean(-1, keepdim=True)  # (B, T, 1)
        return centered * (variance + self.eps).rsqrt() * self.weight + self.bias  # (B, T, C)


def gelu(x: Tensor) -> Tensor:
    """Return x times the fraction of a normal distribution below x, in the tanh form that GPT-2 was trained with."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """In training, zero each number with probability p and scale the rest so that the mean stays."""
    return x * (torch.rand_like(x) >= p) / (1 - p) if training and p else x


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = True, p: float = 0.0) -> Tensor:
    """Return softmax(q kᵀ / √D) v: each query's average of the values, weighted by how well the keys fit."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # (…, T, D) @ (…, D, T) -> (…, T, T)
    if causal:  # a token may look at itself and at earlier ones
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()  # (T, T)
        scores = scores.masked_fill(~visible, -math.inf)
    weights = scores.softmax(-1)  # (…, T, T): every row sums to 1
    return dropout(weights, p, p > 0) @ v  # (…, T, T) @ (…, T, D) -> (…, T, D)


class Attention(nn.Module):
    """H heads. One matrix makes all queries, keys and values; another mixes what the heads found."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head, self.p = config.n_head, config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.c_attn(x).unflatten(-1, (3, self.n_head, -1))  # (B, T, 3 C) -> (B, T, 3, H, D)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, T, 3, H, D) -> three of (B, H, T, D)
        y = attend(q, k, v, p=self.p if self.training else 0.0)  # (B, H, T, D)
        y = y.transpose(1, 2).flatten(2)  # (B, H, T, D) -> (B, T, H, D) -> (B, T, C)
        return dropout(self.c_proj(y), self.p, self.training)  # (B, T, C)


class MLP(nn.Module):
    """Widen, bend, narrow: each token for itself."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.p = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        hidden = gelu(self.c_fc(x))  # (B, T, C) -> (B, T, 4 C)
        return dropout(self.c_proj(hidden), self.p, self.training)  # (B, T, 4 C) -> (B, T, C)


class Block(nn.Module):
    """Attention, then the MLP; each reads a normalized copy and adds to the stream."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1, self.attn = LayerNorm(config.n_embd), Attention(config)
        self.ln_2, self.mlp = LayerNorm(config.n_embd), MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))  # (B, T, C)
        return x + self.mlp(self.ln_2(x))  # (B, T, C)


class GPT(nn.Module):
    """Embeddings, blocks, a last norm, and a head that is the token embedding itself."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:  # what is added to the stream starts smaller, the more blocks add to it
                depth = math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 1
                nn.init.normal_(parameter, std=0.02 / depth)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, idx: Tensor) -> Tensor:
        """Return logits (B, T, V) for ids idx (B, T): at every place, a number for each id that may come next."""
        positions = torch.arange(idx.shape[1], device=idx.device)  # (T,)
        x = self.wte(idx) + self.wpe(positions)  # (B, T, C) + (T, C) -> (B, T, C)
        x = dropout(x, self.config.dropout, self.training)
        for block in self.h:
            x = block(x)  # (B, T, C)
        return self.ln_f(x) @ self.wte.weight.T  # (B, T, C) @ (C, V) -> (B, T, V)


def main() -> None:
    """Send the first bytes of a text through an untrained model."""
    if len(sys.argv) < 2:
        sys.exit("usage: python basics/gpt.py my.txt")
    config = GPTConfig()
    ids = torch.tensor(list(Path(sys.argv[1]).read_bytes()[: config.block_size + 1]))  # (T + 1,)
    model = GPT(config)
    logits = model(ids[None, :-1])  # (1, T) -> (1, T, V)
    loss = -logits.log_softmax(-1)[0, range(len(ids) - 1), ids[1:]].mean()  # (1, T, V) -> (T,) -> one number
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters; logits {tuple(logits.shape)}")
    print(f"the first loss is {loss:.2f} nats per byte; guessing among 256 bytes costs {math.log(256):.2f}")


if __name__ == "__main__":
    main()
