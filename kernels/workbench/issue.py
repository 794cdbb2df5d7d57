"""Count the instructions that the main loops of long attention issue for each product. Needs nvcc, cuobjdump, no GPU.

    python -m kernels issue                              # docs/kernels/issue.md explains the table
    python -m kernels issue --flash-attention DIR        # with FlashAttention-2's own kernels, compiled from DIR

A loop body is read from the machine code. Among its paths the one of a tile that nothing masks is counted: as many
products as the tile has, all copies of the next tile, and no instruction more than these take.
"""

import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from common import cli
from kernels import toolchain
from kernels.workbench import resources

ARCHITECTURE = "sm_90"
MULTIPROCESSORS, CLOCK = 132, 1.7e9  # an H100 (SXM) under load
FLOPS = 4096  # of one HMMA: m16n8k16

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
        """True if it moves data that the loop needs: a copy, a fragment, a store, an atomic addition."""
        return self.operation.startswith(("LDGSTS", "LDSM", "LDS", "STS", "RED"))

    def _is(self, name: str) -> bool:
        return self.operation.split(".")[0].rstrip("0123456789").startswith(name.rstrip("0123456789")) and not self.operation.startswith("SHFL")


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
            conditional = predicate is not None or bool(re.match(r"\s*U?P\d", operands)) or ".DIV" in operation
            code.append(Instruction(int(address, 16), operation, conditional, where and int(where.group(), 16)))
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
    def teraflops(self) -> float:
        """The rate of its products on a whole H100 by that model."""
        return 4 * self.counts["HMMA"] * FLOPS / self.clocks * MULTIPROCESSORS * CLOCK / 1e12


def main_loop(code: Sequence[Instruction], products: int) -> Body:
    """Return the body with so many products of the smallest loop that has one. ValueError if no loop does."""
    loops: dict[int, int] = {}  # first and last instruction
    at = {each.address: i for i, each in enumerate(code)}
    for i, each in enumerate(code):
        if each.target is not None and each.target <= each.address:
            loops[at[each.target]] = i
    for first, last in sorted(loops.items(), key=lambda loop: loop[1] - loop[0]):
        if body := _cheapest(code[first : last + 1], products):
            return Body(tuple(body))
    raise ValueError(f"no loop of this kernel has a path with {products} HMMA")


def _cheapest(code: Sequence[Instruction], products: int) -> list[Instruction] | None:
    """Return the path from the first instruction back to it that has `products` HMMA, most of what moves data, fewest slots.

    Inner loops are passed through once; what leaves the loop is not followed.
    """
    at = {each.address: i for i, each in enumerate(code)}
    # best[i]: for each number of products so far, (copies, -slots) of the way to instruction i and where it came from
    best: list[dict[int, tuple[int, int, int]]] = [{} for _ in code]
    best[0][0] = (0, 0, -1)
    ends: list[tuple[int, int, int]] = []
    for i, each in enumerate(code):
        for before, (copies, slots, _) in best[i].items():
            total = before + (each.kind == "HMMA")
            copies, slots = copies + each.moves, slots - 1
            if each.target == code[0].address and total == products:
                ends.append((copies, slots, i))
            for follower in _followers(code, at, i):
                known = best[follower].get(total)
                if known is None or known[:2] < (copies, slots):
                    best[follower][total] = (copies, slots, i)
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
    """A main loop: its row of the table, the kernel it is in, and the products a warp forms for one tile."""

    name: str
    kernel: str
    products: int


LOOPS = (
    Loop("forward, D 64", "attention_long_forward<__nv_bfloat16, 64, false>", 128),
    Loop("forward, D 128", "attention_long_forward<__nv_bfloat16, 128, false>", 128),
)
FLASH_ATTENTION = (
    Loop("forward, D 64", "flash_forward<64>", 256),
    Loop("forward, D 128", "flash_forward<128>", 256),
    Loop("backward, D 64", "flash_backward<64>", 320),
    Loop("backward, D 128", "flash_backward<128>", 320),
)


@dataclass(frozen=True)
class Row:
    """What is known of a loop: its body, and the registers and spilled bytes of its kernel."""

    name: str
    body: Body
    registers: int
    spilled: int


def _tool() -> str:
    """The path of cuobjdump: beside nvcc, on the PATH, or where pip puts it."""
    pip = Path(sysconfig.get_path("purelib"), "nvidia").glob("cu*/bin/cuobjdump")
    for place in [Path(toolchain.nvcc()).with_name("cuobjdump"), shutil.which("cuobjdump"), *pip]:
        if place is not None and Path(place).exists():
            return str(place)
    raise FileNotFoundError("no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm, or add it to PATH")


def is_available() -> bool:
    """True if nvcc and cuobjdump are here."""
    try:
        return bool(_tool())
    except FileNotFoundError:
        return False


def measure(source: Path, loops: Sequence[Loop], flags: Sequence[str | Path] = ()) -> list[Row]:
    """Compile `source` and count `loops` in it."""
    tool = _tool()
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        command = [toolchain.nvcc(), "-std=c++17", "-O3", f"-arch={ARCHITECTURE}", "-Xptxas=-v", "-cubin", *flags]
        done = subprocess.run([*command, source, "-o", cubin], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{source.name} does not compile:\n{done.stderr}")
        known = {kernel.kernel: kernel for kernel in resources.reports(done.stderr)}
        listing = subprocess.run([tool, "-sass", cubin], capture_output=True, text=True, check=True).stdout
    code = {resources.readable(symbol): body for symbol, body in parse(listing).items()}
    return [
        Row(each.name, main_loop(code[each.kernel], each.products), known[each.kernel].registers, known[each.kernel].spilled)
        for each in loops
    ]
