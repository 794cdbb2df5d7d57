"""The ops made of PyTorch's own: what runs with `use("torch")`, and wherever nothing is built.

The model calls them without the checks of kernels.ops; they take heads of any width.
"""

import torch.nn.functional as F
from torch import Tensor

from kernels import reference


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """As kernels.layer_norm."""
    return F.layer_norm(x, weight.shape, weight, bias, eps).to(x.dtype)  # a GPU's autocast gives float32 back


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """As kernels.add_layer_norm."""
    total = x + residual
    return layer_norm(total, weight, bias, eps), total


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    window: int | None,
    dropout_p: float,
    seed: Tensor | None,
) -> Tensor:
    """As kernels.causal_attention. With a seed the reference runs, so that dropout drops what the kernels drop."""
    if dropout_p and seed is not None:
        return reference.causal_attention(
            q, k, v, scale=scale, dropout_p=dropout_p, seed=int(seed), window=window
        )
    mask = None if window is None else reference.seen(q.shape[1], window, q.device)
    out = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)),  # (B, T, H, D) -> (B, H, T, D)
        attn_mask=mask,
        dropout_p=dropout_p,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)  # (B, H, T, D) -> (B, T, H, D)
