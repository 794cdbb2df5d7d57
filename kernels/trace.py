"""Shows what each lane of a CUDA kernel holds, on the emulator: loads, stores, shuffles, fragments.

    python -m kernels.trace FILE.cu PROGRAM --shapes 16x64:bfloat16 64x8:bfloat16 16x8:float32 --lines 21..25

The file exports PROGRAM as kernels/emulator.py describes. Its tensors are filled with seeded random numbers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from common import cli
from kernels.emulator import Event, Toolchain

KINDS = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "int32": np.int32,
}
MMA_KINDS = {"bf16": "bfloat16", "f16": "float16", "tf32": "float32"}


@dataclass(frozen=True)
class Options:
    source: Annotated[Path, tyro.conf.Positional]
    """the CUDA file"""
    program: Annotated[str, tyro.conf.Positional]
    """the function to call, extern "C" """
    shapes: tuple[str, ...] = field(default=())
    """one for each tensor, as 16x64:bfloat16"""
    numbers: tuple[int, ...] = ()
    """what the function takes as numbers"""
    block: int = 0
    """the block to trace, numbered x first"""
    threads: str = "0..31"
    """first and last thread to show"""
    lines: str = "1..1000000"
    """first and last source line to show"""
    registers: str = "float32"
    """how to read shared memory and registers: float32, float16, bfloat16, int32"""
    seed: int = 0
    """for the numbers in the tensors and the order of threads"""
    plot: Path | None = None
    """draw the fragments of the first mma shown, or the banks of the first ldmatrix"""
    build: Path = Path("build/emulator")
    """where compiled files are kept for the next time"""


def decode(data: bytes, kind: str) -> np.ndarray:
    """Numbers from bytes in memory order; bfloat16 becomes float32.

    >>> decode(bytes.fromhex("803f00c0"), "bfloat16").tolist()
    [1.0, -2.0]
    """
    if len(data) % np.dtype(KINDS[kind]).itemsize:
        return np.frombuffer(data, np.uint8)
    values = np.frombuffer(data, KINDS[kind])
    return (values.astype(np.uint32) << 16).view(np.float32) if kind == "bfloat16" else values


def encode(values: np.ndarray, kind: str) -> np.ndarray:
    """`values` (float64) in the memory of `kind`; bfloat16 by cutting off the lower half of a float32."""
    if kind == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(KINDS[kind])


def values_of(event: Event, tensors: Sequence[str], registers: str) -> list[np.ndarray]:
    """What the lane gave and got; of a mma the registers of a, b, c and the new c."""
    if event.operation.startswith("mma"):
        kind = MMA_KINDS[event.operation.rsplit(".", 1)[1]]
        a, b, c = event.given[:16], event.given[16:24], event.given[24:]
        return [decode(a, kind), decode(b, kind), decode(c, "float32"), decode(event.got, "float32")]
    region, _, number = event.memory.partition(" + ")[0].partition(" ")
    kind = tensors[int(number)] if region == "tensor" else registers
    return [part for part in (decode(event.given, kind), decode(event.got, kind)) if part.size]


def span(text: str) -> range:
    """
    >>> span("3..5")
    range(3, 6)
    """
    first, dots, last = text.partition("..")
    if not first.isdecimal() or not (last if dots else first).isdecimal():
        raise ValueError(f"{text!r} is not a range: write 4 or 0..31")
    return range(int(first), int(last if dots else first) + 1)


def select(events: Iterable[Event], lines: range, threads: range) -> list[Event]:
    """The events of those lines and threads, line by line, in the order in which they happened."""
    chosen = [e for e in events if e.thread in threads and int(e.place.rsplit(":", 1)[1]) in lines]
    return sorted(chosen, key=lambda event: int(event.place.rsplit(":", 1)[1]))


def table(events: Sequence[Event], tensors: Sequence[str], registers: str):
    """A rich table with one row for each event."""
    from rich.table import Table

    shown = Table("line", "thread", "operation", "memory", "given", "got")
    for event in events:
        parts = [" ".join(f"{value:.4g}" for value in part) for part in values_of(event, tensors, registers)]
        line = event.place.rsplit(":", 1)[1]
        shown.add_row(
            line, str(event.thread), event.operation, event.memory, " | ".join(parts[:-1]), parts[-1]
        )
    return shown


def read_shape(text: str) -> tuple[tuple[int, ...], str]:
    """
    >>> read_shape("16x64:bfloat16")
    ((16, 64), 'bfloat16')
    """
    sizes, _, kind = text.partition(":")
    if kind not in KINDS or not all(size.isdecimal() for size in sizes.split("x")):
        raise ValueError(f"{text!r} is not a shape: write 16x64:bfloat16, with one of {', '.join(KINDS)}")
    return tuple(map(int, sizes.split("x"))), kind


def record(options: Options) -> tuple[list[Event], list[str]]:
    """Runs the program on the emulator: the events of the block, and the kind of each tensor."""
    if not options.source.is_file():
        raise FileNotFoundError(f"{options.source}: no such CUDA file")
    shapes = [read_shape(text) for text in options.shapes]
    random = np.random.default_rng(options.seed)
    tensors = [encode(random.standard_normal(shape), kind) for shape, kind in shapes]
    library = Toolchain(options.build).compile(options.source, checked=True)
    library.run(options.program, tensors, options.numbers, seed=options.seed, traced_block=options.block)
    return library.events(), [kind for _, kind in shapes]


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    from rich.console import Console

    options = cli.parse(Options, argv, prog="python -m kernels.trace")
    lines, threads = span(options.lines), span(options.threads)
    events, kinds = record(options)
    Console().print(table(select(events, lines, threads), kinds, options.registers))
    if options.plot:
        from kernels.trace_plot import plot

        plot(select(events, lines, range(1024)), options.plot)


if __name__ == "__main__":
    main()
