"""What all kernel tests share: the backends that are here, the cases for each, and how errors are judged."""

import dataclasses

import pytest
import torch
from torch import Tensor

import kernels

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, *HALVES)


@dataclasses.dataclass(frozen=True)
class Backend:
    """An implementation of the ops: what to pass to kernels.use, and where its tensors lie."""

    choice: str
    device: str

    def __str__(self) -> str:
        return self.choice if self.choice == "emulated" else f"{self.choice}-{self.device}"


def present_backends() -> list[Backend]:
    """Torch always; the fused and the emulated kernels where they are built (and there is a GPU for them)."""
    state = kernels.backends()
    found = [Backend("torch", "cpu")]
    found += [Backend("fused", device) for device in ("cpu", "cuda") if state[device] == "available"]
    return found + [Backend("emulated", "cpu")] * (state["emulated"] == "available")


BACKENDS = present_backends()


@dataclasses.dataclass(frozen=True)
class NormCase:
    """x of shape (..., C): "contiguous", "sliced" out of wider rows, or "transposed", rows not in order."""

    shape: tuple[int, ...]
    layout: str = "contiguous"
    offset: float = 0.0  # mean of the values
    spread: float = 1.0  # their standard deviation
    bias: bool = True

    def __str__(self) -> str:
        extra = f"-mean{self.offset:g}-std{self.spread:g}" if (self.offset, self.spread) != (0, 1) else ""
        return "x".join(map(str, self.shape)) + f"-{self.layout}{extra}{'' if self.bias else '-nobias'}"


NORM_CASES = [
    *(NormCase((5, channels)) for channels in (1, 7, 48, 384, 768, 1024, 1025)),
    NormCase((3, 4096)),
    NormCase((2, 3, 48), "sliced"),
    NormCase((2, 3, 384), "sliced"),
    NormCase((3, 17, 48), "transposed"),
    NormCase((300, 48)),
    NormCase((7, 48), bias=False),
    NormCase((7, 384), offset=100.0),
    NormCase((3, 1025), offset=-100.0),
    NormCase((3, 4096), offset=1000.0),
    NormCase((7, 48), spread=1e-6),
    NormCase((4, 48), offset=3.0, spread=0.0),
    NormCase((0, 48)),
    NormCase((2, 0, 384)),
    NormCase((48,)),
]


@dataclasses.dataclass(frozen=True)
class AttentionCase:
    """q: (B, T, H, D), k and v with Hkv heads, in one of the layouts that `attention_inputs` makes."""

    batch: int
    length: int
    heads: int
    width: int
    kv_heads: int | None = None
    layout: str = "contiguous"
    window: int | None = None
    dropout_p: float = 0.0
    scale: float | None = None
    spread: float = 1.0  # standard deviation of q and k

    def __str__(self) -> str:
        shape = f"B{self.batch}-T{self.length}-H{self.heads}-D{self.width}"
        named = {"kv": self.kv_heads, "w": self.window, "p": self.dropout_p or None, "std": self.spread}
        extra = "".join(
            f"-{name}{value:g}" for name, value in named.items() if value and (name, value) != ("std", 1)
        )
        return f"{shape}-{self.layout}{extra}" + ("-scaled" if self.scale else "")

    @property
    def options(self) -> dict:
        seed = 12345678901 if self.dropout_p else None
        return {"scale": self.scale, "window": self.window, "dropout_p": self.dropout_p, "seed": seed}


ATTENTION_CASES = [
    *(AttentionCase(1, length, 2, 16) for length in (1, 2, 15, 16, 17, 63, 64, 65, 97)),
    *(AttentionCase(1, length, 1, 64) for length in (127, 128, 129, 257, 1023)),
    *(AttentionCase(2, 65, 1, width) for width in (1, 32, 40, 64, 80, 96, 128)),
    AttentionCase(2, 33, 3, 16, layout="transposed"),
    AttentionCase(2, 33, 3, 40, layout="packed"),
    AttentionCase(2, 65, 2, 64, layout="packed"),
    AttentionCase(2, 33, 2, 24, layout="sliced"),
    AttentionCase(2, 65, 6, 16, kv_heads=2),
    AttentionCase(1, 33, 4, 32, kv_heads=1, layout="transposed"),
    *(AttentionCase(1, 129, 1, 32, window=window) for window in (1, 5, 64, 100, 500)),
    AttentionCase(2, 97, 2, 32, dropout_p=0.3),
    AttentionCase(2, 65, 2, 16, kv_heads=1, dropout_p=0.1, window=20),
    AttentionCase(1, 33, 1, 16, dropout_p=0.99),
    AttentionCase(1, 65, 2, 16, scale=0.5),
    AttentionCase(1, 65, 2, 16, spread=0.0),
    AttentionCase(1, 65, 1, 16, spread=50.0),  # scores up to 1e4 and more
    AttentionCase(1, 200, 1, 64, spread=60.0),
    AttentionCase(1, 140, 2, 64, spread=0.0),
    AttentionCase(0, 8, 2, 16),
    AttentionCase(2, 0, 2, 16),
]
LONG_ATTENTION_CASES = [
    AttentionCase(1, 1023, 2, 128, kv_heads=1, window=300),
    AttentionCase(2, 513, 3, 80, layout="packed", dropout_p=0.2),
]
# More than 128 tokens, where deterministic=False adds up dq atomically: ragged, grouped, masked, in every width.
UNORDERED_CASES = [
    AttentionCase(1, 200, 2, 64),
    AttentionCase(1, 129, 4, 40, kv_heads=2, dropout_p=0.2),
    AttentionCase(2, 191, 1, 96, window=70),
    AttentionCase(1, 130, 2, 128, layout="packed"),
    AttentionCase(1, 65, 2, 16),
]


def by(values: list) -> dict:
    """What parametrize takes for a list of backends, cases or dtypes."""
    return {"argvalues": values, "ids": [str(value).removeprefix("torch.") for value in values]}


each_backend = pytest.mark.parametrize("backend", **by(BACKENDS))
each_fused = pytest.mark.parametrize("backend", **by([b for b in BACKENDS if b.choice != "torch"]))
each_dtype = pytest.mark.parametrize("dtype", **by(DTYPES))


def randn(*shape: int, seed: int = 0, dtype=torch.float64, device="cpu") -> Tensor:
    """Normal numbers that depend on the shape and the seed alone, rounded to dtype."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(device, dtype)


def norm_inputs(case: NormCase, dtype, device, seed: int = 0) -> Tensor:
    """x of the case's shape, values and strides."""
    *rows, channels = case.shape
    if case.layout == "sliced":
        return (randn(*rows, channels + 5, seed=seed) * case.spread + case.offset).to(device, dtype)[
            ..., 2:-3
        ]
    if case.layout == "transposed":
        first, second = rows
        return (randn(second, first, channels, seed=seed)).to(device, dtype).transpose(0, 1)
    return (randn(*case.shape, seed=seed) * case.spread + case.offset).to(device, dtype)


def attention_inputs(case: AttentionCase, dtype, device) -> list[Tensor]:
    """q, k, v of the case's shapes and strides."""
    batch, length, width = case.batch, case.length, case.width
    heads = (case.heads, case.kv_heads or case.heads, case.kv_heads or case.heads)
    spread = (case.spread, case.spread, 1.0)
    if case.layout == "packed":
        return list(randn(batch, length, 3, case.heads, width, dtype=dtype, device=device).unbind(2))
    if case.layout == "transposed":  # (B, H, T, D) in memory
        made = [randn(batch, h, length, width, seed=i).transpose(1, 2) for i, h in enumerate(heads)]
    elif case.layout == "sliced":  # rows wider than D
        made = [randn(batch, length, h, width + 3, seed=i) for i, h in enumerate(heads)]
    else:
        made = [randn(batch, length, h, width, seed=i) for i, h in enumerate(heads)]
    made = [(x * s).to(device, dtype) for x, s in zip(made, spread, strict=True)]
    return [x[..., 1:-2] for x in made] if case.layout == "sliced" else made


def gradients(outputs: tuple[Tensor, ...], grads: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The gradients of all inputs."""
    return list(torch.autograd.grad(outputs, inputs, grads))


def require_grad(tensors) -> list[Tensor]:
    """The same values as leaves with gradients; strides are kept."""
    return [x.detach().requires_grad_() for x in tensors]


def to_exact(tensors) -> list[Tensor]:
    """float64 copies on the CPU, for the reference."""
    return [x.detach().cpu().double().requires_grad_() for x in tensors]


def assert_as_exact_as(ours: Tensor, torchs: Tensor, exact: Tensor, factor: float, size: float = 0.0) -> None:
    """Our largest error is at most `factor` times that of torch's own op, plus one unit in the last place.

    The unit is that of the largest exact value, or of `size`, where larger terms cancel to the values. A NaN
    or an infinity where the exact value is finite never passes.
    """
    assert ours.shape == exact.shape and ours.dtype == torchs.dtype
    if not exact.numel():
        return
    assert exact.isfinite().all(), "the case itself is broken: its exact result is not finite"
    assert ours.isfinite().all(), "not finite"
    error, torch_error = ((x.detach().cpu().double() - exact).abs().max().item() for x in (ours, torchs))
    floor = torch.finfo(ours.dtype).eps * max(size, exact.abs().max().item())
    assert error <= factor * torch_error + floor, (
        f"error {error:.3g}, torch's own {torch_error:.3g}, floor {floor:.3g}"
    )
