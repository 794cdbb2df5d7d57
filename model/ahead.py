"""Multi-token prediction (DeepSeek-V3): in training each place also predicts the tokens after the next.

A place that must also know what comes later is pushed to plan, and gives more gradient for each pass over the blocks.
At depth 1 the hidden vector of place i and the embedding of token i + 1 make a new vector, which one more block and the
shared head turn into a prediction of token i + 2; depth 2 goes on from there. Evaluation and generation leave it out.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.chunked_loss import IGNORED
from model.config import GPTConfig
from model.layers import make_norm

# Weight of the gradient of the tokens ahead relative to that of the next; DeepSeek-V3 begins with it.
AHEAD = 0.3


class Ahead(nn.Module):
    """One depth: joins hidden vectors and the embeddings of the tokens that they predicted."""

    def __init__(self, config: GPTConfig, block: nn.Module):
        super().__init__()
        self.ln_hidden, self.ln_token, self.ln_f = (make_norm(config) for _ in range(3))
        self.join = nn.Linear(2 * config.n_embd, config.n_embd, bias=False)
        self.block = block

    def forward(self, hidden: Tensor, token: Tensor, angles: Tensor | None, values: Tensor | None) -> Tensor:
        """Map hidden and token, both (B, T, C), to what the head reads for the token after that, (B, T, C)."""
        both = torch.cat([self.ln_hidden(hidden), self.ln_token(token)], dim=-1)  # (B, T, 2 C)
        x = self.join(both)  # (B, T, 2 C) -> (B, T, C)
        return self.ln_f(self.block(x, angles, None, values))


def one_later(targets: Tensor) -> Tensor:
    """Return the target after each of targets (B, T); ignored where it or the one between is not known.

    >>> one_later(torch.tensor([[5, 6, -100, 8]])).tolist()
    [[6, -100, -100, -100]]
    """
    return F.pad(targets[:, 1:], (0, 1), value=IGNORED).where(targets != IGNORED, IGNORED)
