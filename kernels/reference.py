"""Defines each op in plain torch: the shortest correct form, differentiable, on any device.

The tests compare every implementation with these functions in float64, and these with torch. The two
backward passes are written out too, as derived in docs/kernels/layer_norm.md and docs/kernels/attention.md;
autograd confirms them. Nothing here is fast: attention stores the T x T matrix that the kernels never do.
"""

import torch
from torch import Tensor

from kernels import philox


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) * weight + bias over the last dimension; x: (..., C), weight, bias: (C).

    Layer Normalization, Ba et al. 2016. Statistics in float32 or better; the result has the dtype of x.

    >>> layer_norm(torch.tensor([[1.0, 3.0]]), torch.ones(2), eps=1e-12)
    tensor([[-1.,  1.]])
    """
    wide = _wide(x)
    mean, rstd = moments(wide, eps)
    out = (wide - mean) * rstd * _wide(weight)
    return (out if bias is None else out + _wide(bias)).to(x.dtype)


def moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and 1 / sqrt(variance + eps) over the last dimension, each (..., 1)."""
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return mean, (variance + eps).rsqrt()


def layer_norm_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x (..., C), weight (C) and bias (C), given that of the result (..., C)."""
    mean, rstd = moments(x, eps)
    normalized = (x - mean) * rstd
    weighted = grad_out * weight
    projected = (weighted * normalized).mean(-1, keepdim=True)
    grad_x = rstd * (weighted - weighted.mean(-1, keepdim=True) - normalized * projected)
    rows = tuple(range(x.dim() - 1))
    return grad_x, (grad_out * normalized).sum(rows), grad_out.sum(rows)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Return layer_norm(x + residual) and x + residual, rounded to the dtype of x before it is normalized."""
    total = x + residual
    return layer_norm(total, weight, bias, eps), total


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    window: int | None = None,
) -> Tensor:
    """softmax(q kᵀ scale) v in which query i sees the keys j <= i; q: (B, T, H, D), k, v: (B, T, Hkv, D).

    Attention Is All You Need, Vaswani et al. 2017. scale defaults to 1 / sqrt(D). Each group of H / Hkv query
    heads shares one head of k and v (GQA, Ainslie et al. 2023). With a window, query i sees only i - window <
    j <= i. Dropout acts on the softmax, by the mask of philox.py. Returns (B, T, H, D) in the dtype of q.
    """
    weights, wide_v = attention_weights(q, k, scale, window), _per_query_head(v, q.shape[2])
    if dropout_p:
        weights = weights * dropout_factors(q, dropout_p, seed).to(weights.dtype)
    return torch.einsum("bhij,bjhd->bihd", weights, _wide(wide_v)).to(q.dtype)


def attention_weights(q: Tensor, k: Tensor, scale: float | None, window: int | None) -> Tensor:
    """The softmax of the scores: (B, H, T, T), float32 or better; zero where a key is not seen."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.einsum("bihd,bjhd->bhij", _wide(q), _wide(_per_query_head(k, q.shape[2]))) * scale
    return scores.masked_fill(~seen(q.shape[1], window, q.device), -torch.inf).softmax(-1)


def seen(length: int, window: int | None, device: torch.device | str = "cpu") -> Tensor:
    """Return (T, T), True where query i (row) sees key j (column).

    >>> seen(3, window=2).int()
    tensor([[1, 0, 0],
            [1, 1, 0],
            [0, 1, 1]], dtype=torch.int32)
    """
    positions = torch.arange(length, device=device)
    return visible(positions, positions, window)


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Return (…, T, L), True where a query at its position (…, T) sees the key at its position (L).

    It sees no later key and, with a window, only the last `window` up to its own.
    """
    distance = queries[..., None] - keys  # (…, T, 1) - (L) -> (…, T, L)
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def dropout_factors(q: Tensor, dropout_p: float, seed: int | None) -> Tensor:
    """(B, H, T, T): 0 where a weight is dropped, 1 / keep where it stays; float64."""
    if seed is None:
        raise ValueError("the reference draws no random numbers: pass a seed where dropout_p > 0")
    batch, length, heads, _ = q.shape
    threshold = philox.keep_threshold(dropout_p)
    kept = philox.bits(seed, batch, heads, length).to(q.device) < threshold
    return kept.double() * (65536 / threshold)


def causal_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, all (B, T, H, D), given that of the result, without the help of autograd.

    For as many heads of k and v as of q, and without dropout.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    weights = attention_weights(q, k, scale, window)
    out = torch.einsum("bhij,bjhd->bihd", weights, v)
    delta = (grad_out * out).sum(-1).transpose(1, 2)  # (B, T, H) -> (B, H, T)
    grad_weights = torch.einsum("bihd,bjhd->bhij", grad_out, v)
    grad_scores = weights * (grad_weights - delta[..., None]) * scale
    return (
        torch.einsum("bhij,bjhd->bihd", grad_scores, k),
        torch.einsum("bhij,bihd->bjhd", grad_scores, q),
        torch.einsum("bhij,bihd->bjhd", weights, grad_out),
    )


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _per_query_head(x: Tensor, heads: int) -> Tensor:
    return x.repeat_interleave(heads // x.shape[2], dim=2)  # (B, T, Hkv, D) -> (B, T, H, D)


def packed_linear(
    x: Tensor,
    weight: Tensor,
    outputs: int,
    scales: Tensor | None = None,
    bias: Tensor | None = None,
    norm: str = "none",
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """As kernels.decode.packed_linear: activation(norm(x) weightᵀ scales + bias) + residual, in the dtype of x."""
    if norm == "layernorm":
        x = layer_norm(x, norm_weight, norm_bias, eps)
    elif norm == "rmsnorm":
        x = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * norm_weight
    rows = weight.transpose(1, 2).flatten(0, 1)[:outputs]  # (panels, in, 64) -> (out, in)
    y = x @ rows.to(x.dtype).T
    y = y if scales is None else y * scales
    y = y if bias is None else y + bias
    if activation == "gelu":
        y = torch.nn.functional.gelu(y, approximate="tanh")
    elif activation == "silu":
        y = y * y.sigmoid()
    return y if residual is None else y + residual


def cached_attention(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    rows: Tensor | None = None,
    angles: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """As kernels.decode.cached_attention: writes to keys and values, returns (B, T, H, D)."""
    batch, groups, length = len(qkv), keys.shape[1], keys.shape[2]
    heads = qkv.shape[2] - 2 * groups
    q, k, v = qkv.split([heads, groups, groups], dim=2)  # (B, T, H, D), twice (B, T, Hkv, D)
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    rows = torch.arange(batch) if rows is None else rows
    positions = positions.expand(batch, -1)  # (1 or B, T) -> (B, T)
    keys[rows[:, None], :, positions], values[rows[:, None], :, positions] = k, v
    hidden = ~visible(positions, torch.arange(length), window)  # (B, T, L)
    k, v = (x[rows].repeat_interleave(heads // groups, dim=1) for x in (keys, values))  # (B, H, L, D)
    scores = torch.einsum("bthd,bhjd->bhtj", q, k) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bhtj,bhjd->bthd", weights, v)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions: turn each pair of neighbours (x[2i], x[2i+1]) by its angle (Su et al. 2021).

    x (B, T, H, D), angles (T, D/2) or (B, T, D/2). The dot product of a turned query and a turned key depends on the
    distance between their positions only.
    """
    cos, sin = angles.cos()[..., None, :], angles.sin()[..., None, :]  # (…, T, D/2) -> (…, T, 1, D/2)
    even, odd = _wide(x).unflatten(-1, (-1, 2)).unbind(-1)  # (B, T, H, D) -> two of (B, T, H, D/2)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)  # (B, T, H, D/2, 2) -> (B, T, H, D)
