"""The device and precision that a run computes with: those asked for, or by "auto" the best available."""

import contextlib
import os
import resource
import sys
import time

import torch

import kernels
from common.process import keep_freed_memory
from kernels.dispatch import Kernels
from model import GPTConfig


def choose_device(name: str) -> torch.device:
    """Return the device; `auto` is the first GPU that torch can use, else the CPU. ValueError for a missing one."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return torch.device(accelerator.type if accelerator else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}: choose auto, cpu, cuda, cuda:N or mps") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device {name!r} is not supported: choose auto, cpu, cuda, cuda:N or mps")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if not available[device.type] or (device.index or 0) >= count:
        raise ValueError(
            f"device {name!r} is not available (or this build of torch cannot use it): choose --device cpu or auto"
        )
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype; `auto` is bfloat16 if the hardware multiplies it faster than float32, else float32."""
    if name != "auto":
        return getattr(torch, name)
    return torch.bfloat16 if _fast_bfloat16(device) else torch.float32


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        has = getattr(torch.cpu, "get_capabilities", dict)()
        # Intel's AVX512-BF16 multiplies half as fast as its float32: there only the tiles of AMX are worth it.
        vectors = has.get("avx512_bf16") and not has.get("cpu_name", "").startswith("Intel")
        return bool(vectors or has.get("amx_bf16"))
    return False


def autocast(device: torch.device, precision: torch.dtype) -> contextlib.AbstractContextManager[None]:
    """Return a context for matrix products in `precision` with float32 weights; for float32 it does nothing."""
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, precision)


def choose_kernels(name: Kernels, config: GPTConfig, device: torch.device) -> Kernels:
    """Return which kernels run the model on the device: "torch", "fused" or "emulated".

    ValueError if `name` asks for what cannot be had.
    """
    with kernels.use(name):
        return kernels.runs_on(device.type, config.head_dim)


def set_up(device: torch.device, *, tf32: bool, deterministic: bool) -> None:
    """Set process-wide switches: denormal numbers, memory, TensorFloat-32, deterministic algorithms."""
    if device.type == "cpu":
        # A converged tiny model has gradients of 1e-40, and a CPU is 20 to 50 times slower on such numbers.
        torch.set_flush_denormal(True)
        keep_freed_memory()
        # oneDNN keeps what it compiled for the last 1,024 shapes, a megabyte for some; answers have no end of shapes.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 and has_tf32(device) else "highest")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(deterministic)


def has_tf32(device: torch.device) -> bool:
    """True if the device multiplies in TensorFloat-32: NVIDIA's GPUs since Ampere."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def describe(device: torch.device, precision: torch.dtype, chosen: Kernels, *, tf32: bool) -> str:
    """Return device, precision and kernels in one line.

    >>> describe(torch.device("cpu"), torch.bfloat16, "fused", tf32=True)
    'on cpu in bfloat16 with fused kernels'
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    ops = {"fused": "fused kernels", "torch": "torch's kernels", "emulated": "emulated kernels"}[chosen]
    words = str(precision).removeprefix("torch.")
    if precision == torch.float32 and tf32 and has_tf32(device):
        words = "float32 (TF32 products)"
    if precision == torch.float16:
        words += " with loss scaling"
    return f"on {name} in {words} with {ops}"


def matmul_flops(device: torch.device, precision: torch.dtype) -> float:
    """Return the operations per second of a large matrix product: 100 % of our MFU.

    It is measured, not looked up, so that it means the same on every machine.
    """
    size = 8192 if device.type == "cuda" else 512
    a = torch.ones(size, size, device=device, dtype=precision)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # reading one number waits for a GPU
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory in MB: allocated by torch on a GPU, resident in the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
