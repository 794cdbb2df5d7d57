"""Defines what `python -m kernels bench` measures: each op at each shape, ours and its peers, and if they agree."""

import contextlib
import dataclasses
import functools
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels
from kernels import reference

NORM_SHAPES = {"cpu": [(16384, 384)], "cuda": [(32768, 384), (32768, 768), (32768, 1024)], "tiny": [(64, 16)]}
# (B, T, H, D)
ATTENTION_SHAPES = {
    "cpu": [(32, 128, 6, 64), (2, 1024, 12, 64)],
    "cuda": [
        (1024, 128, 6, 64),
        (16, 1024, 12, 64),
        (16, 1024, 6, 128),
        (4, 4096, 12, 64),
        (4, 4096, 6, 128),
    ],
    "tiny": [(1, 16, 2, 8)],
}
SDPA_BACKENDS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA math": SDPBackend.MATH,
}
# Limits of ||one - other|| / ||other|| between two correct results.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


Context = Callable[[], contextlib.AbstractContextManager]


@dataclasses.dataclass(frozen=True)
class Way:
    """One implementation of an op; `around` returns the context that selects it."""

    call: Callable[..., Tensor | tuple[Tensor, ...]]
    around: Context = contextlib.nullcontext
    graphed: bool = (
        True  # False for what keeps a T x T matrix per call: too large for a CUDA graph of many calls
    )

    def outputs(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the results as a tuple, even if there is only one."""
        found = self.call(*inputs)
        return found if isinstance(found, tuple) else (found,)


@dataclasses.dataclass(frozen=True)
class Turn:
    """The call that is timed, and the context around it, which a GPU's events exclude."""

    call: Callable[[], object]
    around: Context = contextlib.nullcontext

    def __call__(self) -> object:
        with self.around():
            return self.call()


@dataclasses.dataclass(frozen=True)
class Case:
    """One op at one shape: its implementations by name, ours first, their inputs and the work to do."""

    op: str
    shape: tuple[int, ...]
    ways: dict[str, Way]
    inputs: list[Tensor]
    work: float  # bytes or floating point operations of the forward, in units of 1e9 or 1e12
    backward_work: float
    unit: str  # of the work per second: GB/s or TFLOP/s

    @property
    def name(self) -> str:
        return f"{self.op} {self.shape}"

    def without(self, names: Collection[str]) -> "Case":
        """Return the case without these peers."""
        return dataclasses.replace(self, ways={n: way for n, way in self.ways.items() if n not in names})


def cases(
    device: str, dtype: torch.dtype, only: str = "", compiled: bool = False, tiny: bool = False
) -> Iterator[Case]:
    """Yield the device's cases whose op has `only` in its name, with the implementations that run there."""
    makers = {"add_layer_norm": _add_layer_norm, "layer_norm": _layer_norm, "causal_attention": _attention}
    for op, make in makers.items():
        if only not in op:
            continue
        for shape in (ATTENTION_SHAPES if op == "causal_attention" else NORM_SHAPES)[
            "tiny" if tiny else device
        ]:
            torch.manual_seed(0)
            yield _of_those_that_run(make(shape, device, dtype, compiled))


def _layer_norm(shape: tuple[int, ...], device: str, dtype: torch.dtype, compiled: bool) -> Case:
    def torchs(x, weight, bias):
        return F.layer_norm(x, weight.shape, weight, bias)

    ways = {"ours": Way(kernels.layer_norm), "F.layer_norm": Way(torchs), **_compiled(torchs, compiled)}
    ways["reference"] = Way(reference.layer_norm)
    inputs = random((shape, shape[-1:], shape[-1:]), device, dtype)
    size = inputs[0].nbytes / 1e9
    return Case("layer_norm", shape, ways, inputs, 2 * size, 3 * size, "GB/s")


def _add_layer_norm(shape: tuple[int, ...], device: str, dtype: torch.dtype, compiled: bool) -> Case:
    def two_ops(x, residual, weight, bias):
        total = x + residual
        return F.layer_norm(total, weight.shape, weight, bias), total

    ways = {
        "ours": Way(kernels.add_layer_norm),
        "add, F.layer_norm": Way(two_ops),
        **_compiled(two_ops, compiled),
    }
    ways["reference"] = Way(reference.add_layer_norm)
    inputs = random((shape, shape, shape[-1:], shape[-1:]), device, dtype)
    size = inputs[0].nbytes / 1e9
    return Case("add_layer_norm", shape, ways, inputs, 4 * size, 4 * size, "GB/s")


def _compiled(call: Callable, wanted: bool) -> dict[str, Way]:
    """Return torch.compile of a call for static shapes; a kernel for dynamic shapes would be slower."""
    if not wanted:
        return {}
    torch.compiler.reset()  # forget earlier shapes: after too many torch.compile gives up
    # otherwise a backward cannot be repeated over one forward
    torch._functorch.config.donated_buffer = False
    return {"torch.compile": Way(torch.compile(call, dynamic=False))}


def _attention(shape: tuple[int, ...], device: str, dtype: torch.dtype, compiled: bool) -> Case:
    batch, length, heads, width = shape

    def sdpa(q, k, v):
        out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True)
        return out.transpose(1, 2)  # (B, H, T, D) -> (B, T, H, D)

    ways = {"ours": Way(kernels.causal_attention)}
    for name, backend in SDPA_BACKENDS.items():
        ways[name] = Way(sdpa, functools.partial(sdpa_kernel, backend), graphed=backend != SDPBackend.MATH)
    ways["reference"] = Way(reference.causal_attention, graphed=False)
    products = 2 * batch * heads * length * (length + 1) / 2 * width / 1e12  # of one masked product
    inputs = random((shape, shape, shape), device, dtype)
    return Case("causal_attention", shape, ways, inputs, 2 * products, 5 * products, "TFLOP/s")


def random(shapes: Sequence[tuple[int, ...]], device: str, dtype: torch.dtype) -> list[Tensor]:
    """Return tensors of normal numbers that require gradients."""
    return [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes]


def _of_those_that_run(case: Case) -> Case:
    """Return the case with the implementations that this device, dtype and torch support, forward and backward."""
    found = {}
    for name, way in case.ways.items():
        with warnings.catch_warnings():  # SDPA warns why a backend cannot run
            warnings.simplefilter("ignore")
            try:
                results(way, case.inputs)
            except RuntimeError as error:
                print(f"{case.name}: without {name} ({first_line(error)})", file=sys.stderr)
                continue
        found[name] = way
    return dataclasses.replace(case, ways=found)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def results(way: Way, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the outputs and the gradients of the inputs, for upstream gradients that are equal in all calls."""
    with way.around():
        outputs = way.outputs(inputs)
        return [*(x.detach() for x in outputs), *torch.autograd.grad(outputs, inputs, upstream(outputs))]


def upstream(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return a contiguous gradient for each output, the same in every call."""
    generator = torch.Generator(outputs[0].device).manual_seed(1)
    return [torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=generator) for x in outputs]


def disagreements(case: Case) -> dict[str, str]:
    """Return, by name, a message for each result that differs from the reference, or from the first peer without one.

    Includes a message if ours does not run.
    """
    if "ours" not in case.ways:
        return {"ours": f"{case.name}: ours fails"}
    judge = "reference" if "reference" in case.ways else list(case.ways)[1]
    exact = results(case.ways[judge], case.inputs)
    found = {}
    for name, way in case.ways.items():
        for result, wanted in zip(results(way, case.inputs), exact, strict=True):
            error = ((result.float() - wanted.float()).norm() / wanted.float().norm()).item()
            if not error <= TOLERANCE[result.dtype]:  # also NaN
                found.setdefault(name, f"{case.name}: {name} differs from {judge} by {error:.2g}")
    return found
