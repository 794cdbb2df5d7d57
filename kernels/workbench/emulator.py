"""Compiles CUDA files for the emulator in csrc/emulator and calls them; needs a C++ compiler and no GPU.

    compiler = Compiler(folder)
    library = compiler.compile("softmax.cu", checked=True)
    library.run("softmax", [x, out], [rows, columns], seed=7)

The file includes csrc/cuda/platform.cuh and exports a function that launches kernels:
`extern "C" void softmax(void** tensors, const long long* numbers)`. With `checked=True` every load and store
is checked: races, uninitialized shared memory, accesses outside the tensors and more
(docs/kernels/emulator.md). A fault is raised as a RuntimeError.
"""

import ctypes
import fcntl
import hashlib
import shlex
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kernels import toolchain
from kernels.toolchain import CSRC

FLAGS = (
    *("-std=c++17", "-g", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off"),
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas"),
)
# -O1 neither splits nor merges the accesses that are written in the source.
CHECKS = ("-O1", "-fsanitize=thread,alignment")
LIBRARIES = ("-pthread", "-ldl")


@dataclass(frozen=True)
class AccessCount:
    """The accesses of all warps at one source line: `warp_accesses` accesses of `bytes` per lane.

    `least` is the cost of the same number of bytes if every lane accesses its own and none are wasted; lanes that read
    the same words may cost less.

    space "shared": cost in wavefronts, passes over the 32 banks. "global": cost in sectors of 32 bytes.
    "tensor cores": cost in mma.
    """

    place: str
    space: str
    access: str
    bytes: int
    warp_accesses: int
    cost: int
    least: int


@dataclass(frozen=True)
class Event:
    """One thread's load, store, or part of a warp operation.

    memory: the region and the byte in it, as in "tensor 0 + 64".
    given, got: the operands and the result, bytes in memory order. A load and a store have only the latter; a mma is
    given the registers of a (4), b (2) and c (4).
    """

    thread: int
    place: str
    operation: str
    memory: str
    given: bytes
    got: bytes


class Library:
    """A compiled CUDA file, loaded."""

    def __init__(self, path: Path):
        self.path = path
        self._library = ctypes.CDLL(str(path))
        self._library.emulator_call.restype = ctypes.c_char_p
        self._library.emulator_counts.restype = ctypes.c_char_p
        self._library.emulator_trace.restype = ctypes.c_char_p

    def run(
        self,
        program: str,
        tensors: Sequence[np.ndarray],
        numbers: Sequence[int] = (),
        *,
        seed: int = 0,
        workers: int = 0,
        architecture: int = 80,
        count: bool = False,
        traced_block: int = -1,
    ) -> None:
        """Call `program`; its kernels may access `tensors` (C-contiguous) and nothing else.

        seed: 0 runs threads and blocks in order, any other number in a random order.
        workers: OS threads to spread the blocks over; 0 is one per core.
        architecture: 80 for sm_80; bounds the shared memory of a block.
        count: record the cost of each access for `counts`; only in a checked library.
        traced_block: record the events of this block (numbered x first) for `events`; only in a checked library.
        Raises RuntimeError with kernel, block, thread and source line when a check fails.
        """
        addresses = (ctypes.c_void_p * len(tensors))(*(tensor.ctypes.data for tensor in tensors))
        sizes = (ctypes.c_longlong * len(tensors))(*(tensor.nbytes for tensor in tensors))
        values = (ctypes.c_longlong * len(numbers))(*numbers)
        self._library.emulator_configure(
            ctypes.c_ulonglong(seed), workers, architecture, count, ctypes.c_longlong(traced_block)
        )
        error = self._library.emulator_call(
            getattr(self._library, program), addresses, sizes, len(tensors), values
        )
        if error:
            raise RuntimeError(error.decode())

    def counts(self) -> list[AccessCount]:
        """Return the bank conflicts, sectors and mma of each source line since the last call."""
        totals: dict[tuple[str, str, str, int], list[int]] = {}
        for line in self._library.emulator_counts().decode().splitlines():
            place, space, access, size, *numbers = line.split("\t")
            sums = totals.setdefault((place, space, access, int(size)), [0, 0, 0])
            sums[:] = [total + int(number) for total, number in zip(sums, numbers, strict=True)]
        return [AccessCount(*key, *sums) for key, sums in totals.items()]

    def events(self) -> list[Event]:
        """Return the events of the traced block since the last call, in the order of execution."""
        rows = [line.split("\t") for line in self._library.emulator_trace().decode().splitlines()]
        return [
            Event(int(thread), place, operation, memory, bytes.fromhex(given), bytes.fromhex(got))
            for thread, place, operation, memory, given, got in rows
        ]


class Compiler:
    """A C++ compiler with a folder for its output; the emulator itself is compiled once per folder.

    command: the compiler, such as "g++" or "ccache g++"; otherwise CXX, or c++.
    csrc: the folder that holds cuda/ with the headers; another than the package's own for changed copies of them.
    """

    def __init__(self, folder: str | Path, command: str | None = None, csrc: Path = CSRC):
        self.folder = Path(folder)
        self.csrc = csrc
        found = shlex.split(command) if command else toolchain.compiler()
        if not found:
            raise FileNotFoundError(toolchain.NO_COMPILER)
        self.command = found
        version = subprocess.run([*self.command, "--version"], capture_output=True, text=True)
        self._version = version.stdout
        # gcc would share the __shared__ variables of templates between all libraries of the process. Of clang's
        # DWARF 5, addr2line 2.40 does not see which calls were inlined, and so not the line of the kernel.
        is_clang = "clang" in self._version
        self._flags = (*FLAGS, "-gdwarf-4") if is_clang else (*FLAGS, "-fno-gnu-unique")
        # bounds-strict also checks an array at the end of a struct.
        self._checks = (*CHECKS, f"-fsanitize={'bounds' if is_clang else 'bounds-strict'}")
        self._objects: list[Path] = []

    def compile(self, source: str | Path, *, checked: bool = False, flags: Sequence[str] = ()) -> Library:
        """Compile one CUDA file. `checked` makes every load and store call the emulator's checks."""
        source = Path(source).resolve()
        extra = [*(self._checks if checked else ("-O2",)), *flags]
        parts = [self._compile_object(source, extra), *self.objects()]
        digest = hashlib.sha256(" ".join(part.name for part in parts).encode()).hexdigest()
        library = self.folder / f"{source.stem}-{digest[:16]}.so"
        self._make(library, "-shared", *map(str, parts), *LIBRARIES)
        return Library(library)

    def objects(self) -> list[Path]:
        """Return the object files of the emulator itself, which is never instrumented."""
        if not self._objects:
            with ThreadPoolExecutor(2) as pool:
                sources = sorted((CSRC / "emulator").glob("*.cpp"))
                self._objects = list(pool.map(lambda source: self._compile_object(source, ("-O2",)), sources))
        return self._objects

    def _compile_object(self, source: Path, extra: Sequence[str]) -> Path:
        """Return the object file, named by a hash of all its inputs so that a stale one is never used."""
        flags = [*self._flags, *extra]
        headers = sorted((CSRC / "emulator").glob("*.h"))
        if source.parent != (CSRC / "emulator").resolve():
            headers += sorted([*self.csrc.glob("*.h"), *self.csrc.glob("cuda/*.cu*")])
            headers += sorted([*source.parent.glob("*.cuh"), *source.parent.glob("*.h")])
            headers += sorted(source.parent.parent.glob("*.cuh"))
        digest = hashlib.sha256(" ".join([*self.command, self._version, *flags]).encode())
        for file in (source, *headers):
            digest.update(file.read_bytes())
        target = self.folder / f"{source.stem}-{digest.hexdigest()[:16]}.o"
        include = ["-I", str(self.csrc / "cuda"), "-I", str(self.csrc)]
        return self._make(target, *flags, *include, "-x", "c++", "-c", str(source))

    def _make(self, target: Path, *arguments: str) -> Path:
        """Make `target` once and atomically, even if several processes ask for it at the same time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with target.with_suffix(f"{target.suffix}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                aside = target.with_suffix(f"{target.suffix}.aside")
                command = [*self.command, *arguments, "-o", str(aside)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
                aside.replace(target)
        return target
