"""Count the instructions that the main loops of the CUDA kernels issue for what they do. Needs nvcc, cuobjdump, no GPU.

    python -m kernels issue                              # docs/kernels/issue.md explains the table
    python -m kernels issue --flash-attention DIR        # with FlashAttention-2's own kernels, compiled from DIR

A loop body is read from the machine code. Of long attention the path of a tile that nothing masks is counted, for each
product: as many products as the tile has, all copies of the next tile, and no instruction more than these take. Of the
kernels without products, the path that loads most bytes, for each 512 that it moves: 16 bytes of each lane of a warp.
"""

import itertools
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from common import cli
from kernels import toolchain
from kernels.workbench import resources

ARCHITECTURE = "sm_90"
MULTIPROCESSORS, CLOCK, BANDWIDTH = 132, 1.7e9, 3.35e12  # an H100 (SXM) under load; bytes/s of its memory
FLOPS = 4096  # of one HMMA: m16n8k16
WARP_BYTES = 512  # of the widest access: 16 of each lane

# Each class with the operations it holds, by the beginning of their names; everything else is "other".
CLASSES = {
    "HMMA": ("HMMA",),
    "MUFU": ("MUFU",),
    "LDSM": ("LDSM",),
    "LDGSTS": ("LDGSTS",),
    "float": ("FADD", "FMUL", "FFMA", "FMNMX", "FSEL", "FSETP", "F2FP", "FCHK", "PRMT"),
    "memory": ("LDS", "STS", "LDG", "STG", "RED", "ATOM", "LDC", "ULDC", "LDL", "STL"),
    "integer": ("IADD", "IMAD", "IMNMX", "VIADD", "VIMNMX", "VIADDMNMX", "ISETP", "IABS", "I2F", "F2I", "LOP", "PLOP",
                "LEA", "SHF", "SEL", "MOV", "R2UR", "R2P", "P2R", "S2R", "CS2R", "UIADD", "UIMAD", "UISETP", "ULOP",
                "UPLOP", "ULEA", "USHF", "USEL", "UMOV", "S2UR", "UP2UR", "UR2UP", "VOTEU", "VOTE"),
    "branch": ("BRA", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "EXIT", "CALL", "RET", "YIELD", "NANOSLEEP"),
}  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """One line of `cuobjdump -sass`; `target` is the address that a branch names."""

    address: int
    operation: str
    conditional: bool
    target: int | None

    @cached_property
    def kind(self) -> str:
        """The class of CLASSES that it belongs to; the longest name that fits decides."""
        fits = [(len(name), kind) for kind, names in CLASSES.items() for name in names if self._is(name)]
        return max(fits, default=(0, "other"))[1]

    @property
    def moves(self) -> bool:
        """True if it moves data that the loop needs: a copy, a store, an atomic addition."""
        return self.operation.startswith(("LDGSTS", "STS", "RED"))

    @property
    def global_bytes(self) -> int:
        """Bytes of global memory that a whole warp loads or stores by it."""
        name, *suffixes = self.operation.split(".")
        if name not in ("LDG", "STG"):
            return 0
        widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "16": 2, "U8": 1, "S8": 1}
        return 32 * next((widths[each] for each in suffixes if each in widths), 4)

    @property
    def sweeps(self) -> int:
        """Bytes that it loads, then bytes that it stores, then whether it is of class MUFU, as digits of one number."""
        return self.global_bytes << (40 if self.operation.startswith("LDG") else 20) | (self.kind == "MUFU")

    def _is(self, name: str) -> bool:
        return self.operation.startswith(name) and not self.operation.startswith("SHFL")


_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)([^;]*);")


def parse(listing: str) -> dict[str, list[Instruction]]:
    """Return the instructions of each function of a `cuobjdump -sass` listing.

    >>> text = "Function : f\\n /*0010*/ @!P1 BRA 0x10 ; /* 0x0 */\\n /*0020*/ HMMA.16816.F32.BF16 R4, R8 ; /* 0x0 */"
    >>> [(i.operation, i.conditional, i.target) for i in parse(text)["f"]]
    [('BRA', True, 16), ('HMMA.16816.F32.BF16', False, None)]
    """
    functions: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    for line in listing.splitlines():
        if "Function :" in line:
            code = functions.setdefault(line.split(":", 1)[1].strip(), [])
        elif found := _LINE.match(line):
            address, predicate, operation, operands = found.groups()
            where = re.search(r"0x[0-9a-f]+\s*$", operands) if operation.split(".")[0] == "BRA" else None
            conditional = (
                predicate is not None or bool(re.match(r"\s*U?P\d", operands)) or ".DIV" in operation
            )
            code.append(
                Instruction(int(address, 16), operation, conditional, where and int(where.group(), 16))
            )
    return functions


@dataclass(frozen=True)
class Body:
    """One way through a loop's body."""

    instructions: tuple[Instruction, ...]

    @cached_property
    def counts(self) -> Counter[str]:
        """How many instructions of each class it issues."""
        return Counter(each.kind for each in self.instructions)

    @property
    def slots_per_product(self) -> float:
        """Issue slots for each HMMA, itself included."""
        return len(self.instructions) / self.counts["HMMA"]

    @property
    def clocks(self) -> float:
        """The model's clocks on a quarter of a multiprocessor, calibrated on FlashAttention-2's published figures."""
        products = self.counts["HMMA"]
        return 1.2 * (6.4 * products + max(len(self.instructions) - products, 8 * self.counts["MUFU"]))

    @property
    def bytes(self) -> int:
        """Bytes of global memory that a warp moves."""
        return sum(each.global_bytes for each in self.instructions)

    @property
    def slots_per_access(self) -> float:
        """Issue slots for each WARP_BYTES."""
        return len(self.instructions) * WARP_BYTES / self.bytes

    @property
    def bytes_per_second(self) -> float:
        """The rate at which a whole H100 moves them: its memory's, if the instructions leave time for that."""
        clocks = 1.2 * max(len(self.instructions), 8 * self.counts["MUFU"])
        return min(BANDWIDTH, 4 * self.bytes / clocks * MULTIPROCESSORS * CLOCK)

    @property
    def teraflops(self) -> float:
        """The rate of its products on a whole H100 by that model."""
        return 4 * self.counts["HMMA"] * FLOPS / self.clocks * MULTIPROCESSORS * CLOCK / 1e12


def main_loop(code: Sequence[Instruction], products: int) -> Body:
    """Return the body, with that many products, of the smallest loop that has one. ValueError if no loop does."""
    for loop in _loops(code):
        if body := _cheapest(loop, products, lambda each: each.moves):
            return Body(tuple(body))
    raise ValueError(f"no loop of this kernel has a path with {products} HMMA")


def main_sweep(code: Sequence[Instruction]) -> Body:
    """Return the body that loads most bytes, of the smallest loop that does; ValueError without a loop.

    Among its paths that which stores most, then that with most exponentials and the like: not a row that is left out.
    """
    paths = [_cheapest(loop, 0, lambda each: each.sweeps) for loop in _loops(code)]
    bodies = [Body(tuple(path)) for path in paths if path]
    if not bodies:
        raise ValueError("this kernel has no loop")
    return max(bodies, key=lambda body: sum(each.sweeps for each in body.instructions))


def _loops(code: Sequence[Instruction]) -> list[Sequence[Instruction]]:
    """Return the loops of a function, the smallest first."""
    loops: dict[int, int] = {}  # first and last instruction
    at = {each.address: i for i, each in enumerate(code)}
    for i, each in enumerate(code):
        if each.target is not None and each.target <= each.address:
            loops[at[each.target]] = i
    ranges = sorted(loops.items(), key=lambda loop: loop[1] - loop[0])
    return [code[first : last + 1] for first, last in ranges]


def _cheapest(
    code: Sequence[Instruction], products: int, gain: Callable[[Instruction], int]
) -> list[Instruction] | None:
    """Return the path from the first instruction back to it: with `products` HMMA, the largest gain, fewest slots.

    Inner loops are passed through once; what leaves the loop is not followed.
    """
    at = {each.address: i for i, each in enumerate(code)}
    # best[i]: for each number of products so far, (gain, -slots) of the way to instruction i and where it came from
    best: list[dict[int, tuple[int, int, int]]] = [{} for _ in code]
    best[0][0] = (0, 0, -1)
    ends: list[tuple[int, int, int]] = []
    for i, each in enumerate(code):
        for before, (gained, slots, _) in best[i].items():
            total = before + (each.kind == "HMMA")
            gained, slots = gained + gain(each), slots - 1
            if each.target == code[0].address and total == products:
                ends.append((gained, slots, i))
            for follower in _followers(code, at, i):
                known = best[follower].get(total)
                if known is None or known[:2] < (gained, slots):
                    best[follower][total] = (gained, slots, i)
    return _trace(code, best, max(ends)[2], products) if ends else None


def _followers(code: Sequence[Instruction], at: dict[int, int], i: int) -> Iterator[int]:
    """Yield the instructions that can follow code[i] inside the loop, forwards only."""
    each = code[i]
    jumps = each.operation.split(".")[0] in ("BRA", "EXIT", "RET") and not each.conditional
    if not jumps and i + 1 < len(code):
        yield i + 1
    if each.target is not None and at.get(each.target, 0) > i:
        yield at[each.target]


def _trace(code, best, i: int, products: int) -> list[Instruction]:
    path = []
    while i >= 0:
        path.append(code[i])
        products -= code[i].kind == "HMMA"
        i = best[i][products][2]
    return path[::-1]


@dataclass(frozen=True)
class Loop:
    """A main loop: its row of the table, the kernel it is in, and the HMMA of a warp for one tile that it copies."""

    name: str
    kernel: str
    products: int


LOOPS = (
    Loop("forward, D 64", "attention_long_forward<__nv_bfloat16, 64, false>", 128),
    Loop("forward, D 128", "attention_long_forward<__nv_bfloat16, 128, false>", 256),
    Loop("backward, dq, D 64", "attention_long_backward_q<__nv_bfloat16, 64, false>", 192),
    Loop("backward, dq, D 128", "attention_long_backward_q<__nv_bfloat16, 128, false>", 192),
    Loop("backward, dk and dv, D 64", "attention_long_backward_kv<__nv_bfloat16, 64, false, false>", 256),
    Loop("backward, dk and dv, D 128", "attention_long_backward_kv<__nv_bfloat16, 128, false, false>", 256),
    Loop("backward, all in one, D 64", "attention_long_backward_kv<__nv_bfloat16, 64, false, true>", 320),
    Loop("backward, all in one, D 128", "attention_long_backward_kv<__nv_bfloat16, 128, false, true>", 320),
)
_OURS = """
#include <algorithm>
#include "attention_long_backward.cuh"
#include "attention_long_forward.cuh"
namespace slm::cuda {
"""


@dataclass(frozen=True)
class Sweep:
    """A kernel that is bound by memory: its row of the table, and its parameters in C++."""

    name: str
    kernel: str
    parameters: str


_SWEEPS = """
#include <algorithm>
#include "activation.cuh"
#include "adamw.cuh"
#include "cross_entropy.cuh"
#include "layer_norm_backward.cuh"
#include "layer_norm_forward.cuh"
#include "rms_norm.cuh"
#include "rotary.cuh"
namespace slm::cuda {
"""


def _sweep(name: str, kernel: str, argument: str, dtype: str = "__nv_bfloat16") -> Sweep:
    return Sweep(name, re.sub(r"\bT\b", dtype, kernel), f"const {argument}<{dtype}>")


SWEEPS = (
    _sweep("LayerNorm, forward, C 1024", "layer_norm_in_registers<T, 32, 4>", "LayerNormForward"),
    _sweep("LayerNorm, backward, C 1024", "layer_norm_backward_in_registers<T, 32, 4>", "LayerNormBackward"),
    _sweep("RMSNorm, forward", "rms_norm_rows<T, 8>", "RmsNormForward"),
    _sweep("RMSNorm, backward, rows", "rms_norm_backward_rows<T, 8>", "RmsNormBackward"),
    _sweep("RMSNorm, backward, columns", "rms_norm_backward_columns<T>", "RmsNormBackward"),
    _sweep("GELU, forward", "activation_elements<GeluTanh, T>", "ActivationForward"),
    _sweep("GELU, backward", "activation_backward_columns<GeluTanh, T>", "ActivationBackward"),
    _sweep("SwiGLU, forward", "activation_elements<Silu, T>", "ActivationForward"),
    _sweep("SwiGLU, backward", "activation_backward_columns<Silu, T>", "ActivationBackward"),
    _sweep("cross-entropy, statistics", "cross_entropy_statistics<T>", "CrossEntropy"),
    _sweep("cross-entropy, gradient", "cross_entropy_gradient<T>", "CrossEntropy"),
    _sweep("rotary", "rotary_pairs<T>", "Rotary"),
    _sweep("AdamW, float32", "adamw_pieces<T>", "AdamW", "float"),
)

FLASH_ATTENTION = (
    Loop("FlashAttention-2, forward, D 64", "flash::forward<64>", 256),
    Loop("FlashAttention-2, forward, D 128", "flash::forward<128>", 256),
    Loop("FlashAttention-2, backward, D 64", "flash::backward<64>", 320),
    Loop("FlashAttention-2, backward, D 128", "flash::backward<128>", 320),
)
# Its kernels with the tiles that it chooses on an H100, causal, for sizes that fill all tiles.
_FLASH_ATTENTION = """
#include "flash.h"
#include "flash_fwd_kernel.h"
#include "flash_bwd_preprocess_kernel.h"
#include "flash_bwd_kernel.h"
namespace flash {
using T = cutlass::bfloat16_t;
template <int D>
__global__ void forward(__grid_constant__ const Flash_fwd_params p) {
    using Traits = Flash_fwd_kernel_traits<D, 128, D == 64 ? 128 : 64, 4, false, false, T>;
    compute_attn<Traits, false, true, false, false, true, true, false, false>(p);
}
template <int D>
__global__ void backward(__grid_constant__ const Flash_bwd_params p) {
    constexpr bool kSmall = D == 64;
    constexpr int kQueries = kSmall ? 128 : 64, kLayout = kSmall ? 4 : 2;
    using Traits = Flash_bwd_kernel_traits<D, kQueries, 128, 8, kLayout, 4, kLayout, false, false, T>;
    compute_dq_dk_dv_seqk_parallel<Traits, false, true, false, false, true, true, false>(p);
}
template __global__ void forward<64>(__grid_constant__ const Flash_fwd_params);
template __global__ void forward<128>(__grid_constant__ const Flash_fwd_params);
template __global__ void backward<64>(__grid_constant__ const Flash_bwd_params);
template __global__ void backward<128>(__grid_constant__ const Flash_bwd_params);
}
"""


@dataclass(frozen=True)
class Row:
    """What is known of a loop: its body, and the registers and spilled bytes of its kernel."""

    name: str
    body: Body
    registers: int
    spilled: int


def _tool() -> str:
    """Return the path of cuobjdump: next to nvcc, on the PATH, or where pip puts it."""
    pip = Path(sysconfig.get_path("purelib"), "nvidia").glob("cu*/bin/cuobjdump")
    for place in [Path(toolchain.nvcc()).with_name("cuobjdump"), shutil.which("cuobjdump"), *pip]:
        if place is not None and Path(place).exists():
            return str(place)
    raise FileNotFoundError(
        "no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm, or add it to PATH"
    )


def is_available() -> bool:
    """True if nvcc and cuobjdump are here."""
    try:
        return bool(_tool())
    except FileNotFoundError:
        return False


def ours() -> list[Row]:
    """Count the loops of our kernels."""
    instances = [
        f"template __global__ void {each.kernel}(const Attention{way}<__nv_bfloat16>);"
        for each in LOOPS
        for way in [each.name.split(",")[0].title()]
    ]
    return _measure("\n".join([_OURS, *instances, "}"]), LOOPS, [f"-I{toolchain.CSRC / 'cuda'}"])


def sweeps() -> list[Row]:
    """Count the loops of the kernels that are bound by memory."""
    instances = [f"template __global__ void {each.kernel}({each.parameters});" for each in SWEEPS]
    return _measure("\n".join([_SWEEPS, *instances, "}"]), SWEEPS, [f"-I{toolchain.CSRC / 'cuda'}"])


def flash_attention(folder: Path) -> list[Row]:
    """Count the loops of FlashAttention-2, whose repository is at `folder`."""
    import torch

    includes = [folder / "csrc/flash_attn/src", folder / "csrc/cutlass/include"]
    for each in includes:
        if not each.is_dir():
            raise FileNotFoundError(f"no {each}: clone FlashAttention with its submodule csrc/cutlass")
    flags = [
        "--expt-relaxed-constexpr",
        "--expt-extended-lambda",
        "--use_fast_math",
    ]  # as its setup.py has them
    includes.append(Path(torch.__file__).parent / "include")
    return _measure(_FLASH_ATTENTION, FLASH_ATTENTION, [*flags, *(f"-I{each}" for each in includes)])


def _measure(source: str, loops: Sequence[Loop | Sweep], flags: Sequence[str]) -> list[Row]:
    tool = _tool()
    with tempfile.TemporaryDirectory() as folder:
        cubin, unit = Path(folder, "kernels.cubin"), Path(folder, "kernels.cu")
        unit.write_text(source)
        command = [
            toolchain.nvcc(),
            "-std=c++17",
            "-O3",
            f"-arch={ARCHITECTURE}",
            "-Xptxas=-v",
            "-cubin",
            *flags,
        ]
        done = subprocess.run([*command, unit, "-o", cubin], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the kernels do not compile:\n{done.stderr}")
        listing = subprocess.run([tool, "-sass", cubin], capture_output=True, text=True, check=True).stdout
    kernels = {kernel.kernel: kernel for kernel in resources.reports(done.stderr)}
    code = {resources.readable(symbol): body for symbol, body in parse(listing).items()}
    return [
        Row(
            each.name,
            main_loop(code[each.kernel], each.products)
            if isinstance(each, Loop)
            else main_sweep(code[each.kernel]),
            kernels[each.kernel].registers,
            kernels[each.kernel].spilled,
        )
        for each in loops
    ]


def table(rows: Sequence[Row]) -> str:
    """Return the loops with products as Markdown."""
    kinds = (*CLASSES, "other")
    lines = [["loop", "slots per HMMA", *kinds, "registers", "spilled", "TFLOP/s"]]
    for row in rows:
        counts = [row.body.counts[kind] for kind in kinds]
        slots, rate = f"{row.body.slots_per_product:.2f}", f"{row.body.teraflops:.0f}"
        lines.append([row.name, slots, *counts, row.registers, row.spilled, rate])
    return _markdown(lines)


def sweep_table(rows: Sequence[Row]) -> str:
    """Return the loops that are bound by memory as Markdown."""
    lines = [["sweep", "slots per 512 bytes", "bytes", "slots", "MUFU", "registers", "spilled", "TB/s"]]
    for row in rows:
        counts = [row.body.bytes, len(row.body.instructions), row.body.counts["MUFU"]]
        slots, rate = f"{row.body.slots_per_access:.1f}", f"{row.body.bytes_per_second / 1e12:.2f}"
        lines.append([row.name, slots, *counts, row.registers, row.spilled, rate])
    return _markdown(lines)


def _markdown(lines: Sequence[Sequence[object]]) -> str:
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def committed(page: str, first: str = "loop") -> dict[str, dict[str, str]]:
    """Return the table of a page whose first column is called `first`: for each loop its other columns by name.

    >>> committed("| loop | registers |\\n| --- | --- |\\n| forward, D 64 | 222 |")
    {'forward, D 64': {'registers': '222'}}
    """
    lines = [line.strip("| ").split(" | ") for line in page.splitlines()]
    start = next(i for i, line in enumerate(lines) if line[0] == first)
    rows = itertools.takewhile(lambda line: len(line) > 1, lines[start + 2 :])
    return {line[0]: dict(zip(lines[start][1:], line[1:], strict=True)) for line in rows}


@dataclass(frozen=True)
class Options:
    """Count the instructions that the main loops of the CUDA kernels issue for each product, or for what they move."""

    flash_attention: Path | None = None
    """A clone of FlashAttention, with its submodule csrc/cutlass: its kernels are compiled and counted, too."""


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables of docs/kernels/issue.md."""
    options = cli.parse(Options, argv, prog="python -m kernels issue")
    rows = [] if options.flash_attention is None else flash_attention(options.flash_attention)
    print(table([*ours(), *rows]), sweep_table(sweeps()), sep="\n\n")
