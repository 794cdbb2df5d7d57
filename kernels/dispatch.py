"""Which implementation of the ops runs: "fused" (C++, CUDA), "emulated" (CUDA on the CPU) or "torch".

"fused" is the default; SLM_KERNELS in the environment, `set_default` and `use` change it. Where the fused
kernels are not built for a device, torch runs in their place, which is said once on stderr.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator

import torch

from kernels import toolchain

NAMES = ("torch", "fused", "emulated")
AVAILABLE = "available"


def _load(module: str) -> tuple[object | None, str]:
    """An extension module, or None and why it is not there."""
    try:
        return importlib.import_module(f"kernels.{module}"), AVAILABLE
    except ModuleNotFoundError:
        if toolchain.compiler() is None:
            return None, "no C++ compiler was found: install g++ or set CXX, then run make setup"
        return None, "not built: run make setup, or python setup.py build_ext --inplace"
    except ImportError as error:  # built for another torch or Python
        return None, f"built, but it does not load ({error}): build it again with make setup"


_fused, _fused_state = _load("_C")
_emulated, _emulated_state = _load("_emulated")


def _cuda_state() -> str:
    if _fused is None:
        return _fused_state
    if not _fused.CUDA_ARCHITECTURES:
        return f"not built: {toolchain.cuda_obstacle() or 'run make setup again'}"
    return AVAILABLE if torch.cuda.is_available() else "built, but torch sees no NVIDIA GPU"


_STATES = {"cpu": _fused_state, "cuda": _cuda_state(), "emulated": _emulated_state}
# The op libraries by (choice, device type); a pair that is missing runs on torch.
_LIBRARIES = {("fused", device): torch.ops.slm for device in ("cpu", "cuda") if _STATES[device] == AVAILABLE}
if _fused is not None:
    _LIBRARIES["fused", "meta"] = torch.ops.slm  # shapes alone
if _emulated is not None:
    _LIBRARIES["emulated", "meta"] = torch.ops.slm_emulated
    _LIBRARIES["emulated", "cpu"] = torch.ops.slm_emulated

_said: set[str] = set()


def _validated(name: str) -> str:
    if name not in NAMES:
        raise ValueError(f"no kernels are called {name!r}: choose one of {', '.join(NAMES)}")
    if name == "emulated" and _emulated is None:
        raise ValueError(f"the emulated kernels are not available: {_emulated_state}")
    return name


_choice = _validated(os.environ.get("SLM_KERNELS", "fused"))


def backends() -> dict[str, str]:
    """For "cpu", "cuda" and "emulated": "available", or why not and how to mend it."""
    return dict(_STATES)


def set_default(name: str) -> None:
    """Chooses "fused", "torch" or "emulated" for the rest of the process. ValueError for another name."""
    global _choice
    _choice = _validated(name)


@contextlib.contextmanager
def use(name: str) -> Iterator[None]:
    """Chooses "fused", "torch" or "emulated" inside a with block, for all threads.

    A backward pass uses the kernels of its forward, wherever it is called.

    >>> with use("torch"):
    ...     pass
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


def runs_on(device_type: str) -> str:
    """What the ops will use on a device of this type: "fused", "emulated" or "torch"."""
    return _choice if (_choice, device_type) in _LIBRARIES else "torch"


def library(device_type: str):
    """The op library for tensors on a device of this type, or None where torch's own ops are to run."""
    found = _LIBRARIES.get((_choice, device_type))
    if found is None and _choice != "torch" and not torch.compiler.is_compiling():
        _say_once(device_type)
    return found


def _say_once(device_type: str) -> None:
    if _choice == "emulated":
        raise ValueError(f"the emulated kernels take CPU tensors, not {device_type}: move them with .cpu()")
    if device_type not in _said:
        _said.add(device_type)
        reason = _STATES.get(device_type, "there are none for it")
        print(
            f"kernels: torch runs in place of the fused kernels on {device_type} ({reason})", file=sys.stderr
        )
