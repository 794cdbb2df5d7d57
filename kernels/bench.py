"""Times of the ops, forward and backward, beside the reference and PyTorch's own: µs, and GB/s or TFLOP/s.

All calls of a case take turns in one process, on random data; the medians are reported. On a GPU, device
events measure and the L2 cache is flushed before each call. On the CPU each measured call follows one of its
own kind, so that it finds the memory and the caches that a loop of it would, not what another call left.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels
from common import bench, cli
from common.memory import keep_freed_memory
from kernels import reference

NORM_SHAPES = {"cpu": [(16384, 384)], "cuda": [(32768, 384), (32768, 768), (32768, 1024)]}
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
}
SDPA_BACKENDS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA math": SDPBackend.MATH,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
L2_BYTES = 256 << 20  # more than the L2 cache of any GPU


@dataclasses.dataclass(frozen=True)
class Options:
    """Times the kernels, forward and backward, beside the reference and PyTorch's own ops."""

    device: str = "auto"  # auto | cpu | cuda
    dtype: str = "auto"  # auto: float32 on the CPU, bfloat16 on a GPU | float32 | bfloat16 | float16
    repeat: int = 7  # turns; their median is reported
    only: str = ""  # measure only the ops whose name contains this
    compile: bool = False  # torch.compile as one more peer (compiles for a minute or so)
    json: str | None = None  # also write the rows to this file
    plot: str | None = None  # also draw the ratios into this image file

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device is {self.device!r}: choose auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is cuda, but torch sees no NVIDIA GPU: choose cpu")
        if self.dtype != "auto" and self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}: choose auto, {', '.join(DTYPES)}")
        if self.repeat < 1:
            raise ValueError(f"repeat is {self.repeat}: it must be at least 1")

    @property
    def resolved_device(self) -> str:
        return self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def resolved_dtype(self) -> str:
        default = "bfloat16" if self.resolved_device == "cuda" else "float32"
        return default if self.dtype == "auto" else self.dtype


@dataclasses.dataclass(frozen=True)
class Case:
    """One op at one shape: its implementations by name, ours among them, their inputs and the work to do."""

    name: str
    calls: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]]
    inputs: list[Tensor]
    work: float  # bytes or floating point operations of the forward
    backward_work: float
    unit: str  # of the work per second: GB/s or TFLOP/s


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; its options are the fields of Options."""
    options = cli.parse(Options, argv, prog="python -m kernels bench")
    keep_freed_memory()  # as train.py does: else the times are those of page faults
    rows = [row for case in cases(options) for row in measure(case, options)]
    if not rows:
        raise ValueError(f"no op has {options.only!r} in its name")
    bench.report("kernels", rows, options.json)
    if options.plot:
        plot(rows, options.plot)


def cases(options: Options) -> Iterator[Case]:
    """All cases for the device, each with the peers that run there."""
    device, dtype = options.resolved_device, DTYPES[options.resolved_dtype]
    makers = {"add_layer_norm": _add_layer_norm, "layer_norm": _layer_norm, "causal_attention": _attention}
    for op, make in makers.items():
        if options.only not in op:
            continue
        for shape in (ATTENTION_SHAPES if op == "causal_attention" else NORM_SHAPES)[device]:
            case = make(shape, device, dtype)
            yield dataclasses.replace(case, calls=_that_run(case, options))


def _layer_norm(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Case:
    x, weight, bias = _random((shape, shape[-1:], shape[-1:]), device, dtype)
    calls = {
        "ours": kernels.layer_norm,
        "F.layer_norm": lambda x, w, b: F.layer_norm(x, w.shape, w, b),
        "reference": reference.layer_norm,
    }
    size = x.nbytes / 1e9
    return Case(f"layer_norm {shape}", calls, [x, weight, bias], 2 * size, 3 * size, "GB/s")


def _add_layer_norm(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Case:
    x, residual, weight, bias = _random((shape, shape, shape[-1:], shape[-1:]), device, dtype)

    def two_ops(x, residual, weight, bias):
        total = x + residual
        return F.layer_norm(total, weight.shape, weight, bias), total

    calls = {
        "ours": kernels.add_layer_norm,
        "add, F.layer_norm": two_ops,
        "reference": reference.add_layer_norm,
    }
    size = x.nbytes / 1e9
    return Case(f"add_layer_norm {shape}", calls, [x, residual, weight, bias], 4 * size, 4 * size, "GB/s")


def _attention(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Case:
    batch, length, heads, width = shape

    def sdpa(backend: SDPBackend) -> Callable[..., Tensor]:
        def call(q, k, v):
            with sdpa_kernel(backend):
                out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True)
            return out.transpose(1, 2)  # (B, H, T, D) -> (B, T, H, D)

        return call

    calls = {"ours": kernels.causal_attention, **{name: sdpa(which) for name, which in SDPA_BACKENDS.items()}}
    products = 2 * batch * heads * length * (length + 1) / 2 * width / 1e12  # of one masked product
    calls["reference"] = reference.causal_attention
    inputs = _random((shape, shape, shape), device, dtype)
    return Case(f"causal_attention {shape}", calls, inputs, 2 * products, 5 * products, "TFLOP/s")


def _random(shapes: Sequence[tuple[int, ...]], device: str, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes]


def _that_run(case: Case, options: Options) -> dict[str, Callable]:
    """The calls of a case that this device, dtype and torch can do; with torch.compile if asked for."""
    calls = dict(case.calls)
    if options.compile:
        calls["torch.compile"] = torch.compile(case.calls["reference"])
    found = {}
    for name, call in calls.items():
        with warnings.catch_warnings():  # SDPA warns why a backend cannot run
            warnings.simplefilter("ignore")
            try:
                call(*case.inputs)
            except RuntimeError:
                if name == "ours":
                    raise
                continue
        found[name] = call
    return found


def measure(case: Case, options: Options) -> list[bench.Row]:
    """Rows for forward, backward and both: ours beside every peer, and rates beside the best peer's."""
    rows: list[bench.Row] = []
    both = case.work + case.backward_work
    for part, work in (
        ("forward", case.work),
        ("backward", case.backward_work),
        ("forward + backward", both),
    ):
        calls = {name: _timed(part, call, case.inputs) for name, call in case.calls.items()}
        seconds = _medians(calls, options)
        ours, name = seconds.pop("ours"), f"{case.name} {options.resolved_dtype} {part}"
        for peer, value in seconds.items():
            rows.append(bench.Row(name, ours * 1e6, "µs", peer, value * 1e6, less_is_better=True))
        best = min(seconds, key=seconds.__getitem__)
        rows.append(bench.Row(name, work / ours, case.unit, best, work / seconds[best]))
    return rows


def _timed(part: str, call: Callable, inputs: list[Tensor]) -> Callable[[], object]:
    """What one turn does; a backward alone runs again and again over one forward."""

    def outputs() -> tuple[Tensor, ...]:
        found = call(*inputs)
        return found if isinstance(found, tuple) else (found,)

    if part == "forward":
        return torch.no_grad()(lambda: call(*inputs))
    grads = [torch.randn_like(out) for out in outputs()]
    if part == "forward + backward":
        return lambda: torch.autograd.grad(outputs(), inputs, grads)
    once = outputs()
    return lambda: torch.autograd.grad(once, inputs, grads, retain_graph=True)


def _medians(calls: dict[str, Callable[[], object]], options: Options) -> dict[str, float]:
    """Median seconds of each call; the calls take turns."""
    if options.resolved_device == "cpu":
        return bench.medians(calls, repeat=options.repeat, warmup=2, settle=1)
    flush = torch.empty(L2_BYTES, dtype=torch.int8, device="cuda")
    for call in calls.values():
        for _ in range(3):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.repeat):
        for name, call in calls.items():
            flush.zero_()
            times[name].append(_event_seconds(call))
    return {name: sorted(values)[len(values) // 2] for name, values in times.items()}


def _event_seconds(call: Callable[[], object]) -> float:
    """Seconds of one call on the GPU, between two events on its stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def plot(rows: list[bench.Row], path: str) -> None:
    """Bars of how many times faster ours is, one for each op, part and peer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = [(f"{row.name} / {row.peer}", row.ratio) for row in rows if row.unit == "µs"]
    labels, ratios = zip(*reversed(bars), strict=True)
    figure, axes = pyplot.subplots(figsize=(10, 1 + 0.25 * len(bars)), layout="constrained")
    axes.barh(labels, ratios)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("peer's time / ours (right of 1: ours is faster)")
    figure.savefig(path)
    pyplot.close(figure)
