"""Times the ops, forward and backward, against the reference and PyTorch's own: µs, and GB/s or TFLOP/s.

All implementations of a case take turns in one process, on random data. Medians are reported, and only for results
that agree with each other. On a GPU each case is measured eagerly and as a CUDA graph (bench_gpu.py), and compared with
the datasheet's rate. On the CPU each measured call follows an unmeasured call of the same implementation, so that it
finds memory and caches as a loop of that call would, not as another implementation left them.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from common import bench, cli, gpus, plots
from common.process import keep_freed_memory
from kernels.workbench import bench_cases, bench_gpu
from kernels.workbench.bench_cases import Case, Turn, Way

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PARTS = ("forward", "backward", "forward + backward")
# Of the ops of a training step other than attention and layer norm, whose goals on a GPU are in `goal`.
CPU_GOALS = {
    ("rms_norm", PARTS[2]): 1.5,
    ("gelu", PARTS[2]): 2.0,
    ("swiglu", PARTS[2]): 2.0,
    ("linear_cross_entropy", PARTS[2]): 1.15,
}
MEMORY_GOALS = {("F.linear, F.cross_entropy", "float32"): 10.0}


@dataclasses.dataclass(frozen=True)
class Options:
    """Time the kernels, forward and backward, against the reference and PyTorch's own ops."""

    device: str = "auto"  # auto | cpu | cuda
    dtype: str = "auto"  # auto: float32 on the CPU, bfloat16 on a GPU | float32 | bfloat16 | float16
    repeat: int = 7  # turns; their median is reported
    only: str = ""  # measure only the ops whose name contains this
    tiny: bool = False  # shapes for a test run, too small for useful times
    compile: bool = False  # add torch.compile as a peer of the norms (compiles for about a minute)
    json: str | None = None  # also write the rows to this file, or into this folder
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
        if self.plot:
            plots.check_path(self.plot)

    @property
    def resolved_device(self) -> str:
        return self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def resolved_dtype(self) -> str:
        default = "bfloat16" if self.resolved_device == "cuda" else "float32"
        return default if self.dtype == "auto" else self.dtype


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; its options are the fields of Options."""
    options = cli.parse(Options, argv, prog="python -m kernels bench")
    # As train.py does: otherwise page faults dominate the times, and on some processors products of denormal numbers.
    keep_freed_memory()
    torch.set_flush_denormal(True)
    with bench_gpu.own_stream(options.resolved_device):
        rows, wrong = measure_all(options)
    if not rows and not wrong:
        raise ValueError(f"no op has {options.only!r} in its name")
    bench.report("kernels", rows, options.json)
    if options.plot:
        plots.draw_ratios(
            {f"{row.name} / {row.peer}": row.ratio for row in rows if row.unit == "µs"}, options.plot
        )
    if wrong:
        raise ValueError(f"not measured, or not all of it: {'; '.join(wrong)}")


def measure_all(options: Options) -> tuple[list[bench.Row], list[str]]:
    """Return rows for the cases where our result is correct, and a message for each case where it is not."""
    device, dtype = options.resolved_device, DTYPES[options.resolved_dtype]
    rows = bench_gpu.ceilings(options.repeat) if device == "cuda" else []
    wrong = []
    for case in bench_cases.cases(device, dtype, options.only, options.compile, options.tiny):
        differs = bench_cases.disagreements(case)
        if "ours" in differs:
            wrong.append(differs["ours"])
        else:
            for message in differs.values():  # a peer's fault costs only its own rows
                print(f"left out: {message}", file=sys.stderr)
            rows += measure(case.without(differs), options)
            if case.op == "linear_cross_entropy" and device == "cpu":
                rows += memory_rows(case.without(differs), options.resolved_dtype)
            if device == "cuda" and not rows[-1].name.endswith("graph"):
                wrong.append(f"{case.name}: ours cannot be captured in a CUDA graph")
        if options.json:  # after each case, so that a later crash or time limit loses nothing
            bench.write("kernels", rows, options.json)
    return rows, wrong


def measure(case: Case, options: Options) -> list[bench.Row]:
    """Return rows for forward, backward and both: times against each peer, and rates against the best one."""
    rows: list[bench.Row] = []
    for part, work in zip(
        PARTS, (case.work, case.backward_work, case.work + case.backward_work), strict=True
    ):
        name = f"{case.name} {options.resolved_dtype} {part}"
        turns = {peer: turn(part, way, case.inputs) for peer, way in case.ways.items()}
        if options.resolved_device == "cpu":
            seconds = bench.medians(turns, repeat=options.repeat, warmup=2, settle=1)
            rows += _rows(case, name, part, work, seconds)
            continue
        rows += _rows(case, name, part, work, bench_gpu.eager_seconds(turns, options.repeat))
        del turns
        seconds = bench_gpu.graph_seconds(_rotating(case, part), options.repeat)
        if "ours" in seconds:
            rows += _rows(case, f"{name}, graph", part, work, seconds)
            rows += _share_of_peak(case, f"{name}, graph", part, work / seconds["ours"])
    return rows


def memory_rows(case: Case, dtype: str) -> list[bench.Row]:
    """Return a row for each peer: the memory of forward and backward besides that of inputs and results."""
    megabytes = {name: temporary_bytes(way, case.inputs) / 1e6 for name, way in case.ways.items()}
    ours, name = megabytes.pop("ours"), f"{case.name} {dtype} memory"
    return [
        bench.Row(name, ours, "MB", peer, value, less_is_better=True, goal=MEMORY_GOALS.get((peer, dtype)))
        for peer, value in megabytes.items()
    ]


def temporary_bytes(way: Way, inputs: Sequence[Tensor]) -> int:
    """Return the most bytes that one call's forward and backward hold at once, without the gradients that they return.

    What other threads than this one allocate is not seen: those of linear_cross_entropy hold one tile each.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen, way.around():
        kept = {x.data_ptr() for x in torch.autograd.grad(way.outputs(inputs)[0], inputs)}
    changes, events = [], list(seen.profiler.kineto_results.experimental_event_tree())
    while events:
        event = events.pop()
        events += event.children
        if event.tag.name == "Allocation":
            changes.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
    changes.sort()
    # An address is used again and again; what is allocated there last is the result.
    results = {address: time for time, address, size in changes if address in kept and size > 0}
    held = [size for time, address, size in changes if results.get(address) != time]
    return max(itertools.accumulate(held), default=0)


def turn(part: str, way: Way, inputs: Sequence[Tensor]) -> Turn:
    """Return a turn of one implementation; a backward alone repeats over one forward."""
    if part == "forward":
        call = torch.no_grad()(lambda: way.call(*inputs))
    else:
        with way.around():
            once = way.outputs(inputs)
        grads = bench_cases.upstream(once)

        def call():
            outputs = once if part == "backward" else way.outputs(inputs)
            return torch.autograd.grad(outputs, inputs, grads, retain_graph=part == "backward")

    return Turn(call, way.around)


def _rotating(case: Case, part: str) -> dict[str, list[Turn]]:
    """Return the turns of a CUDA graph: each implementation that is worth one, on several sets of inputs."""
    count = bench_gpu.rotations(sum(x.nbytes for x in case.inputs))
    sets = [[x.detach().clone().requires_grad_() for x in case.inputs] for _ in range(count)]
    return {
        name: [turn(part, way, inputs) for inputs in sets] for name, way in case.ways.items() if way.graphed
    }


def _rows(case: Case, name: str, part: str, work: float, seconds: dict[str, float]) -> list[bench.Row]:
    """Return rows for our time against each peer in µs, then for our rate against the best peer's."""
    seconds = dict(seconds)
    ours = seconds.pop("ours")
    rows = [
        bench.Row(
            name, ours * 1e6, "µs", peer, value * 1e6, less_is_better=True, goal=_goal(case, part, peer)
        )
        for peer, value in seconds.items()
    ]
    if not seconds:
        return [bench.Row(name, work / ours, case.unit)]
    best = min(seconds, key=seconds.__getitem__)
    goal = _goal(case, part, "best")
    return [*rows, bench.Row(name, work / ours, case.unit, best, work / seconds[best], goal=goal)]


def _share_of_peak(case: Case, name: str, part: str, rate: float) -> list[bench.Row]:
    """Return a row for our rate against this GPU's datasheet; the ratio is the fraction of the peak."""
    sheet = gpus.datasheet(torch.cuda.get_device_name())
    if sheet is None:
        return []
    peak = sheet.memory if case.unit == "GB/s" else sheet.bfloat16
    return [bench.Row(name, rate, case.unit, "datasheet", peak, goal=_goal(case, part, "datasheet"))]


def _goal(case: Case, part: str, peer: str) -> float | None:
    """Return the goal for the ratio of this row, or None; goals are for bfloat16 on a GPU and float32 on a CPU."""
    x = case.inputs[0]
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return CPU_GOALS.get((case.op, part)) if peer == "best" else None
    if x.device.type != "cuda" or x.dtype != torch.bfloat16:
        return None
    return goal(case.op, case.shape, part, peer)


def goal(op: str, shape: tuple[int, ...], part: str, peer: str) -> float | None:
    """Return the goal on an H100, or None; peer "best" is the fastest peer, "datasheet" the peak rate."""
    if op == "causal_attention":
        return _attention_goal(shape, part, peer)
    shares = {384: 0.60, 768: 0.70, 1024: 0.75}
    if (op, part, peer) == ("layer_norm", "forward", "datasheet"):
        return shares.get(shape[-1])
    goals = {
        ("layer_norm", "forward"): 1.2,
        ("layer_norm", "backward"): 1.4,
        ("add_layer_norm", "forward + backward"): 1.5,
    }
    return goals.get((op, part)) if peer == "best" else None


def _attention_goal(shape: tuple[int, ...], part: str, peer: str) -> float | None:
    short, width = shape[1] <= 128, shape[3]
    if peer == "SDPA cuDNN" and part in ("forward", "backward") and not short and width == 64:
        return 0.8
    goals = {"forward": 1.2, "backward": 1.5} if short else {"forward": 1.0, "backward": 0.9}
    return goals.get(part) if peer == "SDPA flash" else None


def goals() -> Iterator[tuple[str, str, float]]:
    """Yield the row name, peer and ratio of each goal on a GPU."""
    for op in ("layer_norm", "add_layer_norm", "causal_attention"):
        shapes = bench_cases.shapes(op)
        for shape in shapes["cuda"]:
            for part in PARTS:
                for peer in ("best", "datasheet", *bench_cases.SDPA_BACKENDS):
                    wanted = goal(op, shape, part, peer)
                    if wanted:
                        yield f"{op} {shape} bfloat16 {part}", peer, wanted
