"""Checks of arguments, for torch's path and for tracing; csrc/ops.cpp has the same ones for the kernels."""

import math

import torch
from torch import Tensor, bfloat16, float16, float32, float64, int64

MAX_HEAD_DIM = 128
_DTYPES = (float32, float16, bfloat16, float64)


def check(condition: bool, message: str) -> None:
    """Raise ValueError with the message if the condition is false."""
    if not condition:
        raise ValueError(message)


def _shape(x: Tensor) -> list[int]:
    return list(x.shape)


def _check_floating(name: str, x: Tensor) -> None:
    check(x.dtype in _DTYPES, f"{name} has dtype {x.dtype}: use float32, float16, bfloat16 or float64")


def _check_like(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    check(
        x.dtype == other.dtype,
        f"{name} has dtype {x.dtype} but {other_name} has {other.dtype}: convert one with .to(dtype)",
    )
    check(
        x.device == other.device,
        f"{name} is on {x.device} but {other_name} is on {other.device}: move one with .to(device)",
    )


def _check_unit_stride(name: str, x: Tensor) -> None:
    check(
        x.shape[-1] <= 1 or x.stride(-1) == 1,
        f"{name} has stride {x.stride(-1)} in its last dimension instead of 1: pass {name}.contiguous()",
    )


def _check_head_dim(name: str, x: Tensor) -> None:
    width = x.shape[-1]
    check(1 <= width <= MAX_HEAD_DIM, f"{name} has head dimension {width}: D must be in 1..{MAX_HEAD_DIM}")


def check_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> None:
    """Raise a ValueError that names a wrong argument. x, residual: (..., C); weight, bias: (C)."""
    _check_floating("x", x)
    check(x.dim() >= 1 and x.shape[-1] >= 1, f"x has shape {_shape(x)}: it needs a last dimension C >= 1")
    _check_unit_stride("x", x)
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None:
            check(
                vector.shape == x.shape[-1:] and vector.is_contiguous(),
                f"{name} has shape {_shape(vector)}: it must be contiguous with {x.shape[-1]} elements",
            )
            _check_like(name, vector, "x", x)
    if residual is not None:
        _check_like("residual", residual, "x", x)
        check(
            residual.shape == x.shape,
            f"residual has shape {_shape(residual)} but x has {_shape(x)}: they must be equal",
        )
        _check_unit_stride("residual", residual)
    check(0 < eps < math.inf, f"eps is {eps}: it must be above 0, such as 1e-5")


def check_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, dropout_p: float
) -> None:
    """Raise a ValueError that names a wrong argument. q: (B, T, H, D); k, v: (B, T, Hkv, D)."""
    _check_floating("q", q)
    for name, x in (("q", q), ("k", k)):
        check(x.dim() == 4, f"{name} has shape {_shape(x)}: it must be (B, T, H, D)")
    _check_attention_sizes(q, k, v)
    for name, x in (("k", k), ("v", v)):
        _check_like(name, x, "q", q)
    for name, x in (("q", q), ("k", k), ("v", v)):
        _check_unit_stride(name, x)
    check(math.isfinite(scale), f"scale is {scale}: it must be finite")
    check(
        window is None or window >= 1,
        f"window is {window}: it must be at least 1 (the query's own key), or None for no limit",
    )
    check(0 <= dropout_p < 1, f"dropout_p is {dropout_p}: it must be in [0, 1)")


def _check_attention_sizes(q: Tensor, k: Tensor, v: Tensor) -> None:
    (batch, length, heads, width), groups = q.shape, k.shape[2]
    _check_head_dim("q", q)
    check(
        (batch, length, width) == (k.shape[0], k.shape[1], k.shape[3]),
        f"k has shape {_shape(k)} but q has {_shape(q)}: B, T and D must be equal",
    )
    check(
        groups >= 1 and heads % groups == 0,
        f"k has {groups} heads but q has {heads}: the heads of q must be a multiple of those of k",
    )
    check(v.shape == k.shape, f"v has shape {_shape(v)} but k has {_shape(k)}: they must be equal")


def check_packed(qkv: Tensor) -> None:
    """Raise a ValueError if qkv is not (B, T, 3, H, D)."""
    _check_floating("qkv", qkv)
    check(qkv.dim() == 5 and qkv.shape[2] == 3, f"qkv has shape {_shape(qkv)}: it must be (B, T, 3, H, D)")
    _check_head_dim("qkv", qkv)
    _check_unit_stride("qkv", qkv)


def check_seed(seed: Tensor, device: torch.device) -> None:
    """Raise a ValueError if a seed tensor is not one int64 on the kernel's device."""
    check(
        seed.numel() == 1 and seed.dtype == int64 and seed.device == device,
        f"seed must be one int64 on {device} where dropout_p > 0",
    )
