"""Checks of arguments, for torch's path and for tracing; csrc/ops.cpp has the same ones for the kernels."""

import math

import numpy
import torch
from torch import Tensor, bfloat16, float16, float32, float64, int64

MAX_HEAD_DIM = 128
_DTYPES = (float32, float16, bfloat16, float64)
_INTEGERS = (int, numpy.integer, torch.SymInt)
_NUMBERS = (*_INTEGERS, float, numpy.floating, torch.SymFloat)


def check(condition: bool, message: str, *values: object) -> None:
    """Raise ValueError with the values in the message's {} if the condition does not hold.

    They are formatted only then: torch.compile traces through the checks and cannot format a symbolic number.
    """
    if not condition:
        raise ValueError(message.format(*values))


def check_tensors(**tensors: object) -> None:
    """Raise ValueError that names the first argument that is not a tensor."""
    for name, x in tensors.items():
        check(isinstance(x, Tensor), "{} is {}: it must be a tensor", name, type(x).__name__)


def check_number(name: str, x: object) -> None:
    """Raise ValueError if x is not a number; a tensor is none, as it would lose its gradient."""
    if not torch.compiler.is_compiling():  # which takes a number as a constant where it must know its type
        check(isinstance(x, _NUMBERS), "{} is {}: it must be a number", name, type(x).__name__)


def check_integer(name: str, x: object) -> None:
    """Raise ValueError if x is not an integer."""
    check(isinstance(x, _INTEGERS), "{} is {}: it must be an integer", name, type(x).__name__)


def check_attention_options(scale: object, window: object, dropout_p: object) -> None:
    """Raise ValueError that names the first option that is of a wrong type."""
    check(
        not isinstance(scale, Tensor),
        "scale is a tensor: pass a number, and multiply q by the tensor if it shall have a gradient",
    )
    check_number("scale", scale)
    check_number("dropout_p", dropout_p)
    if window is not None:
        check_integer("window", window)


def check_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> None:
    """Raise ValueError that names a wrong argument. x, residual: (..., C); weight, bias: (C)."""
    _check_rows("x", x)
    _check_vector("weight", weight, x)
    _check_vector("bias", bias, x)
    if residual is not None:
        _check_like("residual", residual, "x", x)
        _check_same_shape("residual", residual, "x", x)
        _check_unit_stride("residual", residual)
    check(0 < eps < math.inf, "eps is {}: it must be above 0, such as 1e-5", eps)


def check_gelu(x: Tensor, bias: Tensor | None, approximate: str) -> None:
    """Raise ValueError that names a wrong argument. x: (..., C); bias: (C)."""
    _check_rows("x", x)
    _check_vector("bias", bias, x)
    check(approximate in ("tanh", "none"), "approximate is '{}': choose tanh or none", approximate)


def check_swiglu(gate: Tensor, x: Tensor, gate_bias: Tensor | None, bias: Tensor | None) -> None:
    """Raise ValueError that names a wrong argument. gate, x: (..., C); gate_bias, bias: (C)."""
    _check_rows("x", x)
    _check_vector("bias", bias, x)
    _check_like("gate", gate, "x", x)
    _check_same_shape("gate", gate, "x", x)
    _check_unit_stride("gate", gate)
    _check_vector("gate_bias", gate_bias, x)


def check_linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    """Raise ValueError that names a wrong argument. hidden: (N, C); weight: (V, C); targets: (N) int64."""
    for name, x in (("hidden", hidden), ("weight", weight)):
        _check_floating(name, x)
    check(
        hidden.dim() == 2 and hidden.shape[1] >= 1,
        "hidden has shape {}: it must be (N, C)",
        _shape(hidden),
    )
    check(
        weight.dim() == 2 and weight.shape[0] >= 1 and weight.shape[1] == hidden.shape[1],
        "weight has shape {}: it must be (V, {}) for hidden of shape {}",
        _shape(weight),
        hidden.shape[1],
        _shape(hidden),
    )
    check(
        targets.shape == hidden.shape[:1],
        "targets has shape {}: it must be ({})",
        _shape(targets),
        hidden.shape[0],
    )
    check(targets.dtype == int64, "targets has dtype {}: convert it with .long()", targets.dtype)
    for name, x in (("weight", weight), ("targets", targets)):
        _check_device(name, x, "hidden", hidden)


def check_targets(targets: Tensor, vocab_size: int, ignored: int) -> None:
    """Raise ValueError unless targets on the CPU are in 0..vocab_size-1, or `ignored`.

    On other devices looking would stop the device's queue.
    """
    if targets.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = targets[(targets != ignored) & ((targets < 0) | (targets >= vocab_size))]
    if wrong.numel():
        raise ValueError(
            f"targets holds {wrong[0]}: it must be in 0..{vocab_size - 1}, or {ignored} to be ignored"
        )


def check_adamw(
    parameters: list[Tensor],
    gradients: list[Tensor],
    averages: list[Tensor],
    squares: list[Tensor],
    step: int,
) -> None:
    """Raise ValueError unless the lists have one length and their tensors are contiguous float32 of one shape each."""
    count = len(parameters)
    check(
        len(gradients) == len(averages) == len(squares) == count,
        "there are {} parameters, {} gradients, {} averages and {} averages of squares: these must be as many",
        count,
        len(gradients),
        len(averages),
        len(squares),
    )
    for i, group in enumerate(zip(parameters, gradients, averages, squares, strict=True)):
        for x in group:
            check(
                x.dtype == float32
                and x.is_contiguous()
                and x.shape == group[0].shape
                and x.device == group[0].device,
                "parameter {} of shape {} has a gradient or a state that is {} of shape {}: all must be contiguous "
                "float32 of one shape on one device",
                i,
                _shape(group[0]),
                x.dtype,
                _shape(x),
            )
    check(step >= 1, "step is {}: the first is 1", step)


def check_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, dropout_p: float
) -> None:
    """Raise ValueError that names a wrong argument. q: (B, T, H, D); k, v: (B, T, Hkv, D)."""
    _check_floating("q", q)
    for name, x in (("q", q), ("k", k)):
        check(x.dim() == 4, "{} has shape {}: it must be (B, T, H, D)", name, _shape(x))
    _check_attention_sizes(q, k, v)
    for name, x in (("k", k), ("v", v)):
        _check_like(name, x, "q", q)
    for name, x in (("q", q), ("k", k), ("v", v)):
        _check_unit_stride(name, x)
    check(-math.inf < scale < math.inf, "scale is {}: it must be finite", scale)
    check(
        window is None or window >= 1,
        "window is {}: it must be at least 1 (the query's own key), or None for no limit",
        window,
    )
    check(0 <= dropout_p < 1, "dropout_p is {}: it must be in [0, 1)", dropout_p)


def _check_attention_sizes(q: Tensor, k: Tensor, v: Tensor) -> None:
    (batch, length, heads, width), groups = q.shape, k.shape[2]
    _check_head_dim("q", q)
    check(
        (batch, length, width) == (k.shape[0], k.shape[1], k.shape[3]),
        "k has shape {} but q has {}: B, T and D must be equal",
        _shape(k),
        _shape(q),
    )
    check(
        groups >= 1 and heads % groups == 0,
        "k has {} heads but q has {}: the heads of q must be a multiple of those of k",
        groups,
        heads,
    )
    _check_same_shape("v", v, "k", k)


def check_documents(q: Tensor, k: Tensor, v: Tensor, ends: Tensor) -> None:
    """Raise ValueError that names a wrong argument. q: (N, H, D); k, v: (N, Hkv, D); ends: (documents + 1)."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        check(x.dim() == 3, "{} has shape {}: it must be (N, H, D)", name, _shape(x))
    check(
        len(k) == len(v) == len(q),
        "q, k and v have {}, {} and {} tokens: these must be equal",
        len(q),
        len(k),
        len(v),
    )
    check(
        ends.device.type == "cpu" and ends.dtype == int64 and ends.dim() == 1 and len(ends) >= 1,
        "ends has shape {}, {} on {}: it must be (documents + 1) int64 on the CPU",
        _shape(ends),
        ends.dtype,
        ends.device,
    )
    if torch.compiler.is_compiling():
        return  # the kernel looks at the numbers
    check(
        int(ends[0]) == 0 and int(ends[-1]) == len(q) and bool((ends.diff() >= 0).all()),
        "ends goes from {} to {}: it must rise from 0 to the {} tokens of q",
        int(ends[0]),
        int(ends[-1]),
        len(q),
    )


def check_packed(qkv: Tensor) -> None:
    """Raise ValueError if qkv is not (B, T, 3, H, D)."""
    _check_floating("qkv", qkv)
    check(qkv.dim() == 5 and qkv.shape[2] == 3, "qkv has shape {}: it must be (B, T, 3, H, D)", _shape(qkv))
    _check_head_dim("qkv", qkv)
    _check_unit_stride("qkv", qkv)


def check_seed(seed: Tensor, device: torch.device) -> None:
    """Raise ValueError if a seed tensor is not one int64 on the kernel's device."""
    check(
        seed.numel() == 1 and seed.dtype == int64 and seed.device == device,
        "seed must be one int64 on {} where dropout_p > 0",
        device,
    )


def check_rotary(x: Tensor, angles: Tensor) -> None:
    """Raise ValueError that names a wrong argument. x: (B, T, H, D), D even; angles: (T, D / 2) or (B, T, D / 2)."""
    _check_floating("x", x)
    check(
        x.dim() == 4 and x.shape[3] >= 2 and x.shape[3] % 2 == 0,
        "x has shape {}: it must be (B, T, H, D) with an even D",
        _shape(x),
    )
    _check_unit_stride("x", x)
    wanted = (x.shape[1], x.shape[3] // 2)
    check(
        angles.dtype in (float32, float64) and angles.shape in (wanted, (1, *wanted), (x.shape[0], *wanted)),
        "angles has shape {} and dtype {}: they must be (T, D / 2) or (B, T, D / 2) of float32 for x of shape {}",
        _shape(angles),
        angles.dtype,
        _shape(x),
    )
    _check_device("angles", angles, "x", x)
    check(
        not angles.requires_grad,
        "angles requires a gradient, which rotary does not form: pass angles.detach()",
    )


def _shape(x: Tensor) -> list[int]:
    return list(x.shape)


def _check_floating(name: str, x: Tensor) -> None:
    check(x.dtype in _DTYPES, "{} has dtype {}: use float32, float16, bfloat16 or float64", name, x.dtype)


def _check_like(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    check(
        x.dtype == other.dtype,
        "{} has dtype {} but {} has {}: convert one with .to(dtype)",
        name,
        x.dtype,
        other_name,
        other.dtype,
    )
    _check_device(name, x, other_name, other)


def _check_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    check(
        x.device == other.device,
        "{} is on {} but {} is on {}: move one with .to(device)",
        name,
        x.device,
        other_name,
        other.device,
    )


def _check_same_shape(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    check(
        x.shape == other.shape,
        "{} has shape {} but {} has {}: they must be equal",
        name,
        _shape(x),
        other_name,
        _shape(other),
    )


def _check_unit_stride(name: str, x: Tensor) -> None:
    check(
        x.shape[-1] <= 1 or x.stride(-1) == 1,
        "{} has stride {} in its last dimension instead of 1: pass {}.contiguous()",
        name,
        x.stride(-1),
        name,
    )


def _check_head_dim(name: str, x: Tensor) -> None:
    width = x.shape[-1]
    check(
        1 <= width <= MAX_HEAD_DIM, "{} has head dimension {}: D must be in 1..{}", name, width, MAX_HEAD_DIM
    )


def _check_rows(name: str, x: Tensor) -> None:
    _check_floating(name, x)
    check(
        x.dim() >= 1 and x.shape[-1] >= 1,
        "{} has shape {}: it needs a last dimension C >= 1",
        name,
        _shape(x),
    )
    _check_unit_stride(name, x)


def _check_vector(name: str, vector: Tensor | None, x: Tensor) -> None:
    """Check a weight or bias (C) of x (..., C)."""
    if vector is None:
        return
    check(
        vector.shape == x.shape[-1:] and vector.is_contiguous(),
        "{} has shape {}: it must be contiguous with {} elements",
        name,
        _shape(vector),
        x.shape[-1],
    )
    _check_like(name, vector, "x", x)
