"""Defines each op in plain torch: the shortest correct form, differentiable, on any device.

The tests compare every implementation with these functions in float64, and these with torch. The two
backward passes are written out too, as derived in docs/kernels/layer_norm.md and docs/kernels/attention.md;
autograd confirms them. Nothing here is fast: attention stores the T x T matrix that the kernels never do.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


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
    seed: int | Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """Return softmax(q kᵀ scale) v in which query i sees the keys j <= i; q: (B, T, H, D), k, v: (B, T, Hkv, D).

    Attention Is All You Need, Vaswani et al. 2017. scale defaults to 1 / sqrt(D). Each group of H / Hkv query
    heads shares one head of k and v (GQA, Ainslie et al. 2023). With a window, query i sees only i - window <
    j <= i. Dropout acts on the softmax, by the mask of `dropout_factors`. Returns (B, T, H, D) in the dtype of q.
    """
    weights, wide_v = attention_weights(q, k, scale, window), _per_query_head(v, q.shape[2])
    if dropout_p:
        weights = weights * dropout_factors(q, dropout_p, seed).to(weights.dtype)
    return torch.einsum("bhij,bjhd->bihd", weights, _wide(wide_v)).to(q.dtype)


def by_document(
    attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, ends: Tensor, **options
) -> Tensor:
    """Call causal attention for a batch of the documents of q, k and v (1, T, ·, D), padded to the longest.

    ends: (documents + 1), from 0 to T. Returns (1, T, H, D).

    >>> q = torch.arange(5.0).view(1, 5, 1, 1)
    >>> by_document(causal_attention, 0 * q, q, q, torch.tensor([0, 2, 5])).flatten()
    tensor([0.0000, 0.5000, 2.0000, 2.5000, 3.0000])
    """
    if not q.numel():
        return q.clone()
    lengths = ends.diff()
    parts = (pad_sequence(x[0].split(lengths.tolist()), batch_first=True) for x in (q, k, v))
    inside = torch.arange(int(lengths.max())) < lengths[:, None]  # (documents, longest)
    return attend(*parts, **options)[inside.to(q.device)][None]  # (documents, longest, H, D) -> (1, T, H, D)


def attention_weights(q: Tensor, k: Tensor, scale: float | None, window: int | None) -> Tensor:
    """Return the softmax of the scores: (B, H, T, T), float32 or better; zero where a key is not seen."""
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


def dropout_factors(q: Tensor, dropout_p: float, seed: int | Tensor | None) -> Tensor:
    """Return (B, H, T, T): 0 where a weight is dropped, 1 / keep where it stays; float64."""
    if seed is None:
        raise ValueError("the reference draws no random numbers: pass a seed where dropout_p > 0")
    batch, length, heads, _ = q.shape
    threshold = keep_threshold(dropout_p)
    kept = dropout_bits(seed, batch, heads, length, q.device) < threshold
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
    """Return the gradients of q, k and v, all (B, T, H, D), given that of the result, without the help of autograd.

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
    """Do as kernels.decode.packed_linear: activation(norm(x) weightᵀ scales + bias) + residual, in the dtype of x."""
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
    pages: Tensor | None = None,
) -> Tensor:
    """Do as kernels.decode.cached_attention: write to keys and values, return (B, T, H, D)."""
    batch, groups, length = len(qkv), keys.shape[1], keys.shape[2]
    if pages is None:
        pages = (torch.arange(batch) if rows is None else rows)[:, None]
    heads = qkv.shape[2] - 2 * groups
    q, k, v = qkv.split([heads, groups, groups], dim=2)  # (B, T, H, D), twice (B, T, Hkv, D)
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    positions = positions.expand(batch, -1)  # (1 or B, T) -> (B, T)
    into, place = pages.gather(1, positions // length), positions % length  # (B, T)
    keys[into, :, place], values[into, :, place] = k, v
    hidden = ~visible(positions, torch.arange(pages.shape[1] * length), window)  # (B, T, n L)
    k, v = (
        x[pages].transpose(1, 2).flatten(2, 3) for x in (keys, values)
    )  # (B, n, Hkv, L, D) -> (B, Hkv, n L, D)
    k, v = (x.repeat_interleave(heads // groups, dim=1) for x in (k, v))  # (B, H, n L, D)
    scores = torch.einsum("bthd,bhjd->bhtj", q, k) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bhtj,bhjd->bthd", weights, v)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Apply rotary positions: turn each pair of neighbours (x[2i], x[2i+1]) by its angle (Su et al. 2021).

    x (B, T, H, D), angles (T, D/2) or (B, T, D/2). The dot product of a turned query and a turned key depends on the
    distance between their positions only.
    """
    cos, sin = angles.cos()[..., None, :], angles.sin()[..., None, :]  # (…, T, D/2) -> (…, T, 1, D/2)
    even, odd = _wide(x).unflatten(-1, (-1, 2)).unbind(-1)  # (B, T, H, D) -> two of (B, T, H, D/2)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)  # (B, T, H, D/2, 2) -> (B, T, H, D)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Return x / sqrt(mean(x²) + eps) * weight over the last dimension; x: (..., C), weight: (C).

    Zhang and Sennrich 2019. Statistics in float32 or better; the result has the dtype of x.

    >>> rms_norm(torch.tensor([[3.0, 4.0]]), torch.ones(2) * 25**0.5, eps=1e-12).square().sum()
    tensor(50.)
    """
    wide = _wide(x)
    return (wide * _reciprocal_rms(wide, eps) * _wide(weight)).to(x.dtype)


def _reciprocal_rms(x: Tensor, eps: float) -> Tensor:
    return (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def rms_norm_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x (..., C) and weight (C), given that of the result (..., C)."""
    rstd = _reciprocal_rms(x, eps)
    normalized, weighted = x * rstd, grad_out * weight
    grad_x = rstd * (weighted - normalized * (weighted * normalized).mean(-1, keepdim=True))
    return grad_x, (grad_out * normalized).sum(tuple(range(x.dim() - 1)))


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Return rms_norm(x + residual) and x + residual, rounded to the dtype of x before it is normalized."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def gelu(x: Tensor, bias: Tensor | None = None, approximate: str = "tanh") -> Tensor:
    """Return GELU(x + bias): x times the normal distribution below it, or its tanh form (Hendrycks and Gimpel 2016)."""
    wide = _wide(x) if bias is None else _wide(x) + _wide(bias)
    if approximate == "tanh":
        share = (1 + torch.tanh((2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3))) / 2
    else:
        share = (1 + torch.erf(wide / 2**0.5)) / 2
    return (wide * share).to(x.dtype)


def gelu_slope(x: Tensor, approximate: str = "tanh") -> Tensor:
    """Return the derivative of gelu at x, any shape."""
    if approximate == "tanh":
        factor = 2 * (2 / torch.pi) ** 0.5
        s = (factor * (x + 0.044715 * x**3)).sigmoid()
        return s + x * s * (1 - s) * factor * (1 + 3 * 0.044715 * x**2)
    return (1 + torch.erf(x / 2**0.5)) / 2 + x * (-(x**2) / 2).exp() / (2 * torch.pi) ** 0.5


def swiglu(gate: Tensor, x: Tensor, gate_bias: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Return silu(gate + gate_bias) * (x + bias), Shazeer 2020."""
    opened = _wide(gate) if gate_bias is None else _wide(gate) + _wide(gate_bias)
    value = _wide(x) if bias is None else _wide(x) + _wide(bias)
    return (opened * opened.sigmoid() * value).to(x.dtype)


def softcap(logits: Tensor, cap: float) -> Tensor:
    """Return cap · tanh(logits / cap): nearly the same where small, and never beyond the cap (Gemma 2).

    >>> [round(z, 2) for z in softcap(torch.tensor([0.1, 30.0]), cap=15.0).tolist()]
    [0.1, 14.46]
    """
    return cap * torch.tanh(logits / cap)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None = None) -> Tensor:
    """Return the mean of -log softmax(hidden weightᵀ)[target] over the targets that are not -100; 0 if there are none.

    With `cap` the logits are soft-capped.

    >>> linear_cross_entropy(torch.zeros(3, 2), torch.ones(4, 2), torch.tensor([0, 3, -100]))  # log 4
    tensor(1.3863)
    """
    logits = _wide(hidden) @ _wide(weight).T  # (N, C) @ (C, V) -> (N, V)
    logits = logits if cap is None else softcap(logits, cap)
    kept = targets != -100
    losses = logits.logsumexp(-1) - logits.gather(-1, targets.where(kept, 0)[:, None])[:, 0]
    return losses.where(kept, 0).sum() / kept.sum().clamp(min=1)


def linear_cross_entropy_backward(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of hidden (N, C) and weight (V, C), without the help of autograd."""
    kept = targets != -100
    probabilities = (hidden @ weight.T).softmax(-1)
    hit = torch.nn.functional.one_hot(targets.where(kept, 0), len(weight))
    grad_logits = (probabilities - hit) * kept[:, None] / kept.sum().clamp(min=1)
    return grad_logits @ weight, grad_logits.T @ hidden


@torch.no_grad()
def adamw_(
    parameters: list[Tensor],
    gradients: list[Tensor],
    averages: list[Tensor],
    squares: list[Tensor],
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    gradient_scale: float = 1.0,
) -> None:
    """Take one step of AdamW in place, Loshchilov and Hutter 2017, algorithm 2."""
    for parameter, gradient, average, square in zip(parameters, gradients, averages, squares, strict=True):
        scaled = gradient * gradient_scale
        average.lerp_(scaled, 1 - beta1)
        square.mul_(beta2).addcmul_(scaled, scaled, value=1 - beta2)
        # Both averages start at zero and are too small at first; dividing by 1 - beta^t undoes exactly that.
        root = (square / (1 - beta2**step)).sqrt_().add_(eps)
        parameter.mul_(1 - lr * weight_decay).addcdiv_(average, root, value=-lr / (1 - beta1**step))


# The random numbers of dropout are Philox 4x32-10 with the position of a weight as counter, so that no mask is stored
# (Parallel Random Numbers: As Easy as 1, 2, 3, Salmon et al. 2011: a bijection of a 128-bit counter under a 64-bit
# key). The key is the seed. Forward, backward, any tile size and any device thus find the same bits. One call serves
# eight weights: those of rows r, r + 8 and columns c, c + 8, c + 16, c + 24 of a tile of 16 x 32, which belong to one
# thread in a tensor core's fragments, whether the scores are computed as they are or transposed. csrc/philox.h is the
# C++ version.
_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1: increments of the key
_ROUNDS = 10


def keep_threshold(dropout_p: float) -> int:
    """Return the threshold below which a weight's 16 bits keep it: round((1 - p) * 65536), at least 1.

    Kept weights are divided by threshold / 65536, the exact probability of keeping one.

    >>> keep_threshold(0.25), keep_threshold(0.1)
    (49152, 58982)
    """
    return max(1, int((1 - dropout_p) * 65536 + 0.5))


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int | Tensor) -> list[Tensor]:
    """Return four 32-bit numbers, as int64 tensors, for each counter of four; seed: an int, or one int64."""
    x = [word.long() for word in counter]
    key = [seed & _MASK, seed >> 32 & _MASK]
    for _ in range(_ROUNDS):
        high, low = zip(*(_multiply(x[2 * i], _MULTIPLIERS[i]) for i in range(2)), strict=True)
        x = [high[1] ^ x[1] ^ key[0], low[1], high[0] ^ x[3] ^ key[1], low[0]]
        key = [(part + step) & _MASK for part, step in zip(key, _WEYL, strict=True)]
    return x


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """Return the high and low 32 bits of the product of 32-bit numbers (int64 wraps, but keeps all 64 bits)."""
    product = a * b
    return product >> 32 & _MASK, product & _MASK


def dropout_bits(
    seed: int | Tensor, batch: int, heads: int, length: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Return (B, H, T, T): the 16 random bits of every weight, as int64."""
    sizes = (batch, heads, length, length)
    b, h, row, column = torch.meshgrid(*(torch.arange(size, device=device) for size in sizes), indexing="ij")
    words = torch.stack(philox((column // 32 * 8 + column % 8, row // 16 * 8 + row % 8, h, b), seed))
    word = row % 16 // 8 * 2 + column % 32 // 16
    half = column % 16 // 8
    return words.gather(0, word[None])[0] >> 16 * half & 0xFFFF
