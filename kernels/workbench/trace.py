"""Shows what each lane of a CUDA kernel loads, stores, shuffles and holds in fragments, on the emulator.

    python -m kernels trace causal_attention --shape 1x32x1x32:bfloat16 --line fragments.cuh:247 --thread 0..3
    python -m kernels trace FILE.cu PROGRAM --shape 16x64:bfloat16 64x8:bfloat16 16x8:float32 --line 21..25

An op runs the shipped kernels; a FILE exports PROGRAM as kernels/workbench/emulator.py describes. Tensors are
filled with seeded random numbers. Without --line, an op lists its source lines.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from common import cli
from kernels.workbench import programs, trace_plot, trials
from kernels.workbench.emulator import Compiler, Event
from kernels.workbench.programs import KINDS, encode, values_of

OPS = ("layer_norm", "add_layer_norm", "causal_attention")


@dataclass(frozen=True)
class Options:
    """Show what each lane of a CUDA kernel loads, stores, and exchanges with its warp."""

    target: Annotated[str, tyro.conf.Positional]
    """layer_norm, add_layer_norm, causal_attention, or a CUDA file"""
    program: Annotated[str, tyro.conf.Positional] = ""
    """of a file: the function to call, extern "C" """
    shape: tuple[str, ...] = field(default=())
    """shape and dtype of an op's x or q, as 1x32x1x32:bfloat16; for a file, of each tensor"""
    backward: bool = False
    """trace the op's backward"""
    kv_heads: int | None = None
    """causal_attention: heads of k and v"""
    window: int | None = None
    """causal_attention: number of keys that a query sees"""
    dropout_p: float = 0.0
    """causal_attention: probability of dropping a weight"""
    numbers: tuple[int, ...] = ()
    """a file: the numbers that its function takes"""
    block: int = 0
    """the block to trace, numbered x first"""
    thread: str = ""
    """threads to show, as 4 or 0..31; by default one warp, or all threads in the list of lines"""
    line: str = ""
    """source lines to show, as 98 or 90..98 or fragments.cuh:90..98"""
    registers: str = "float32"
    """how to read shared memory and registers: float32, float64, float16, bfloat16, int32 or int64"""
    seed: int = 0
    """seed of the tensors and of the order of threads"""
    plot: Path | None = None
    """draw the fragments of the first mma shown, or the banks of the first ldmatrix"""
    row_bytes: int = 0
    """bytes per row of the tile that ldmatrix reads, to draw unswizzled banks too; known for causal_attention"""
    build: Path = Path("build/emulator")
    """folder that caches compiled files"""

    def __post_init__(self) -> None:
        if self.registers not in KINDS:
            raise ValueError(f"registers is {self.registers!r}: choose one of {', '.join(KINDS)}")


@dataclass(frozen=True)
class Recording:
    """The events of one block, and the dtypes and names of the tensors that events call tensor 0, tensor 1, …"""

    events: list[Event]
    kinds: list[str]
    names: Sequence[str] = ()


def span(text: str) -> range:
    """Return the range that a text names, both ends included.

    >>> span("3..5")
    range(3, 6)
    """
    first, dots, last = text.partition("..")
    if not first.isdecimal() or not (last if dots else first).isdecimal():
        raise ValueError(f"{text!r} is not a range: write 4 or 0..31")
    return range(int(first), int(last if dots else first) + 1)


@dataclass(frozen=True)
class Lines:
    """Source lines to show, in one file or in any.

    >>> Lines.read("fragments.cuh:90..98").holds("/x/fragments.cuh:91")
    True
    """

    file: str
    numbers: range

    @classmethod
    def read(cls, text: str) -> "Lines":
        file, _, numbers = text.rpartition(":")
        return cls(file, span(numbers) if numbers else range(1 << 30))

    def holds(self, place: str) -> bool:
        file, line = position(place)
        return line in self.numbers and self.file in ("", file)


def position(place: str) -> tuple[str, int]:
    """Return file and line, to sort by; line 0 if the debug information knows only the function.

    >>> position("/x/fragments.cuh:91"), position("void slm::row_sum<float>")
    (('fragments.cuh', 91), ('void slm::row_sum<float>', 0))
    """
    path, _, line = place.rpartition(":")
    return (Path(path).name, int(line)) if line.isdecimal() else (place, 0)


def select(events: Iterable[Event], lines: Lines, threads: range) -> list[Event]:
    """Return the events of those lines and threads, sorted by line, then in the order of execution."""
    return sorted(
        (e for e in events if e.thread in threads and lines.holds(e.place)), key=lambda e: position(e.place)
    )


def table(events: Sequence[Event], recording: Recording, registers: str):
    """Return a rich table with one row per event."""
    from rich.table import Table

    shown = Table("line", "thread", "operation", "memory", "given", "got")
    one_file = len({position(event.place)[0] for event in events}) == 1
    for event in events:
        parts = [" ".join(f"{v:.4g}" for v in part) for part in values_of(event, recording.kinds, registers)]
        file, line = position(event.place)
        where, memory = str(line) if one_file else f"{file}:{line}", named(event.memory, recording.names)
        given, got = " | ".join(parts[:-1]), "".join(parts[-1:])
        shown.add_row(where, str(event.thread), event.operation, memory, given, got)
    return shown


def named(memory: str, names: Sequence[str]) -> str:
    """Replace the number of a tensor in a memory location by its name.

    >>> named("tensor 1 + 64", ["q", "k"])
    'k + 64'
    """
    region, plus, offset = memory.partition(" + ")
    kind, _, number = region.partition(" ")
    return names[int(number)] + plus + offset if kind == "tensor" and names else memory


def menu(events: Iterable[Event]):
    """Return a rich table of the lines with events, and their operations."""
    from rich.table import Table

    shown = Table("line", "operation", "times")
    for (file, line, operation), count in sorted(
        Counter((*position(e.place), e.operation) for e in events).items()
    ):
        shown.add_row(f"{file}:{line}", operation, str(count))
    return shown


def read_shape(text: str) -> tuple[tuple[int, ...], str]:
    """Parse sizes and dtype of a tensor.

    >>> read_shape("16x64:bfloat16")
    ((16, 64), 'bfloat16')
    """
    sizes, _, kind = text.partition(":")
    if kind not in KINDS or not all(size.isdecimal() for size in sizes.split("x")):
        raise ValueError(f"{text!r} is not a shape: write 16x64:bfloat16, with one of {', '.join(KINDS)}")
    return tuple(map(int, sizes.split("x"))), kind


def record(options: Options) -> Recording:
    """Run the op or the program on the emulator."""
    shapes = [read_shape(text) for text in options.shape]
    return _record_op(options, shapes) if options.target in OPS else _record_file(options, shapes)


def _record_file(options: Options, shapes: list[tuple[tuple[int, ...], str]]) -> Recording:
    if not Path(options.target).is_file():
        raise FileNotFoundError(f"{options.target}: no such CUDA file, and no op: those are {', '.join(OPS)}")
    random = np.random.default_rng(options.seed)
    tensors = [encode(random.standard_normal(shape), kind) for shape, kind in shapes]
    library = Compiler(options.build).compile(options.target, checked=True)
    library.run(options.program, tensors, options.numbers, seed=options.seed, traced_block=options.block)
    return Recording(library.events(), [kind for _, kind in shapes])


def _record_op(options: Options, shapes: list[tuple[tuple[int, ...], str]]) -> Recording:
    family = "attention" if options.target == "causal_attention" else "layer_norm"
    dimensions, such_as = ("BxTxHxD", "1x32x1x32") if family == "attention" else ("ROWSxC", "4x512")
    if len(shapes) != 1 or len(shapes[0][0]) != dimensions.count("x") + 1:
        raise ValueError(
            f"{options.target} takes one shape, {dimensions}:DTYPE: write --shape {such_as}:bfloat16"
        )
    sizes, kind = shapes[0]
    _check_op(options, sizes, kind)
    if family == "attention":
        case = trials.Attention(*sizes, options.kv_heads, options.window, options.dropout_p)
    else:
        case = trials.Norm(*sizes, residual=options.target == "add_layer_norm")
    program = f"{family}_{'backward' if options.backward else 'forward'}"
    library = programs.build(Compiler(options.build), program, kind)
    trials.prepare(program, case, kind).run(library, seed=options.seed, traced_block=options.block)
    names = programs.TENSORS[program]
    return Recording(library.events(), [programs.kind_of(name, kind) for name in names], names)


def _check_op(options: Options, sizes: tuple[int, ...], kind: str) -> None:
    """Raise the ValueError that the op itself would raise, using tensors without memory."""
    import torch

    from kernels import checks

    def like(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=getattr(torch, kind), device="meta")

    x = like(*sizes)
    if options.target == "causal_attention":
        batch, length, heads, width = sizes
        k = like(batch, length, heads if options.kv_heads is None else options.kv_heads, width)
        checks.check_attention(x, k, k, 1.0, options.window, options.dropout_p)
    else:
        checks.check_layer_norm(x, None, like(sizes[1]), None, 1e-5)


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; its options are the fields of Options."""
    from rich.console import Console

    options = cli.parse(Options, argv, prog="python -m kernels trace")
    is_menu = options.target in OPS and not options.line
    lines = Lines.read(options.line)
    threads = span(options.thread) if options.thread else range(1024 if is_menu else 32)
    recording = record(options)
    chosen = select(recording.events, lines, threads)
    if not chosen:
        raise ValueError(
            f"no event at {options.line or 'any line'}: without --line an op lists those that have some"
        )
    Console().print(menu(chosen) if is_menu else table(chosen, recording, options.registers))
    if options.plot:
        shown = select(recording.events, lines, range(1024))
        trace_plot.plot(shown, options.plot, options.row_bytes or tile_row_bytes(options))


def tile_row_bytes(options: Options) -> int:
    """Return the bytes per row of causal_attention's tiles in shared memory (D padded to 32, 16 bits); else 0."""
    if options.target != "causal_attention":
        return 0
    width = read_shape(options.shape[0])[0][-1]
    return (width + 31) // 32 * 32 * 2
