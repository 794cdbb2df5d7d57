"""Builds each mutant in a copy of the sources and runs the cases on it, each in a separate process.

Verdicts are cached by the compiled text, so that a run that was stopped resumes, and a change of one kernel reruns only
the programs that include it.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import re
import resource
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from kernels import reference
from kernels.workbench import emulator, programs, trials
from kernels.workbench.mutation import cases
from kernels.workbench.mutation.operators import Mutant

CUDA = emulator.CSRC / "cuda"
# The emulated hardware instructions: tests/emulator compares them with the PTX documentation.
NOT_KERNELS = ("ptx.cuh", "launch.cuh", "platform.cuh", "dtypes.cuh")
DTYPES = {
    "attention_short_forward": ("bfloat16", "float16"),
    "attention_short_backward": ("bfloat16",),
    "attention_long_forward": ("bfloat16",),
    "attention_long_backward": ("bfloat16",),
    "attention_simple_forward": ("float32", "float64"),
    "attention_simple_backward": ("float32", "float64"),
    "layer_norm_forward": ("bfloat16", "float32", "float64"),
    "layer_norm_backward": ("bfloat16", "float32", "float64"),
    "rms_norm_forward": ("bfloat16", "float32", "float64"),
    "rms_norm_backward": ("bfloat16", "float32", "float64"),
    "gelu_backward": ("float32", "bfloat16"),
    "gelu_erf_backward": ("float32",),
    "swiglu_forward": ("float32", "float64"),
    "swiglu_backward": ("float32", "float64"),
    "cross_entropy": ("float32", "bfloat16"),
    "rotary": ("float32", "bfloat16"),
    "adamw": ("float32",),
}
# The files that decide if a mutant is noticed.
ORACLE = [Path(module.__file__) for module in (cases, trials, programs, emulator, reference)]
ORACLE += [path for folder in ("emulator", "programs") for path in sorted((emulator.CSRC / folder).iterdir())]
CPU_SECONDS = 40  # limit for one mutant; the unchanged kernels need 3 for a program
TIMEOUT = 2 * 3600  # seconds, for a mutant that uses no CPU time; a busy machine must not make one hang


@dataclass(frozen=True)
class Unit:
    """A program in one dtype, built and run together. narrow: attention up to D = 32 only, which compiles faster."""

    program: str
    dtype: str
    narrow: bool = False

    def __str__(self) -> str:
        return f"{self.program} {self.dtype}{' narrow' if self.narrow else ''}"

    def cases(self) -> list[trials.Case]:
        all_cases = cases.CASES[self.program]
        return [case for case in all_cases if case.width <= 32] if self.narrow else all_cases

    def includes(self) -> frozenset[str]:
        """Return the files of csrc/cuda that the program includes."""
        return _includes(self.program)


@functools.cache
def _includes(program: str) -> frozenset[str]:
    found: set[str] = set()
    waiting = [programs.PROGRAMS[program].kernels]
    while waiting:
        name = waiting.pop()
        if name not in found and (CUDA / name).is_file():
            found.add(name)
            waiting += re.findall(r'#include "([\w.]+)"', (CUDA / name).read_text())
    return frozenset(found)


UNITS = [Unit(program, dtype) for program, dtypes in DTYPES.items() for dtype in dtypes]
# Each program in its first dtype, then the other dtypes.
UNITS.sort(key=lambda unit: DTYPES[unit.program].index(unit.dtype))
# The units that notice most come first.
STAGES = [
    Unit(name, dtypes[0], True) for name, dtypes in DTYPES.items() if name.startswith("attention")
] + UNITS


def kernel_files() -> list[Path]:
    """Return the sources to change."""
    return [path for path in sorted(CUDA.glob("*.cuh")) if path.name not in NOT_KERNELS]


class Runner:
    """Judges mutants by the results of `units`; `folder` caches builds and verdicts."""

    def __init__(self, folder: Path, units: Sequence[Unit] = STAGES):
        self.folder, self.units = folder, units
        self.log = folder / "verdicts.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.known = dict(json.loads(line) for line in lines)
        self.oracle = hashlib.sha256(b"".join(path.read_bytes() for path in ORACLE)).hexdigest()
        self.trials: dict[Unit, list[trials.Trial]] = {}
        self.work: dict[Unit, dict[str, int]] = {}

    def prepare(self) -> None:
        """Compute the right results and run the unchanged kernels; ValueError if they fail."""
        emulator.Compiler(self.folder).objects()
        for unit in self.units:
            made = [trials.prepare(unit.program, case, unit.dtype) for case in unit.cases()]
            self.trials[unit] = made
        for unit in self.units:
            verdict = self.verdict(unit, None)
            if not verdict.startswith("work "):
                raise ValueError(f"{unit} fails as it is: {verdict}")
            self.work[unit] = json.loads(verdict.removeprefix("work "))

    def judge(self, mutant: Mutant) -> str:
        """Return how the mutant was noticed, or "survived"."""
        for unit in self.units:
            if mutant.file in unit.includes():
                verdict = self.verdict(unit, mutant)
                if verdict != "survived":
                    return verdict
        return "survived"

    def verdict(self, unit: Unit, mutant: Mutant | None) -> str:
        """Return the verdict of one unit, from the cache or from a run."""
        key = self._key(unit, mutant)
        found = self.known.get(key) or self.known.get(key + self.oracle)
        if found is None:
            found = self._run_apart(unit, mutant)
            if found == "survived" or found.startswith("work "):
                key += self.oracle  # changed cases may notice it
            self.known[key] = found
            with self.log.open("a") as log:
                log.write(json.dumps([key, found]) + "\n")
        return found

    def _key(self, unit: Unit, mutant: Mutant | None) -> str:
        digest = hashlib.sha256(str(unit).encode())
        for name in sorted(unit.includes()):
            text = (CUDA / name).read_text()
            digest.update((mutant.apply(text) if mutant and mutant.file == name else text).encode())
        return digest.hexdigest()

    def _run_apart(self, unit: Unit, mutant: Mutant | None) -> str:
        """Run in a child process, which may crash, hang or exhaust its memory."""
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=self._child, args=(sender, unit, mutant))
        child.start()
        sender.close()
        try:
            verdict = receiver.recv() if receiver.poll(TIMEOUT) else "hangs"
            if isinstance(verdict, Exception):  # a fault of this tool, not of the mutant
                raise verdict
            return verdict
        except EOFError:
            child.join()
            return "hangs" if child.exitcode in (-signal.SIGXCPU, -signal.SIGKILL) else "crashes"
        finally:
            child.kill()
            child.join()

    def _child(self, sender, unit: Unit, mutant: Mutant | None) -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            with tempfile.TemporaryDirectory() as copy:
                sender.send(self._observe(unit, mutant, Path(copy)))
        except Exception as error:
            sender.send(error)
        os._exit(0)

    def _observe(self, unit: Unit, mutant: Mutant | None, copy: Path) -> str:
        copy_sources(copy, mutant, unit.narrow)
        for made in emulator.Compiler(self.folder).objects():
            (copy / made.name).symlink_to(made.resolve())
        try:
            compiler = emulator.Compiler(copy, csrc=copy)
            library = programs.build(compiler, unit.program, unit.dtype, flags=["-g1"])
        except RuntimeError:
            return "does not compile"
        return self._run_cases(unit, library)

    def _run_cases(self, unit: Unit, library: emulator.Library) -> str:
        try:
            for i, trial in enumerate(self.trials[unit]):
                wrong = trial.fault(trial.run(library, seed=i + 1, workers=1, count=True))
                if wrong:
                    return f"{wrong}, {unit.program}, {trial.name}"
        except RuntimeError as error:
            return f"reported: {str(error).splitlines()[0]}"
        work = _work(library)
        if unit not in self.work:
            return f"work {json.dumps(work)}"
        before = self.work[unit]
        more = [
            f"{space} {cost / before[space]:.3f} x" for space, cost in work.items() if cost > before[space]
        ]
        return f"more work: {', '.join(more)}, {unit}" if more else "survived"


def _work(library: emulator.Library) -> dict[str, int]:
    """Return the cost of the runs since the last call, by memory space (units: see AccessCount)."""
    totals = Counter()
    for row in library.counts():
        totals[row.space] += row.cost
    return dict(totals)


def copy_sources(copy: Path, mutant: Mutant | None, narrow: bool) -> None:
    """Make links to the sources, with the change; narrow: `with_padded_width` supports only the width 32."""
    for folder in ("cuda", "programs"):
        (copy / folder).mkdir(parents=True)
        for path in (emulator.CSRC / folder).iterdir():
            (copy / folder / path.name).symlink_to(path)
    for path in (emulator.CSRC / "emulator", *emulator.CSRC.glob("*.h")):
        (copy / path.name).symlink_to(path)
    if mutant:
        _replace(copy / "cuda" / mutant.file, mutant.apply)
    if narrow:
        width = re.compile(r"(?<=integral_constant<int, )\d+")
        _replace(copy / "cuda" / "attention.cuh", lambda text: width.sub("32", text))


def _replace(path: Path, change: Callable[[str], str]) -> None:
    text = path.read_text()
    path.unlink()  # it may be a link to the source
    path.write_text(change(text))


def judge_all(runner: Runner, mutants: Sequence[Mutant], processes: int) -> Iterator[tuple[Mutant, str]]:
    """Yield mutants with their verdicts, in the order in which they finish."""
    with ThreadPoolExecutor(processes) as pool:
        running = {pool.submit(runner.judge, mutant): mutant for mutant in mutants}
        for done in as_completed(running):
            yield running[done], done.result()
