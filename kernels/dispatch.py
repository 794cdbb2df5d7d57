"""Decides which implementation of the ops runs, and makes each op known to torch.

Four words, the same here, at every --kernels and in SLM_KERNELS:

    torch      PyTorch's own ops: F.layer_norm, scaled_dot_product_attention
    fused      ours: C++ on the CPU, CUDA on a GPU
    emulated   our CUDA on the CPU, thread by thread
    auto       what SLM_KERNELS says, or else fused where it is built for the device, else torch

`use` and `set_default` choose. What is chosen by name and cannot be had is a ValueError; that auto takes torch because
nothing is built is said once on stderr. `register` gives an op its shapes for tracing and its derivative.
"""

import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

from kernels.checks import MAX_HEAD_DIM

Kernels = Literal["auto", "torch", "fused", "emulated"]
NAMES = get_args(Kernels)
AVAILABLE = "available"


def _load(module: str) -> tuple[object | None, str]:
    """Return an extension module, or None and why it is not there."""
    try:
        return importlib.import_module(f"kernels.{module}"), AVAILABLE
    except ModuleNotFoundError:
        return None, "not built: run make setup, or python setup.py build_ext --inplace, with a C++ compiler"
    except ImportError as error:  # built for another torch or Python
        return None, f"built, but it does not load ({error}): build it again with make setup"


_fused, _fused_state = _load("_C")
_emulated, _emulated_state = _load("_emulated")


def _cuda_state() -> str:
    if _fused is None:
        return _fused_state
    built_for = _fused.CUDA_ARCHITECTURES.split()
    if not built_for:
        obstacle = getattr(_fused, "CUDA_OBSTACLE", "the extension is older than this code: remove it")
        return f"not built: {obstacle}, and run make setup again"
    return AVAILABLE if torch.cuda.is_available() else "built, but torch sees no NVIDIA GPU"


def _has_code_for(capability: tuple[int, int], code: str) -> bool:
    """True if a GPU of this capability runs `code`: that of its major version, or any PTX that is not newer.

    An a at the end stands for one GPU alone, an f for its family.

    >>> [_has_code_for((9, 0), code) for code in ("sm_80", "compute_80", "sm_90", "sm_90a", "sm_100")]
    [False, True, True, True, False]
    """
    kind, version = code.split("_")
    built = divmod(int(version.rstrip("af")), 10)
    if version.endswith("a"):
        return built == capability
    same_family = built[0] == capability[0] and built <= capability
    return same_family or (kind == "compute" and not version.endswith("f") and built <= capability)


class Library:
    """The ops of torch.ops.slm or torch.ops.slm_emulated; those with a derivative take the short way to autograd."""

    def __init__(self, name: str) -> None:
        self.ops = getattr(torch.ops, name)

    def __getattr__(self, op: str) -> Any:
        return getattr(self.ops, op)


_STATES = {"cpu": _fused_state, "cuda": _cuda_state(), "emulated": _emulated_state}
_LOADED = {
    name: Library(name)
    for name, module in (("slm", _fused), ("slm_emulated", _emulated))
    if module is not None
}
# The op libraries by (choice, device type); a pair that is missing runs on torch.
_LIBRARIES = {("fused", device): _LOADED["slm"] for device in ("cpu", "cuda") if _STATES[device] == AVAILABLE}
if _fused is not None:
    _LIBRARIES["fused", "meta"] = _LOADED["slm"]  # shapes alone
if _emulated is not None:
    _LIBRARIES["emulated", "meta"] = _LIBRARIES["emulated", "cpu"] = _LOADED["slm_emulated"]

_ENVIRONMENT = os.environ.get("SLM_KERNELS") or "auto"
_choice = "auto"
_said: set[str] = set()
_is_gpu_checked = False


def _check_gpu() -> None:
    """Withdraw the CUDA kernels if the extension holds no code for this GPU.

    Done when they are first asked for, not at import: it creates a CUDA context, after which no process can be forked.
    """
    global _is_gpu_checked
    _is_gpu_checked = True
    if _STATES["cuda"] != AVAILABLE:
        return
    built_for, capability = _fused.CUDA_ARCHITECTURES, torch.cuda.get_device_capability()
    if not any(_has_code_for(capability, code) for code in built_for.split()):
        name = "{}.{}".format(*capability)
        fix = f"set TORCH_CUDA_ARCH_LIST={name} and run make setup"
        _STATES["cuda"] = f"built for {built_for}, not for this GPU, which is {name}: {fix}"
        _LIBRARIES.pop(("fused", "cuda"), None)


def backends() -> dict[str, str]:
    """Return for "cpu", "cuda" and "emulated": "available", or why not and how to fix it."""
    if not _is_gpu_checked:
        _check_gpu()
    return dict(_STATES)


def set_default(name: str) -> None:
    """Choose the kernels for the rest of the process; ValueError for another name, or an emulator that is not built."""
    global _choice
    if name not in NAMES:
        raise ValueError(f"no kernels are called {name!r}: choose one of {', '.join(NAMES)}")
    if name == "emulated" and _emulated is None:
        raise ValueError(f"the emulated kernels are not available: {_emulated_state}")
    _choice = name


@contextlib.contextmanager
def use(name: str) -> Iterator[None]:
    """Choose the kernels inside a with block, for all threads.

    A backward pass uses the kernels of its forward, wherever it is called.

    >>> with use("torch"):
    ...     runs_on("cpu")
    'torch'
    """
    before = _choice
    set_default(name)
    try:
        yield
    finally:
        set_default(before)


def modules() -> dict[str, tuple[object | None, str]]:
    """Return the extension modules by name, each with "available", or None with why it is not loaded."""
    return {"kernels._C": (_fused, _fused_state), "kernels._emulated": (_emulated, _emulated_state)}


def libraries() -> list[str]:
    """Return the names of the op libraries that are loaded, such as ["slm"]."""
    return list(_LOADED)


def runs_on(device_type: str, head_dim: int = 1) -> str:
    """Return what computes on a device of this type, attention with heads of `head_dim`: "fused", "emulated", "torch".

    ValueError if that was chosen by name and cannot be had.
    """
    if device_type == "cuda" and not _is_gpu_checked and not torch.compiler.is_compiling():
        _check_gpu()
    name = _ENVIRONMENT if _choice == "auto" else _choice
    possible = ("fused" if name == "auto" else name, device_type) in _LIBRARIES and head_dim <= MAX_HEAD_DIM
    if name == "auto":
        return "fused" if possible else "torch"
    if name != "torch" and not possible:
        raise ValueError(_refusal(name, device_type, head_dim))
    return name


def _refusal(name: str, device_type: str, head_dim: int) -> str:
    """Return why the kernels that were chosen cannot run there."""
    if name not in NAMES:
        return f"SLM_KERNELS is {name!r}: choose one of {', '.join(NAMES)}"
    if head_dim > MAX_HEAD_DIM:
        return f"the {name} kernels take heads of at most {MAX_HEAD_DIM} numbers, not {head_dim}: choose auto or torch"
    if name == "fused":
        reason = _STATES.get(device_type, "there are none for this kind of device")
        return f"the fused kernels are not there on {device_type}: {reason}; or choose auto or torch"
    if _emulated is None:
        return f"the emulated kernels are not available: {_emulated_state}"
    return f"the emulated kernels take CPU tensors, not {device_type}: choose --device cpu, or move them with .cpu()"


def library(device_type: str):
    """Return the op library for tensors on a device of this type, or None if torch's own ops are to run."""
    name = runs_on(device_type)
    if name != "torch":
        return _LIBRARIES[name, device_type]
    if "torch" not in (_choice, _ENVIRONMENT) and not torch.compiler.is_compiling():
        _say_once(device_type)
    return None


def _say_once(device_type: str) -> None:
    if device_type not in _said:
        _said.add(device_type)
        reason = _STATES.get(device_type, "there are none for it")
        print(
            f"kernels: torch runs in place of the fused kernels on {device_type} ({reason})", file=sys.stderr
        )


Context = Any  # torch's autograd context
# (library, context, gradients of the results) -> gradients of the inputs
Gradients = Callable[..., tuple[Tensor | None, ...]]


def has_op(op: str, library: str = "slm") -> bool:
    """True if a library has the op; one that was built from older sources may not (`doctor` says so)."""
    return hasattr(getattr(torch.ops, library), op)


def register(
    op: str, fake: Callable, save: Callable | None = None, gradients: Gradients | None = None
) -> None:
    """Register an op of every library that is loaded; `save` and `gradients` only if it has a derivative.

    `fake` takes the op's arguments and returns empty results of the right shapes. `save(ctx, inputs, output)` keeps
    what `gradients(library, ctx, *grads)` needs. Nothing happens for a library that has no such op: see `has_op`.
    """
    for name in libraries():
        if not has_op(op, name):
            continue
        torch.library.register_fake(f"{name}::{op}", fake)
        if gradients is not None:
            ops = _LOADED[name].ops
            derivative = functools.partial(gradients, ops)
            torch.library.register_autograd(f"{name}::{op}", derivative, setup_context=save)
            setattr(_LOADED[name], op, _short_way(getattr(ops, op), save, derivative))


def _short_way(op: Any, save: Callable, derivative: Callable) -> Callable:
    """Return a call of the op that goes from Python into autograd and then to the kernel.

    The op's own way, which transforms and torch.compile need, goes through the dispatcher to the autograd that is
    registered for it, so back into Python, and through the dispatcher again. That makes the forward and backward of a
    small op half as long again.
    """
    defaults = [argument.default_value for argument in op.default._schema.arguments]

    def forward(ctx: Context, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = op.default(*inputs)
        save(ctx=ctx, inputs=inputs, output=output)
        return output

    functions = {"forward": staticmethod(forward), "backward": staticmethod(derivative)}
    short_way = type(op._qualified_op_name.replace("::", "_"), (torch.autograd.Function,), functions)

    def call(*inputs: Any) -> Any:
        transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        if transformed or not torch.is_grad_enabled():
            return op(*inputs)
        return short_way.apply(*inputs, *defaults[len(inputs) :])

    return call


def keep(ctx: Context, *tensors: Tensor | None, without_gradient: tuple[Tensor, ...] = ()) -> None:
    """Save tensors for the backward pass; missing gradients then arrive as None, not as zeros."""
    ctx.save_for_backward(*tensors)
    ctx.mark_non_differentiable(*without_gradient)
    ctx.set_materialize_grads(False)


def autocast(dtype: torch.dtype | None, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the tensors in `dtype` (None: autocast's own) if autocast is on; float64 stays, as in torch."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = dtype or torch.get_autocast_dtype(device)
    return tuple(x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def statistics(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums and statistics: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def has_tangent(*tensors: Tensor | None) -> bool:
    """True if a forward-mode derivative with respect to any of them is being taken."""
    if forward_ad._current_level < 0:
        return False
    return any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors)
