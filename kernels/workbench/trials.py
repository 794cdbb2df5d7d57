"""Draws inputs for the programs of programs.py and judges their results against float64.

trial = prepare("attention_long_forward", Attention(batch=1, length=70, heads=2, width=24), "bfloat16")
trial.fault(trial.run(library))  # None, or the result that is wrong
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels import reference
from kernels.workbench import programs
from kernels.workbench.emulator import Library

TORCH = {name: getattr(torch, name) for name in programs.STORAGE}
# The largest error, in units of the dtype's last place at the largest exact value, or at 1 where that is larger.
UNITS = {"bfloat16": 1.5, "float16": 1.5, "float32": 24, "float64": 24}
STATISTICS = ("lse", "mean", "rstd", "largest", "total", "target")


@dataclass(frozen=True)
class Norm:
    """Rows of C elements, `gap` elements apart.

    unaligned: the input that is not aligned to a pack of 16 bytes. sm_count: SMs of the emulated GPU.
    poisoned: the input whose middle row ends in `poison`.
    """

    rows: int
    columns: int
    bias: bool = True
    residual: bool = False
    gap: int = 0
    unaligned: str = ""
    sm_count: int = 1
    poisoned: str = ""
    poison: float = math.nan


@dataclass(frozen=True)
class Attention:
    """q of (B, T, H, D), k and v with `kv_heads`; `transposed`: (B, H, T, D) in memory.

    poisoned: the input (q, k, v or grad_out) with `poison` in a row, that of the last head at `token`, in `column`.
    ends: of documents, from 0 to `length`, in a batch of one; empty: none.
    """

    batch: int
    length: int
    heads: int
    width: int
    kv_heads: int | None = None
    window: int | None = None
    dropout_p: float = 0.0
    scale: float | None = None
    spread: float = 1.0  # standard deviation of q
    transposed: bool = False
    any_order: bool = False  # dq is summed by atomic additions
    seed: int = 12345678901  # of dropout
    poisoned: str = ""
    poison: float = math.nan
    token: int = 0
    column: int = -1
    ends: tuple[int, ...] = ()

    @property
    def options(self) -> dict:
        return {"scale": self.scale, "window": self.window, "dropout_p": self.dropout_p, "seed": self.seed}


@dataclass(frozen=True)
class Turn:
    """x of (B, T, H, D) to be turned by its positions, one for the whole batch if `shared`; back: the other way."""

    batch: int
    length: int
    heads: int
    width: int
    shared: bool = True
    back: bool = False
    transposed: bool = False
    poisoned: bool = False  # NaN ends the last row


@dataclass(frozen=True)
class Step:
    """Parameters of these sizes for a step of AdamW; poisoned: NaN ends the last gradient."""

    sizes: tuple[int, ...]
    poisoned: bool = False


Case = Norm | Attention | Turn | Step


@dataclass(frozen=True)
class Trial:
    """A case in one dtype. run(library, seed=…) returns the results by name; exact: the right results in float64."""

    name: str
    dtype: str
    run: Callable[..., dict[str, np.ndarray]]
    exact: dict[str, np.ndarray]

    def fault(self, made: Mapping[str, np.ndarray]) -> str | None:
        """Return the first result that is wrong; None if all are right.

        What a kernel does not write is NaN. Where the right result is not finite, any number that is not will do.
        """
        for name, exact in self.exact.items():
            values, finite = _values(made[name]), np.isfinite(exact)
            if np.isfinite(values[~finite]).any():
                return f"wrong {name}: finite where it should not be"
            difference = np.abs(values[finite] - exact[finite]).max(initial=0)
            if not difference <= self.allowed(name):
                return f"wrong {name}: off by {difference:.2g}, allowed {self.allowed(name):.2g}"
        return None

    def allowed(self, name: str) -> float:
        """Return the largest allowed error of a result; statistics are float32 or better."""
        kind = "float32" if name in STATISTICS and self.dtype != "float64" else self.dtype
        exact = self.exact[name]
        largest = np.abs(exact[np.isfinite(exact)]).max(initial=1.0)
        return UNITS[kind] * torch.finfo(TORCH[kind]).eps * largest


def prepare(program: str, case: Case, dtype: str) -> Trial:
    """Draw the inputs of a case and compute the right results."""
    backward = program.endswith("backward")
    kind = program.removesuffix("_forward").removesuffix("_backward")
    extra: dict = {}
    if kind in programs.BENDS:
        arguments, exact = (_bend_backward if backward else _bend_forward)(kind, case, dtype)
        call = programs.activation_backward if backward else programs.activation_forward
    elif isinstance(case, Turn):
        arguments, exact = _turn(case, dtype)
        call, extra = programs.rotary, {"back": case.back}
    elif isinstance(case, Step):
        return _step(case)
    elif kind == "cross_entropy":
        arguments, exact = _cross_entropy(case, dtype)
        call = programs.cross_entropy
    elif kind == "rms_norm":
        arguments, exact = (_rms_norm_backward if backward else _rms_norm_forward)(case, dtype)
        call = programs.rms_norm_backward if backward else programs.rms_norm_forward
        extra = {"sm_count": case.sm_count}
    elif isinstance(case, Norm):
        arguments, exact = (_norm_backward if backward else _norm_forward)(case, dtype)
        call = programs.layer_norm_backward if backward else programs.layer_norm_forward
        extra = {"sm_count": case.sm_count}
    else:
        arguments, exact = (_attention_backward if backward else _attention_forward)(case, dtype)
        call = programs.attention_backward if backward else programs.attention_forward
        extra = {"options": case.options | {"any_order": case.any_order, "ends": case.ends}}
    arrays = [None if tensor is None else _storage(tensor) for tensor in arguments]
    if isinstance(case, Norm) and case.unaligned in (names := programs.TENSORS.get(program, ())):
        which = names.index(case.unaligned)
        arrays[which] = _shifted(arrays[which])

    def run(library: Library, **how) -> dict[str, np.ndarray]:
        return call(library, *arrays, **extra, **how)

    return Trial(f"{case} {dtype}", dtype, run, {name: true.detach().numpy() for name, true in exact.items()})


def _draw(*shape: int, seed: int, dtype: str, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(*shape, dtype=torch.float64, generator=generator) * spread).to(TORCH[dtype])


def _storage(tensor: Tensor) -> np.ndarray:
    """Return the tensor's memory as the array that programs.py takes."""
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _shifted(array: np.ndarray) -> np.ndarray:
    """Return the same contiguous values, one element after an aligned address."""
    room = programs.unwritten((array.size + 1,), array.dtype)[1:]
    room[:] = array.ravel()
    return room.reshape(array.shape)


def _values(array: np.ndarray) -> np.ndarray:
    tensor = torch.from_numpy(array)
    return (tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor).double().numpy()


def _statistic(exact: Tensor, dtype: str) -> Tensor:
    return exact.detach().to(torch.float64 if dtype == "float64" else torch.float32).contiguous()


# ---- layer norm ----


def _rows(case: Norm, seed: int, dtype: str, name: str, spread: float = 1.0) -> Tensor:
    """Draw the input `name`, poisoned if the case says so."""
    drawn = _draw(case.rows, case.columns + case.gap, seed=seed, dtype=dtype, spread=spread)[
        :, : case.columns
    ]
    if case.poisoned == name:
        drawn[case.rows // 2, -1] = case.poison
    return drawn


def _norm_forward(case: Norm, dtype: str) -> tuple[list, dict[str, Tensor]]:
    x, residual = (_rows(case, seed, dtype, name) for seed, name in enumerate(("x", "residual")))
    weight, bias = (_draw(case.columns, seed=seed, dtype=dtype) for seed in (2, 3))
    total = (x + residual if case.residual else x).double()  # rounded before it is normalized
    mean, rstd = reference.moments(total, 1e-5)
    out = reference.layer_norm(total, weight.double(), bias.double() if case.bias else None)
    exact = {"out": out, "mean": mean[:, 0], "rstd": rstd[:, 0]} | ({"sum": total} if case.residual else {})
    return [x, weight, bias if case.bias else None, residual if case.residual else None], exact


def _norm_backward(case: Norm, dtype: str) -> tuple[list, dict[str, Tensor]]:
    names = ("grad_out", "x", "grad_residual")
    grad_out, x, grad_residual = (_rows(case, seed, dtype, name) for seed, name in enumerate(names))
    weight = _draw(case.columns, seed=3, dtype=dtype)
    mean, rstd = (_statistic(moment[:, 0], dtype) for moment in reference.moments(x.double(), 1e-5))
    exact = reference.layer_norm_backward(grad_out.double(), x.double(), weight.double())
    grad_x = exact[0] + grad_residual.double() if case.residual else exact[0]
    arguments = [grad_out, x, weight, mean, rstd, grad_residual if case.residual else None]
    return arguments, {"grad_x": grad_x, "grad_weight": exact[1], "grad_bias": exact[2]}


# ---- the other ops of a training step ----


def _rms_norm_forward(case: Norm, dtype: str) -> tuple[list, dict[str, Tensor]]:
    x, residual = (_rows(case, seed, dtype, name) for seed, name in enumerate(("x", "residual")))
    weight = _draw(case.columns, seed=2, dtype=dtype)
    total = (x + residual if case.residual else x).double()  # rounded before it is normalized
    rstd = (total.square().mean(-1) + 1e-5).rsqrt()
    exact = {"out": reference.rms_norm(total, weight.double()), "rstd": rstd}
    return [x, weight, residual if case.residual else None], exact | ({"sum": total} if case.residual else {})


def _rms_norm_backward(case: Norm, dtype: str) -> tuple[list, dict[str, Tensor]]:
    names = ("grad_out", "x", "grad_residual")
    grad_out, x, grad_residual = (_rows(case, seed, dtype, name) for seed, name in enumerate(names))
    weight = _draw(case.columns, seed=3, dtype=dtype)
    rstd = _statistic((x.double().square().mean(-1) + 1e-5).rsqrt(), dtype)
    exact = reference.rms_norm_backward(grad_out.double(), x.double(), weight.double())
    grad_x = exact[0] + grad_residual.double() if case.residual else exact[0]
    arguments = [grad_out, x, weight, rstd, grad_residual if case.residual else None]
    return arguments, {"grad_x": grad_x, "grad_weight": exact[1]}


def _bend_inputs(kind: str, case: Norm, dtype: str) -> list[Tensor | None]:
    """Return gate, its bias, and for SwiGLU x and its bias; `case.bias` says whether there are biases."""
    gate, x = (_rows(case, seed, dtype, name, 2.0) for seed, name in enumerate(("gate", "x")))
    biases = [_draw(case.columns, seed=seed, dtype=dtype) if case.bias else None for seed in (2, 3)]
    return [gate, biases[0], x, biases[1]] if kind == "swiglu" else [gate, biases[0]]


def _bend(kind: str, tensors: list[Tensor | None]) -> Tensor:
    if kind == "swiglu":
        gate, gate_bias, x, bias = tensors
        return reference.swiglu(gate, x, gate_bias, bias)
    return reference.gelu(*tensors, "none" if kind == "gelu_erf" else "tanh")


def _bend_forward(kind: str, case: Norm, dtype: str) -> tuple[list, dict[str, Tensor]]:
    inputs = _bend_inputs(kind, case, dtype)
    return inputs, {"out": _bend(kind, [None if x is None else x.double() for x in inputs])}


def _bend_backward(kind: str, case: Norm, dtype: str) -> tuple[list, dict[str, Tensor]]:
    inputs, grad_out = _bend_inputs(kind, case, dtype), _rows(case, 5, dtype, "grad_out")
    leaves = [None if x is None else x.double().requires_grad_() for x in inputs]
    names = ("grad_gate", "grad_gate_bias", "grad_x", "grad_bias")
    wanted = {name: leaf for name, leaf in zip(names, leaves, strict=False) if leaf is not None}
    found = torch.autograd.grad(_bend(kind, leaves), list(wanted.values()), grad_out.double())
    return [grad_out, *inputs], dict(zip(wanted, found, strict=True))


def _cross_entropy(case: Norm, dtype: str) -> tuple[list, dict[str, Tensor]]:
    logits, scale = _rows(case, 0, dtype, "logits", 3.0), torch.tensor([0.5])
    targets = torch.arange(case.rows) * 7 % case.columns
    targets[1:2] = -100
    targets[2:3] = case.columns  # beyond the vocabulary: it has no logit
    return [logits, targets, _statistic(scale, dtype)], exact_cross_entropy(logits, targets, scale)


def exact_cross_entropy(logits: Tensor, targets: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """Return what the passes of cross-entropy store, in float64: the gradient (rows, V) and the statistics (rows,)."""
    exact, kept, known = logits.double(), targets != -100, (targets >= 0) & (targets < logits.shape[1])
    largest = exact.amax(-1)
    hit = torch.nn.functional.one_hot(targets.where(known, 0), logits.shape[1]) * known[:, None]
    gradient = ((exact.softmax(-1) - hit) * scale).masked_fill(~kept[:, None], 0)
    total = (exact - largest[:, None]).exp().sum(-1)
    target = exact.gather(1, targets.where(known, 0)[:, None])[:, 0].masked_fill(~known, math.nan)
    return {"gradient": gradient, "largest": largest, "total": total, "target": target}


def _turn(case: Turn, dtype: str) -> tuple[list, dict[str, Tensor]]:
    x = _heads(case, case.heads, 0, dtype)
    if case.poisoned:
        x[-1, -1, -1, -1] = math.nan
    angles = _draw(1 if case.shared else case.batch, case.length, case.width // 2, seed=1, dtype="float64")
    out = reference.rotate(x.double(), -angles if case.back else angles)
    return [x, _statistic(angles.cos(), dtype), _statistic(angles.sin(), dtype)], {"out": out}


def _step(case: Step) -> Trial:
    lists = [[_draw(size, seed=seed, dtype="float32") for size in case.sizes] for seed in range(4)]
    if case.poisoned:
        lists[1][-1][-1] = math.nan
    lists[3] = [x.square() for x in lists[3]]
    (beta1, beta2), step, lr, eps, decay, scale = (0.9, 0.95), 3, 0.1, 1e-8, 0.5, 0.7
    exact = [[x.double() for x in each] for each in lists]
    reference.adamw_(*exact, step, lr, beta1, beta2, eps, decay, scale)
    rate, root = -lr / (1 - beta1**step), (1 - beta2**step) ** -0.5
    options = [beta1, beta2, eps, 1 - lr * decay, rate, root, scale]
    arrays = [[x.numpy() for x in each] for each in lists]
    names = {"parameter": 0, "average": 2, "square": 3}
    return Trial(
        f"{case} float32",
        "float32",
        functools.partial(_run_step, arrays, options),
        {name: torch.cat(exact[which]).numpy() for name, which in names.items()},
    )


def _run_step(arrays: list, options: list[float], library: Library, **how) -> dict[str, np.ndarray]:
    return programs.adamw(library, *arrays, options=options, **how)


# ---- attention ----


def _heads(case: Attention | Turn, count: int, seed: int, dtype: str, spread: float = 1.0) -> Tensor:
    shape = (case.batch, case.length, count, case.width)
    if not case.transposed:
        return _draw(*shape, seed=seed, dtype=dtype, spread=spread)
    shape = (case.batch, count, case.length, case.width)
    drawn = _draw(*shape, seed=seed, dtype=dtype, spread=spread)
    return drawn.transpose(1, 2)  # (B, H, T, D) -> (B, T, H, D)


def _attention_inputs(case: Attention, dtype: str) -> list[Tensor]:
    """Draw q, k, v and the gradient of the result, one of them poisoned if the case says so."""
    kv_heads = case.kv_heads or case.heads
    drawn = {"q": _heads(case, case.heads, 0, dtype, case.spread)}
    drawn |= {name: _heads(case, kv_heads, seed, dtype) for seed, name in enumerate(("k", "v"), 1)}
    drawn["grad_out"] = _heads(case, case.heads, 3, dtype)
    if case.poisoned:
        drawn[case.poisoned][-1, case.token, -1, case.column] = case.poison
    return list(drawn.values())


def attend_to_visible(
    q: Tensor, k: Tensor, v: Tensor, *, scale=None, window=None, dropout_p=0.0, seed=None
) -> Tensor:
    """Return attention formed one query at a time, over the keys that it sees: (B, T, H, D), in the dtype of q.

    As reference.causal_attention, but a key that is not seen is left out, so that it may hold anything.
    """
    heads = q.shape[2]
    k, v = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in (k, v))
    factors = reference.dropout_factors(q, dropout_p, seed) if dropout_p else torch.ones(())
    rows = []
    for i in range(q.shape[1]):
        first = 0 if window is None else max(0, i - window + 1)
        scores = torch.einsum("bhd,bjhd->bhj", q[:, i], k[:, first : i + 1]) * (scale or q.shape[3] ** -0.5)
        weights = scores.softmax(-1) * (factors[:, :, i, first : i + 1] if dropout_p else 1)
        rows.append(torch.einsum("bhj,bjhd->bhd", weights, v[:, first : i + 1]))
    return torch.stack(rows, 1)


def _exact_attention(case: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    attend = attend_to_visible if case.poisoned else reference.causal_attention  # which is faster
    if case.ends:
        return reference.by_document(attend, q, k, v, torch.tensor(case.ends), **case.options)
    return attend(q, k, v, **case.options)


def _log_sum_exp(q: Tensor, k: Tensor, case: Attention) -> Tensor:
    """Return the log-sum-exp of the visible scores, (B, H, T)."""
    scale = case.width**-0.5 if case.scale is None else case.scale
    scores = torch.einsum("bihd,bjhd->bhij", q, k.repeat_interleave(q.shape[2] // k.shape[2], 2)) * scale
    document = torch.bucketize(torch.arange(case.length), torch.tensor(case.ends[1:]), right=True)
    hidden = ~reference.seen(case.length, case.window) | (document[:, None] != document)
    visible = scores.masked_fill(hidden, -torch.inf)
    return visible.logsumexp(-1).masked_fill((visible == torch.inf).any(-1), math.nan)  # as the weights are


def _attention_forward(case: Attention, dtype: str) -> tuple[list, dict[str, Tensor]]:
    inputs = _attention_inputs(case, dtype)[:3]
    q, k, v = (x.double() for x in inputs)
    out = _exact_attention(case, q, k, v)
    return inputs, {"out": out, "lse": _log_sum_exp(q, k, case)}


def _attention_backward(case: Attention, dtype: str) -> tuple[list, dict[str, Tensor]]:
    *inputs, grad_out = _attention_inputs(case, dtype)
    leaves = [x.double().requires_grad_() for x in inputs]
    out = _exact_attention(case, *leaves)
    gradients = torch.autograd.grad(out, leaves, grad_out.double())
    lse = _statistic(_log_sum_exp(leaves[0], leaves[1], case), dtype)
    arguments = [grad_out, *inputs, out.to(TORCH[dtype]), lse]
    return arguments, dict(zip(("dq", "dk", "dv"), gradients, strict=True))
