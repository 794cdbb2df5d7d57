"""Which implementation of the ops runs. Four words, the same here, at every --kernels and in SLM_KERNELS:

    torch      PyTorch's own ops: F.layer_norm, scaled_dot_product_attention
    fused      ours: C++ on the CPU, CUDA on a GPU
    emulated   our CUDA on the CPU, thread by thread
    auto       what SLM_KERNELS says, or else fused where it is built for the device, else torch

`use` and `set_default` choose. What is chosen by name and cannot be had is a ValueError; that auto takes torch because
nothing is built is said once on stderr.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Literal, get_args

import torch

from kernels import toolchain
from kernels.checks import MAX_HEAD_DIM

Kernels = Literal["auto", "torch", "fused", "emulated"]
NAMES = get_args(Kernels)
AVAILABLE = "available"


def _load(module: str) -> tuple[object | None, str]:
    """Return an extension module, or None and why it is not there."""
    try:
        return importlib.import_module(f"kernels.{module}"), AVAILABLE
    except ModuleNotFoundError:
        if toolchain.compiler() is None:
            return None, f"{toolchain.NO_COMPILER}, then run make setup"
        return None, "not built: run make setup, or python setup.py build_ext --inplace"
    except ImportError as error:  # built for another torch or Python
        return None, f"built, but it does not load ({error}): build it again with make setup"


_fused, _fused_state = _load("_C")
_emulated, _emulated_state = _load("_emulated")


def _cuda_state() -> str:
    if _fused is None:
        return _fused_state
    built_for = _fused.CUDA_ARCHITECTURES.split()
    if not built_for:
        return f"not built: {toolchain.cuda_obstacle() or 'run make setup again'}"
    if not torch.cuda.is_available():
        return "built, but torch sees no NVIDIA GPU"
    capability = torch.cuda.get_device_capability()
    if not any(_has_code_for(capability, code) for code in built_for):
        name = "{}.{}".format(*capability)
        return f"built for {' '.join(built_for)}, not for this GPU: set TORCH_CUDA_ARCH_LIST={name}, run make setup"
    return AVAILABLE


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


_STATES = {"cpu": _fused_state, "cuda": _cuda_state(), "emulated": _emulated_state}
# The op libraries by (choice, device type); a pair that is missing runs on torch.
_LIBRARIES = {("fused", device): torch.ops.slm for device in ("cpu", "cuda") if _STATES[device] == AVAILABLE}
if _emulated is not None:
    _LIBRARIES["emulated", "cpu"] = torch.ops.slm_emulated

_ENVIRONMENT = os.environ.get("SLM_KERNELS") or "auto"
_choice = "auto"
_said: set[str] = set()


def backends() -> dict[str, str]:
    """For "cpu", "cuda" and "emulated": "available", or why not and how to mend it."""
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
    """The extension modules by name, each None where it is not loaded, and "available" or why it is not."""
    return {"kernels._C": (_fused, _fused_state), "kernels._emulated": (_emulated, _emulated_state)}


def libraries() -> list[str]:
    """The names of the op libraries that are loaded, such as ["slm"]."""
    return [name for name, module in (("slm", _fused), ("slm_emulated", _emulated)) if module is not None]


def runs_on(device_type: str, head_dim: int = 1) -> str:
    """Return what computes on a device of this type, attention with heads of `head_dim`: "fused", "emulated", "torch".

    ValueError if that was chosen by name and cannot be had.
    """
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
