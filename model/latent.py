"""Multi-head latent attention (DeepSeek-V2): keys and values are rebuilt from one short vector a token, the latent.

Only the latent and one small rotary key are cached, whatever the number of heads. The two matrices that would rebuild
keys and values can be applied to the query and to the result instead, so decoding never rebuilds them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import kernels
from kernels.attention import torch_causal_attention
from kernels.reference import rotate
from model.attention import Cache
from model.config import GPTConfig
from model.layers import RMSNorm

LATENT_EPS = 1e-6  # of the norms of the latents, whatever the model's own; DeepSeek's code fixes it too


class LatentAttention(nn.Module):
    """Attention with keys and values from a latent of kv_lora_rank numbers, without biases.

    A query and a key have D numbers that know no position, and R that rotary positions turn; the latter of the key are
    the same in all heads. A value has D. Training runs on the fused kernels, with values padded to D + R; decoding is
    on torch's ops.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head, self.head_dim, self.rank = config.n_head, config.head_dim, config.kv_lora_rank
        self.window, self.attn_dropout = config.window, config.dropout
        self.rope_dim = config.rotary_dim
        wide = self.n_head * (self.head_dim + self.rope_dim)
        self.c_q = _projection(config.n_embd, config.q_lora_rank, wide)
        self.kv_down = nn.Linear(config.n_embd, self.rank + self.rope_dim, bias=False)
        self.kv_norm = RMSNorm(self.rank, LATENT_EPS)
        self.kv_up = nn.Linear(self.rank, self.n_head * 2 * self.head_dim, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, angles: Tensor, cache: Cache | None = None, values: None = None) -> Tensor:
        """Map x (B, T, C) to (B, T, C). Angles (…, T, R/2) turn the rotary parts; there is no value embedding."""
        q = self.c_q(x).unflatten(-1, (self.n_head, -1))  # (B, T, H (D + R)) -> (B, T, H, D + R)
        latent, key = self.kv_down(x).split([self.rank, self.rope_dim], dim=-1)
        latent, key = self.kv_norm(latent), rotate(key[:, :, None], angles)  # (B, T, rank), (B, T, 1, R)
        q = torch.cat([q[..., : self.head_dim], rotate(q[..., self.head_dim :], angles)], dim=-1)
        if cache is None:
            y = self.plain(q, latent, key)
        else:
            stored = torch.cat([latent[:, :, None], key], dim=-1)  # (B, T, 1, rank + R)
            keys, _, mask = cache.extend(stored, stored[..., :0])
            y = self.absorbed(q, keys, mask)
        return self.resid_dropout(self.c_proj(y.flatten(2)))  # (B, T, H, D) -> (B, T, C)

    def plain(self, q: Tensor, latent: Tensor, key: Tensor) -> Tensor:
        """Attend with q (B, T, H, D + R) to the keys and values of the latents (B, T, rank): (B, T, H, D)."""
        k, v = self.kv_up(latent).unflatten(-1, (self.n_head, -1)).chunk(2, dim=-1)  # (B, T, H, D), twice
        k = torch.cat([k, key.to(k.dtype).expand(-1, -1, self.n_head, -1)], dim=-1)  # (B, T, H, D + R)
        q, dropout = q.to(k.dtype), self.attn_dropout if self.training else 0.0
        if kernels.runs_on(q.device.type, q.shape[-1]) == "torch":
            return torch_causal_attention(q, k, v, None, self.window, dropout, None)
        wide = F.pad(v, (0, self.rope_dim))  # the kernels take q, k and v of one width
        return kernels.causal_attention(q, k, wide, dropout_p=dropout, window=self.window)[
            ..., : self.head_dim
        ]

    def absorbed(self, q: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """Attend with q (B, T, H, D + R) to cached latents and rotary keys (B, 1, L, rank + R): (B, T, H, D).

        q · (U c) = (Uᵀ q) · c: the query is taken into the space of the latents c, where all heads share their keys;
        and the average of U c by the weights is U times that of c.
        """
        scale = q.shape[-1] ** -0.5
        up_k, up_v = self.kv_up.weight.unflatten(0, (self.n_head, -1)).chunk(2, dim=1)  # (H, D, rank), twice
        inside = torch.einsum("bthd,hdr->bthr", q[..., : self.head_dim], up_k)
        q = torch.cat([inside, q[..., self.head_dim :].to(inside.dtype)], dim=-1).transpose(1, 2)
        keys = keys.to(q.dtype)
        y = F.scaled_dot_product_attention(
            q, keys, keys[..., : self.rank], mask, scale=scale, enable_gqa=True
        )  # (B, H, T, rank)
        return torch.einsum("bhtr,hdr->bthd", y, up_v)


def _projection(width: int, rank: int | None, out: int) -> nn.Module:
    """Return a linear layer, or with a rank two smaller ones with a norm between them."""
    if rank is None:
        return nn.Linear(width, out, bias=False)
    down, up = nn.Linear(width, rank, bias=False), nn.Linear(rank, out, bias=False)
    return nn.Sequential(down, RMSNorm(rank, LATENT_EPS), up)
