"""Calls every kernel once, forward and backward, on cases small enough for the slowest memory checker.

    python -m kernels smoke                                                 # on the GPU, else on the emulator
    compute-sanitizer --tool racecheck python -m kernels smoke --device cuda

The cases reach every kernel of csrc/cuda in every compiled version: dtype, padded width, dropout, row layout
(tests/kernels/test_smoke.py compares the launches with the list of all kernels). Each result is compared with the
reference in float64, which finds a kernel that is wrong on this machine; tests/kernels measures their precision.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

import kernels
from common import cli
from kernels import reference

# Limits of ||ours - exact|| / ||exact||: far above rounding, far below the effect of a bug.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
ROWS = 9
# With 4 or 8 elements per pack: each number of packs in registers, a row too long for registers, a partial pack.
NORM_SIZES = (64, 128, 192, 256, 384, 512, 768, 1024, 2048, 1025)
WIDTHS = (32, 64, 96, 128)
SEED = 12345


@dataclasses.dataclass(frozen=True)
class Options:
    """Call every kernel once on a small case and compare with the reference."""

    device: Literal["auto", "cuda", "emulated", "cpu"] = "auto"
    """The CUDA kernels on the GPU or on the emulator, or the CPU kernels; auto takes the first that is available."""
    only: str = ""
    """Run only the cases whose name contains this."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A call of one op; `ours` and `exact` take the same tensors of these shapes."""

    name: str
    dtype: torch.dtype
    shapes: tuple[tuple[int, ...], ...]
    ours: Callable[..., Tensor | tuple[Tensor, ...]]
    exact: Callable[..., Tensor | tuple[Tensor, ...]]


def cases() -> Iterator[Case]:
    """Yield all cases, dtype by dtype."""
    for dtype in TOLERANCE:
        for size in NORM_SIZES:
            yield from _norms(dtype, size)
        for width in WIDTHS:
            for dropout_p in (0.0, 0.25):
                yield from _attentions(dtype, width, dropout_p)
        yield from _training_ops(dtype)


def _norms(dtype: torch.dtype, size: int) -> Iterator[Case]:
    rows, row, name = (ROWS, size), (size,), f"({ROWS}, {size}) {_short(dtype)}"
    yield Case(f"layer_norm {name}", dtype, (rows, row, row), kernels.layer_norm, reference.layer_norm)
    ours, exact = kernels.add_layer_norm, reference.add_layer_norm
    yield Case(f"add_layer_norm {name}", dtype, (rows, rows, row, row), ours, exact)


def _training_ops(dtype: torch.dtype) -> Iterator[Case]:
    """Yield cases of the ops other than attention and layer norm: in whole packs and not, with every activation."""
    short = _short(dtype)
    for size in (64, 33):
        rows, row = (ROWS, size), (size,)
        name = f"({ROWS}, {size}) {short}"
        yield Case(f"rms_norm {name}", dtype, (rows, row), kernels.rms_norm, reference.rms_norm)
        ours, exact = kernels.add_rms_norm, reference.add_rms_norm
        yield Case(f"add_rms_norm {name}", dtype, (rows, rows, row), ours, exact)
    for form in ("tanh", "none"):
        ours, exact = (functools.partial(each.gelu, approximate=form) for each in (kernels, reference))
        yield Case(f"gelu {form} {name}", dtype, (rows, row), ours, exact)
    yield Case(f"swiglu {name}", dtype, (rows, rows, row, row), kernels.swiglu, reference.swiglu)
    yield _rotary(dtype)
    targets = torch.tensor([3, -100, 600, 0])
    yield Case(
        f"linear_cross_entropy {short}",
        dtype,
        ((4, 8), (601, 8)),
        lambda hidden, weight: kernels.linear_cross_entropy(hidden, weight, targets.to(hidden.device)),
        lambda hidden, weight: reference.linear_cross_entropy(hidden, weight, targets),
    )
    if dtype == torch.float32:
        yield Case("adamw_", dtype, ((3, 40),) * 4, _moved(kernels), _moved(reference))


def _rotary(dtype: torch.dtype) -> Case:
    angles = torch.linspace(0, 3, 20).view(5, 4)
    return Case(
        f"rotary {_short(dtype)}",
        dtype,
        ((2, 5, 3, 8),),
        lambda x: kernels.rotary(x, angles.to(x.device)),
        lambda x: reference.rotate(x, angles.double()),
    )


def _moved(module: Any) -> Callable[..., Tensor]:
    """Return a step of AdamW on copies; its gradients, as adamw_ has none, are those of a sum."""
    options = {"step": 2, "lr": 0.1, "eps": 1e-8, "weight_decay": 0.1}
    betas = {"betas": (0.9, 0.99)} if module is kernels else {"beta1": 0.9, "beta2": 0.99}

    def step(*tensors: Tensor) -> Tensor:
        parameter, gradient, average, square = (x.detach().clone() for x in tensors)
        module.adamw_([parameter], [gradient], [average], [square.abs_()], **options, **betas)
        return parameter + average + square + sum(x - x.detach() for x in tensors)

    return step


def _attentions(dtype: torch.dtype, width: int, dropout_p: float) -> Iterator[Case]:
    """Yield, for 16-bit dtypes, a short and a long context on tensor cores, the latter with both backwards, and a width
    that tensor cores cannot take."""
    if dtype.itemsize > 2:
        yield _attention(dtype, 37, 2, 2, width, dropout_p)
        return
    yield _attention(dtype, 37, 2, 2, width, dropout_p)
    yield _attention(
        dtype, 270, 2, 1, width, dropout_p, window=200
    )  # in two kernels: three tiles of keys, or more
    yield _attention(dtype, 150, 2, 1, width, dropout_p, deterministic=False)
    yield _attention(dtype, 37, 2, 1, width - 1, dropout_p)


def _attention(dtype, length, heads, kv_heads, width, dropout_p, window=None, deterministic=True) -> Case:
    """Return a case with q of (1, T, H, D), k and v of (1, T, Hkv, D)."""
    options = {"dropout_p": dropout_p, "seed": SEED if dropout_p else None, "window": window}
    shapes = ((1, length, heads, width), *[(1, length, kv_heads, width)] * 2)
    order = "" if deterministic else ", in any order"
    name = f"causal_attention T {length}, H {heads}/{kv_heads}, D {width}, dropout {dropout_p}, {_short(dtype)}{order}"
    return Case(
        name,
        dtype,
        shapes,
        lambda *qkv: kernels.causal_attention(*qkv, deterministic=deterministic, **options),
        lambda *qkv: reference.causal_attention(*qkv, **options),
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def error(case: Case, device: str) -> float:
    """Return the largest ||ours - exact|| / ||exact|| of the results and the gradients of all inputs; NaN stays NaN.

    Random numbers are drawn on the CPU, so that only our kernels run on the device.
    """
    generator = torch.Generator().manual_seed(SEED)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in case.shapes]
    inputs = [x.to(case.dtype) for x in drawn]
    wanted = _with_gradients(case.exact, [x.double() for x in inputs])
    found = _with_gradients(case.ours, [x.to(device) for x in inputs])
    ratios = [_distance(x.detach().cpu().double(), y) for x, y in zip(found, wanted, strict=True)]
    return max(ratios, key=lambda ratio: (ratio != ratio, ratio))


def _with_gradients(op: Callable, inputs: list[Tensor]) -> list[Tensor]:
    """Return the results, then the gradients of all inputs for upstream gradients drawn from the seed."""
    leaves = [x.requires_grad_() for x in inputs]
    found = op(*leaves)
    outputs = found if isinstance(found, tuple) else (found,)
    generator = torch.Generator().manual_seed(SEED + 1)
    grads = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in outputs]
    grads = [grad.to(x.dtype).to(x.device) for grad, x in zip(grads, outputs, strict=True)]
    return [*(x.detach() for x in outputs), *torch.autograd.grad(outputs, leaves, grads)]


def _distance(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


def chosen_device(name: str) -> str:
    """Resolve `auto`; ValueError with the fix if the kernels asked for are missing."""
    states = kernels.backends()
    if name == "auto":
        name = next((each for each in ("cuda", "emulated", "cpu") if states[each] == "available"), "cuda")
    if states[name] != "available":
        raise ValueError(f"the kernels for {name} cannot run here: {states[name]}")
    return name


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the cases and report those that are wrong."""
    options = cli.parse(Options, argv, prog="python -m kernels smoke")
    device = chosen_device(options.device)
    chosen = [case for case in cases() if options.only in case.name]
    if not chosen:
        raise ValueError(f"no case has {options.only!r} in its name, such as {next(cases()).name!r}")
    with kernels.use("emulated" if device == "emulated" else "fused"):
        errors = {case.name: error(case, "cpu" if device == "emulated" else device) for case in chosen}
    wrong = [case.name for case in chosen if not errors[case.name] <= TOLERANCE[case.dtype]]
    for name in wrong:
        print(f"{name}: error {errors[name]:.2g}")
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(chosen)} cases on {device} differ from the reference, see above"
        )
    print(f"{len(chosen)} cases on {device} agree with the reference")


if __name__ == "__main__":
    main()
