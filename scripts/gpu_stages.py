"""The stages of scripts/gpu_check.py: each runs programs within a time limit and returns a Result."""

import contextlib
import dataclasses
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from common import bench, files

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
LAST_WORDS = 8  # seconds that a program has to finish after its time limit


def _load_toolchain() -> types.ModuleType:
    """Import kernels/toolchain.py without its package, which would load torch and the kernels about to be built."""
    spec = importlib.util.spec_from_file_location("toolchain", ROOT / "kernels" / "toolchain.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toolchain = _load_toolchain()


class Failed(Exception):
    """A stage that failed; `printed` is the output of its program."""

    def __init__(self, why: str, printed: str = ""):
        super().__init__(why)
        self.printed = printed


class Skipped(Exception):
    """A stage that cannot run here."""


@dataclasses.dataclass
class Result:
    """The result of a stage; rows as in every benchmark's JSON."""

    state: str  # passed | failed | skipped
    note: str
    seconds: float = 0.0
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Check:
    """The state shared by all stages, and how they run programs within their time limit."""

    rehearse: bool
    work: Path
    log: IO[bytes] | None = None
    started: list[subprocess.Popen] = dataclasses.field(default_factory=list)
    begun: int = 0  # offset in the log where the output of the last program begins
    deadline: float = 0.0  # of time.monotonic()

    @property
    def device(self) -> str:
        """Return where the kernels run, as torch names it."""
        return "cpu" if self.rehearse else "cuda"

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of a program: this process's, ours, and `more`."""
        paths = [str(ROOT), *([] if has("tyro") else [str(ROOT / "scripts" / "bare")])]
        paths += filter(None, [os.environ.get("PYTHONPATH")])
        ours = {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor"),
        }
        if self.rehearse:  # so small that threads would only wait for each other
            ours["OMP_NUM_THREADS"] = "1"
        return {**os.environ, **ours, **more}

    def start(self, *command: str | Path, **environment: str) -> subprocess.Popen:
        """Start a program in a new process group; it writes to the stage's log."""
        self.log.write(f"$ {' '.join(map(str, command))}\n".encode())
        self.log.flush()
        self.begun = self.log.tell()
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=self.environment(**environment),
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A shell's background job ignores SIGINT, and so would its children: see `end`.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.started.append(process)
        return process

    def wait(self, process: subprocess.Popen) -> int:
        """Return the exit status; at the deadline end all programs and raise Failed."""
        try:
            return process.wait(max(1.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.end()
            raise Failed(f"stopped at its time limit: {' '.join(map(str, process.args[1:4]))}") from None

    def end(self) -> None:
        """End what still runs with all its descendants; a moment is left for a last message."""
        alive = [process for process in self.started if process.poll() is None]
        for process in alive:
            os.killpg(process.pid, signal.SIGINT)
        patience = time.monotonic() + LAST_WORDS
        for process in alive:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, patience - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also processes that it left running
            process.wait()
        self.started.clear()

    def python(self, *arguments: str | Path, **environment: str) -> str:
        """Run Python on `arguments` and return what it printed; Failed where it fails."""
        status = self.wait(self.start(sys.executable, *arguments, **environment))
        printed = Path(self.log.name).read_bytes()[self.begun :].decode(errors="replace")
        if status:
            raise Failed(f"exit status {status}: {' '.join(map(str, arguments[:3]))}", printed)
        return printed


def has(module: str) -> bool:
    """True if Python can import the module."""
    return importlib.util.find_spec(module) is not None


def build(check: Check) -> Result:
    """Build the extension in place; Failed where its kernels cannot run on the device."""
    check.python("setup.py", "build_ext", "--inplace", **({} if check.rehearse else {"SLM_CUDA": "1"}))
    if has("rich"):
        check.python("-m", "kernels", "doctor")
    state = f"import kernels; print('backend', kernels.backends()[{check.device!r}])"
    built = re.search(r"^backend (.*)", check.python("-c", state), re.MULTILINE)[1]
    if built != "available":
        raise Failed(f"the kernels for {check.device} cannot run: {built}")
    return Result("passed", f"the kernels for {check.device} are built")


def test(check: Check) -> Result:
    """Run the tests of the kernels, those on the GPU first, in several processes where pytest-xdist is there."""
    # No other plugin: a warning of one that happens to be installed would count as an error.
    workers = min(8, (os.cpu_count() or 1) // 2)
    parallel = ["-p", "xdist.plugin", "-n", str(workers)] if has("xdist") and workers > 1 else []
    turns = [["tests/kernels", "-k", "cuda or gpu"], ["tests/kernels", "-k", "not (cuda or gpu)"]]
    said, failed = [], False
    for chosen in [["tests/kernels/test_layer_norm.py", "-k", "fused"]] if check.rehearse else turns:
        arguments = ["-m", "pytest", *chosen, *parallel, "-p", "no:cacheprovider", "-rf"]
        try:
            said.append(_last_line(check.python(*arguments, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")))
        except Failed as failure:
            failed = True
            said.append(_last_line(failure.printed) if failure.printed else str(failure))
    if failed:
        raise Failed("; ".join(said))
    return Result("passed", "; ".join(said))


def _last_line(printed: str) -> str:
    return (printed.strip().splitlines() or [""])[-1]


def sanitize(check: Check) -> Result:
    """Run every kernel once under each of compute-sanitizer's TOOLS, in parallel; on the CPU without them."""
    if check.rehearse:
        printed = check.python("-m", "kernels.workbench.smoke", "--device", "cpu")
        return Result("passed", f"{_last_line(printed)}; compute-sanitizer needs a GPU")
    home = toolchain.cuda_home() or "/usr/local/cuda"
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=f"{home}/bin")
    if sanitizer is None:
        raise Skipped("compute-sanitizer is not here: it comes with the CUDA toolkit")
    # Without torch's cache each tensor is a separate allocation, so that an access past its end is an error. API errors
    # are not counted: torch asks for functions that a driver may lack, and checks every status itself.
    options = ["--report-api-errors", "no", "--error-exitcode", "9"]
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "2"}
    program = [sys.executable, "-m", "kernels.workbench.smoke", "--device", "cuda"]
    running = {tool: check.start(sanitizer, "--tool", tool, *options, *program, **alone) for tool in TOOLS}
    found = {}
    for tool, process in running.items():
        try:
            found[tool] = check.wait(process)
        except Failed:
            found[tool] = "time limit"
    bad = [f"{tool} ({status})" for tool, status in found.items() if status]
    if bad:
        raise Failed(f"see the log: {', '.join(bad)}")
    return Result("passed", f"{', '.join(TOOLS)}: nothing found")


def bench_kernels(check: Check) -> Result:
    """Return the rows of python -m kernels bench."""
    size = ["--tiny", "--repeat", "1"] if check.rehearse else ["--repeat", "20"]
    command = ["-m", "kernels", "bench", "--device", check.device, *size]
    compiled = ["--compile"] if has("triton") and not check.rehearse else []
    norms, attention = [*command, "--only", "layer_norm", *compiled], [*command, "--only", "attention"]
    return _rows_of(
        check, {"attention": attention, "norms": norms}
    )  # last, as compiling may take all the time


def train(check: Check) -> Result:
    """Train the quickstart with fused kernels and with torch's; rows of speed, loss and memory."""
    tokens = check.work / "tokens"
    if not (tokens / "meta.json").is_file():
        size = (
            ["--stories-bytes", "100000", "--vocab-size", "300"]
            if check.rehearse
            else ["--vocab-size", "2048"]
        )
        check.python("-m", "data", "prepare", "--source", "stories", *size, "--out", tokens)
    small = ["--steps", "3", "--n-layer", "1", "--eval-batches", "1", "--coherence-stories", "2"]
    more = [*small, "--micro-batch", "1"] if check.rehearse else ["--steps", "1500"]
    reports = {}
    for kernels in ("fused", "torch"):
        run = check.work / f"run-{kernels}"
        where = ["--device", check.device, "--precision", "bfloat16", "--kernels", kernels]
        check.python("train.py", "--data", tokens, "--run", run, "--overwrite", *where, *more)
        reports[kernels] = files.read_json(run / "report.json")
    ours, theirs = reports["fused"], reports["torch"]
    names = {"tokens_per_second": "tokens/s", "val_loss": "nats per token", "peak_memory_mb": "MB"}
    rows = [
        bench.Row(
            f"train quickstart bfloat16, {name}",
            ours[name],
            unit,
            "torch's kernels",
            theirs[name],
            unit != "tokens/s",
        )
        for name, unit in names.items()
    ]
    note = f"loss {ours['val_loss']:.3f}, with torch's kernels {theirs['val_loss']:.3f}"
    return Result("passed", note, rows=bench.as_json("", rows)["rows"])


def sample(check: Check) -> Result:
    """Sample a story from the model that the stage train left; its beginning is the note."""
    run = check.work / "run-fused"
    if not (run / "best").is_dir():
        raise Skipped("there is no model: run the stage train first")
    length = ["--max-new-tokens", "20"] if check.rehearse else []
    printed = check.python(
        "sample.py", "--run", run, "--num-samples", "1", "--seed", "1", "--device", check.device, *length
    )
    story = " ".join(printed.split())
    return Result("passed", story[:60] + "…")


def step(check: Check) -> Result:
    """Return the rows of benchmarks/step.py, one model after the other."""
    peer = ["--nanogpt", os.environ["NANOGPT"]] if os.environ.get("NANOGPT") else []
    size = ["--no-compile", "--steps", "1"] if check.rehearse else []
    models = ("tiny",) if check.rehearse else ("tinystories", "gpt2-124m")
    return _rows_of(
        check,
        {
            name: ["benchmarks/step.py", "--device", check.device, "--models", name, *peer, *size]
            for name in models
        },
    )


def _rows_of(check: Check, benchmarks: dict[str, list[str]]) -> Result:
    """Return the rows of several benchmarks, each in its own process so that one failure does not lose the others."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    failures = []
    for name, command in benchmarks.items():
        target = check.work / f"{name}.json"
        target.unlink(missing_ok=True)
        try:
            check.python(*command, "--json", target)
        except Failed as failure:
            failures.append(f"{name}: {failure}")
        if target.is_file():
            rows |= {(row["name"], row["peer"], row["unit"]): row for row in files.read_json(target)["rows"]}
    note = "; ".join(failures) or f"{len(rows)} figures"
    return Result("failed" if failures else "passed", note, rows=list(rows.values()))


@dataclasses.dataclass(frozen=True)
class Stage:
    """One part of the check: its time limit in seconds, and the modules that it needs."""

    run: Callable[[Check], Result]
    seconds: int
    needs: tuple[str, ...]


ROOMS = ("numpy", "regex", "rich", "safetensors", "matplotlib")
STAGES = {
    "build": Stage(build, 170, ("setuptools",)),
    "test": Stage(test, 150, ("pytest",)),
    "sanitize": Stage(sanitize, 180, ()),
    "bench": Stage(bench_kernels, 150, ("rich",)),
    "train": Stage(train, 200, ROOMS),
    "sample": Stage(sample, 30, ROOMS),
    "step": Stage(step, 300, ROOMS),  # two models, each compiled on both sides
}


def run_stage(name: str, check: Check, folder: Path, end: float) -> Result:
    """Run one stage with its log in `folder`; every outcome, errors too, becomes a Result."""
    stage, start = STAGES[name], time.monotonic()
    missing = [module for module in stage.needs if not has(module)]
    if missing:
        return Result("skipped", f"Python has no {', '.join(missing)}")
    if end - start < stage.seconds / 3:
        return Result("skipped", f"no time is left: scripts/gpu_check.sh {name}")
    check.deadline = min(end, start + stage.seconds)
    with open(folder / f"{name}.log", "wb") as check.log:
        try:
            result = stage.run(check)
        except (Failed, Skipped) as stop:
            result = Result("failed" if isinstance(stop, Failed) else "skipped", str(stop))
        except Exception as error:  # one broken stage must not lose the figures of the others
            result = Result("failed", f"{type(error).__name__}: {error}")
        finally:
            check.end()
    result.seconds = time.monotonic() - start
    return result
