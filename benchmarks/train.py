"""Training: tokens per second of the quickstart and of a plain torch loop, and what the loop itself costs.

python benchmarks/train.py [--data DIR] [--rounds N] [--threads N …] [--busy N …] [--json PATH]
python benchmarks/train.py --nanogpt DIR --text FILE [--rounds N] [--threads N …] [--json PATH]

train quickstart …      the preset as it is, and with AdamW in Muon's place, and the same model in the loop that
                        one would write first: SDPA, cross-entropy over all logits, torch.optim.AdamW, the same
                        precision and size of batch. Each has a process of its own and they take turns, so that
                        none runs under the settings that another has made
… with N busy loops     with --busy N, and nothing else: the quickstart's loop while N other programs compute
                        without end, and its share of what N + threads programs could each expect
optimizer state …       megabytes of it in each of two processes that share it, and those of one process
peak memory …           megabytes that a step adds to each of two processes under our FSDP and under torch's, and to one
                        process that shares with none: 38 million parameters, few tokens (Linux only)
nanoGPT's recipe …      with --nanogpt (a clone of karpathy/nanoGPT) and nothing else: its own train.py, as its README
                        runs it on a CPU, and our loop at the same shape and size of batch, on the characters of FILE.
                        nanoGPT computes in float32 on a CPU; ours is measured in that and in what it chooses by itself
race with nanoGPT …     with --nanogpt, too: steps and seconds until the validation loss on the last tenth of FILE is
                        the 1.88 nats a character that its README promises after 2,000 steps. Ours is the quickstart
                        with its shape and size of batch over 500 steps. Seconds are those of steps, without evaluations
train loop's overhead   share of a step, in percent, at the tinystories model, outside of forward and backward pass,
                        clipping, optimizer, data, logging and display; the batch is 1,024 tokens instead of
                        65,536, so that the share is far larger than in use
"""

import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # basics/ is not installed

import kernels
from basics.train import get_batch
from common import cli, process
from common.bench import Row, medians, report, seconds
from data.prepare import Prepare, prepare
from inference import devices
from model import GPT, GPTConfig
from training import distributed, loop, optimizer
from training.config import PRESETS, TrainConfig, flag, read_config, with_vocabulary_of_data
from training.watch import Bar, NoLog, read_log

STEPS = 10  # in one measurement


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure training, and a plain torch loop to compare with."""

    data: Path | None = None
    """Token files; made of the built-in corpus when left out."""
    rounds: int = 7
    """Measurements of each side; the median counts."""
    threads: tuple[int, ...] = tuple(sorted({1, os.cpu_count() or 1}))
    """Threads that torch computes with; all is measured for each number."""
    busy: tuple[int, ...] = ()
    """Measure only the speed while this many other programs compute without end, for each number."""
    nanogpt: Path | None = None
    """Measure only the speed at nanoGPT's recipe for a CPU, compared with nanoGPT in this directory."""
    text: Path | None = None
    """The text that both train on, with --nanogpt."""
    json: Path | None = None
    """Write the rows here, too."""

    def __post_init__(self) -> None:
        if (self.nanogpt is None) != (self.text is None):
            raise ValueError("--nanogpt and --text go together: give both")
        if self.nanogpt and not (self.nanogpt / "train.py").is_file():
            raise FileNotFoundError(f"{self.nanogpt} holds no train.py: clone karpathy/nanoGPT there")


def quickstart(data: Path, **changes: Any) -> TrainConfig:
    """Return the quickstart preset on this data."""
    config = dataclasses.replace(read_config(PRESETS / "quickstart.toml"), data=data, **changes)
    return with_vocabulary_of_data(config)


def our_steps(config: TrainConfig) -> Callable[[], None]:
    """Return a call that trains STEPS steps in our loop."""
    trainer = loop.Trainer(config)
    bar, log = Bar(config.steps, 0, shown=False), NoLog()
    feed = loop.prefetch(trainer.batches, trainer.device)

    def steps() -> None:
        for _ in range(STEPS):
            start = time.perf_counter()
            step = trainer.step(trainer.next_batch(feed))
            trainer.progress.seconds += time.perf_counter() - start
            loop.log_step(trainer, step, log, bar)

    return steps


def plain_steps(config: TrainConfig) -> Callable[[], None]:
    """Return a call that trains STEPS steps as a plain torch loop does."""
    device = devices.choose_device(config.device)
    precision = devices.choose_precision(config.precision, device)
    torch.manual_seed(config.seed)
    model = GPT(config.model).to(device)
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    tokens = np.fromfile(config.data / "train.bin", dtype=np.uint16)
    ids, starts = (
        torch.from_numpy(tokens.astype(np.int64)),
        torch.Generator().manual_seed(config.seed),
    )  # (N,)
    size, rows = config.model.block_size, config.step_tokens // config.model.block_size

    def steps() -> None:
        for _ in range(STEPS):
            x, y = get_batch(ids, rows, size, starts)  # (B, T), (B, T)
            with kernels.use("torch"), devices.autocast(device, precision):
                logits = model.lm_head(model.hidden(x.to(device)))  # (B, T) -> (B, T, V)
                loss = F.cross_entropy(logits.flatten(0, 1), y.to(device).flatten())  # (B T, V), (B T,)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adamw.step()
            adamw.zero_grad(set_to_none=True)

    return steps


class Side:
    """A loop in a process of its own, which trains STEPS steps at each call and rests in between."""

    def __init__(
        self, make: Callable[[TrainConfig], Callable[[], None]], config: TrainConfig, threads: int
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, config, threads), daemon=True)
        with _environment(process.SPIN_BRIEFLY if make is our_steps else {}):  # as train.py has it
            self._process.start()
        theirs.close()  # else the end of the process would go unnoticed here

    def __call__(self) -> None:
        self._line.send("train")
        self._line.recv()

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Set what processes that start inside find in their environment; what the user has set stays."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextlib.contextmanager
def _busy_loops(count: int) -> Iterator[None]:
    """Keep `count` other processes computing."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for each in loops:
            each.kill()
            each.wait()


def _serve(
    line: Connection, make: Callable[[TrainConfig], Callable[[], None]], config: TrainConfig, threads: int
) -> None:
    torch.set_num_threads(threads)
    steps = make(config)
    while True:
        line.recv()
        steps()
        line.send("done")


def _one_of_two(rank: int, port: str, config: TrainConfig) -> int:
    """Take a step as one of two processes; return the bytes of its part of the optimizer's state."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = port
    with distributed.joined(this := distributed.this_process(), torch.device("cpu")):
        trainer = loop.Trainer(config, processes=this)
        trainer.step(next(trainer.batches))
        return optimizer.state_bytes(trainer.optimizers)


def state_rows(data: Path) -> list[Row]:
    """Measure the optimizer's state of the quickstart model: the larger of two processes' parts, and the whole."""
    context, rows = multiprocessing.get_context("spawn"), []
    for kind, shard in itertools.product(("muon", "fused"), ("optimizer", "full")):
        config = quickstart(data, optimizer=kind, device="cpu")
        alone = loop.Trainer(config)
        alone.step(next(alone.batches))
        shared = dataclasses.replace(config, shard=shard)
        with ProcessPoolExecutor(2, context) as both:
            part = max(both.map(_one_of_two, range(2), [free_port()] * 2, [shared] * 2))
        whole = optimizer.state_bytes(alone.optimizers)
        name = f"optimizer state, {'AdamW' if kind == 'fused' else 'Muon'}, --shard {shard}"
        rows.append(Row(name, part / 1e6, "MB", "one process", whole / 1e6, less_is_better=True))
    return rows


def _peak_memory(rank: int, processes: int, port: str, config: TrainConfig) -> float:
    """Train a model of 12 layers as one of some processes; return the megabytes that its third step needed at most."""
    torch.set_num_threads(1)
    devices.keep_freed_memory = bool  # what is resident is to be what is needed
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shape = dataclasses.replace(config.model, n_layer=12, n_head=8, n_embd=512)
    with distributed.joined(this := distributed.this_process(), torch.device("cpu")):
        small = loop.Trainer(config, processes=this)
        small.step(next(small.batches))  # what is loaded only once does not count
        before = _resident("VmRSS")
        trainer = loop.Trainer(dataclasses.replace(config, model=shape), processes=this)
        for _ in range(3):  # the first makes the optimizer's state
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            trainer.step(next(trainer.batches))
        return _resident("VmHWM") - before


def _resident(kind: str) -> float:
    """Return the megabytes of memory of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1e3


def memory_rows(data: Path) -> list[Row]:
    """Measure the peak memory of a process: one of two under our FSDP and under torch's, and one alone."""
    config = quickstart(data, optimizer="fused", device="cpu", precision="float32", micro_batch=1)
    config = dataclasses.replace(config, batch_tokens=2 * config.model.block_size)
    peaks, context = {}, multiprocessing.get_context("spawn")
    for name, count, changes in (
        ("ours", 2, {"shard": "full", "fsdp": "ours"}),
        ("torch's FSDP2", 2, {"shard": "full", "fsdp": "torch"}),
        ("one process", 1, {}),
    ):
        shared = dataclasses.replace(config, **changes)
        # glibc then returns every larger block as soon as it is freed.
        with _environment({"MALLOC_MMAP_THRESHOLD_": "131072"}), ProcessPoolExecutor(count, context) as pool:
            port = free_port()
            found = pool.map(_peak_memory, range(count), [count] * count, [port] * count, [shared] * count)
            peaks[name] = max(found)
    ours = peaks.pop("ours")
    return [
        Row("peak memory, --shard full --fsdp ours", ours, "MB", peer, peak, less_is_better=True)
        for peer, peak in peaks.items()
    ]


def free_port() -> str:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


class Stopwatch:
    """Adds up the time spent in the functions it is put around."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the same function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def overhead(data: Path, steps: int) -> tuple[float, float]:
    """Return the median seconds of a step at the tinystories model, and of the loop's own part of it."""
    preset = read_config(PRESETS / "tinystories.toml")
    config = dataclasses.replace(preset, data=data, batch_tokens=1024, micro_batch=8, steps=steps)
    trainer, watch = loop.Trainer(config), Stopwatch()
    bar, log = Bar(steps, 0, shown=False), NoLog()
    bar.show, log.add = watch.around(bar.show), watch.around(log.add)
    trainer.objective.loss = watch.around(trainer.objective.loss)
    trainer.next_batch = watch.around(trainer.next_batch)
    for each in trainer.optimizers:
        each.step = watch.around(each.step)
    whole, own = [], []
    with (
        loop.prefetch(trainer.batches, trainer.device) as feed,
        _timed(watch, torch.Tensor, "backward"),
        _timed(watch, optimizer, "clip_gradient"),
        _timed(watch, optimizer, "clear_gradients"),
    ):
        for _ in range(steps):
            watch.seconds, start = 0.0, time.perf_counter()
            step = trainer.step(trainer.next_batch(feed))
            trainer.progress.seconds += time.perf_counter() - start
            loop.log_step(trainer, step, log, bar)
            trainer.save_due(stopping=False)
            whole.append(time.perf_counter() - start)
            own.append(whole[-1] - watch.seconds)
    return statistics.median(whole), statistics.median(own)


@contextlib.contextmanager
def _timed(watch: Stopwatch, owner: Any, name: str) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, watch.around(before))
    try:
        yield
    finally:
        setattr(owner, name, before)


def speed_rows(data: Path, rounds: int, threads: int) -> list[Row]:
    """Measure tokens per second of the quickstart's loop and of the plain one, in turn.

    On windows, in which both attend to the same tokens; the preset's packed stories cost ours less.
    """
    config = quickstart(data, batches="documents")
    with contextlib.ExitStack() as sides:
        calls = {
            name: sides.enter_context(contextlib.closing(Side(make, changed, threads)))
            for name, make, changed in (
                ("train quickstart", our_steps, config),
                ("train quickstart with AdamW", our_steps, dataclasses.replace(config, optimizer="fused")),
                ("plain", plain_steps, config),
            )
        }
        times = medians(calls, repeat=rounds, warmup=2)
    speed = {name: STEPS * config.step_tokens / seconds for name, seconds in times.items()}
    plain, word = speed.pop("plain"), "thread" if threads == 1 else "threads"
    return [
        Row(f"{name}, {threads} {word}", value, "tokens/s", "plain torch loop", plain, goal=1.2)
        for name, value in speed.items()
    ]


def busy_rows(data: Path, rounds: int, threads: int, busy: int) -> list[Row]:
    """Measure tokens per second of the quickstart's loop and of the plain one, alone and with busy loops."""
    config, cores = quickstart(data, batches="documents"), os.cpu_count() or 1
    with contextlib.ExitStack() as sides:
        calls = {
            name: sides.enter_context(contextlib.closing(Side(make, config, threads)))
            for name, make in (("ours", our_steps), ("plain", plain_steps))
        }
        alone = medians(calls, repeat=rounds, warmup=2)
        with _busy_loops(busy):
            crowded = medians(calls, repeat=rounds)
    tokens, name = (
        STEPS * config.step_tokens,
        f"train quickstart, {threads} threads, with {busy} busy loops",
    )
    fair = tokens / alone["ours"] * min(1, cores / (threads + busy))
    return [
        Row(name, tokens / crowded["ours"], "tokens/s", "plain torch loop", tokens / crowded["plain"]),
        Row(
            f"{name}, fair share",
            tokens / crowded["ours"],
            "tokens/s",
            "its part of the speed alone",
            fair,
            goal=0.8,
        ),
    ]


NANOGPT_SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}
NANOGPT_ROWS, NANOGPT_GOALS = 12, {"fused": 1.5, "muon": 1.1}
NANOGPT_FLAGS = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 "
    "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --lr_decay_iters=2000 --dropout=0.0"
)  # as its README says, but for the number of steps
NANOGPT_LOSS, NANOGPT_STEPS, RACE_STEPS, RACE_EVERY = 1.88, 2000, 500, 25
NANOGPT_TURNS = 5  # calls of STEPS steps of ours between two runs of nanoGPT
SETTLING = 50  # first steps of a run of nanoGPT, which do not count: one evaluates, and memory is new


def prepare_nanogpt(original: Path, copy: Path, text: Path) -> None:
    """Copy nanoGPT and let it prepare the text."""
    shutil.copytree(original, copy, ignore=shutil.ignore_patterns(".git"))
    shutil.copy(text, copy / "data" / "shakespeare_char" / "input.txt")
    command = [sys.executable, "data/shakespeare_char/prepare.py"]
    subprocess.run(command, cwd=copy, check=True, stdout=subprocess.DEVNULL)


def run_nanogpt(directory: Path, threads: int, steps: int) -> tuple[float, list[tuple[int, float]]]:
    """Run nanoGPT's train.py; return the median seconds of a step, by its own clock, and (step, validation loss)."""
    done = subprocess.run(
        [sys.executable, "train.py", *NANOGPT_FLAGS.split(), f"--max_iters={steps}"],
        cwd=directory,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=True,
    )
    times = re.findall(r"^iter .* time ([0-9.]+)ms", done.stdout, re.M)[SETTLING:]
    found = re.findall(r"^step (\d+): .* val loss ([0-9.]+)", done.stdout, re.M)
    curve = [(int(step), float(loss)) for step, loss in found]
    return statistics.median(map(float, times)) / 1e3, curve


def nanogpt_speed(directory: Path, threads: int) -> float:
    """Return the tokens per second of nanoGPT's steps."""
    seconds_a_step, _ = run_nanogpt(directory, threads, 150)
    return NANOGPT_ROWS * NANOGPT_SHAPE["block_size"] / seconds_a_step


def race_rows(original: Path, text: Path, threads: int) -> list[Row]:
    """Train nanoGPT by its README and our loop until both have its loss; compare steps and seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_nanogpt(original, folder / "nanogpt", text)
        seconds_a_step, theirs = run_nanogpt(folder / "nanogpt", threads, NANOGPT_STEPS)
        characters = text.read_text(encoding="utf-8")
        parts = {
            "train": characters[: len(characters) * 9 // 10],
            "val": characters[len(characters) * 9 // 10 :],
        }
        for split, part in parts.items():
            (folder / f"{split}.txt").write_text(part, encoding="utf-8")
        held_out = f"text:{folder / 'val.txt'}"
        config = nanogpt_recipe(folder / "text", folder / "train.txt", val_source=held_out)
        given = {name: getattr(config, name) for name in ("data", "batches", "batch_tokens", "micro_batch")}
        given |= NANOGPT_SHAPE | {
            "run": folder / "run",
            "steps": RACE_STEPS,
        }
        given |= {"eval_every": RACE_EVERY, "eval_batches": 60, "checkpoint_every": RACE_STEPS}
        words = itertools.chain.from_iterable(flag(*each) for each in given.items())
        subprocess.run(
            [sys.executable, str(PRESETS.parent / "train.py"), *words],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            check=True,
        )
        ours = [record for record in read_log(folder / "run" / "log.jsonl") if "val_loss" in record]
    reached = next((record for record in ours if record["val_loss"] <= NANOGPT_LOSS), ours[-1])
    steps, label = reached["step"] + 1, f"race with nanoGPT, {threads} thread" + ("" if threads == 1 else "s")
    note = f"loss: nanoGPT's {theirs[-1][1]:.3f} after {NANOGPT_STEPS} steps, ours {reached['val_loss']:.3f}"
    peer, better = "nanoGPT's train.py", {"less_is_better": True, "note": note}
    total = NANOGPT_STEPS * seconds_a_step
    return [
        Row(f"{label}: steps", steps, "steps", peer, NANOGPT_STEPS, goal=4, **better),
        Row(f"{label}: seconds", reached["seconds"], "s", peer, total, goal=3, **better),
    ]


def nanogpt_recipe(data: Path, text: Path, **more: Any) -> TrainConfig:
    """Return nanoGPT's recipe for our loop, on the bytes of the text, prepared with `more` settings."""
    # Bytes and the end of a text.
    prepare(Prepare(out=data, source=(f"text:{text}",), vocab_size=257, split_documents="whole", **more))
    config = quickstart(data, batches="random")
    shape = GPTConfig(vocab_size=config.model.vocab_size, bias=False, **NANOGPT_SHAPE)
    tokens = NANOGPT_ROWS * shape.block_size
    return dataclasses.replace(config, model=shape, batch_tokens=tokens, micro_batch=NANOGPT_ROWS)


def nanogpt_rows(original: Path, text: Path, rounds: int, threads: int) -> list[Row]:
    """Measure tokens per second of nanoGPT's train.py and of our loop at its recipe, in turn."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as sides:
        prepare_nanogpt(original, copy := Path(folder) / "nanogpt", text)
        config = nanogpt_recipe(Path(folder) / "text", text)
        own = devices.choose_precision("auto", devices.choose_device(config.device))
        precisions = dict.fromkeys(("float32", str(own).removeprefix("torch.")))
        ours = {}
        for changes in itertools.product(NANOGPT_GOALS, precisions):
            changed = dataclasses.replace(config, optimizer=changes[0], precision=changes[1])
            ours[changes] = sides.enter_context(contextlib.closing(Side(our_steps, changed, threads)))
            ours[changes]()
        speeds: dict[Any, list[float]] = defaultdict(list)
        for _ in range(rounds):
            speeds["nanogpt"].append(nanogpt_speed(copy, threads))
            for changes, side in ours.items():
                passed = sum(seconds(side) for _ in range(NANOGPT_TURNS))
                speeds[changes].append(NANOGPT_TURNS * STEPS * config.step_tokens / passed)
    middle = {name: statistics.median(values) for name, values in speeds.items()}
    name = "nanoGPT's recipe, {} in {}, {} thread" + ("" if threads == 1 else "s")
    return [
        Row(
            name.format("AdamW" if optimizer == "fused" else "Muon", precision, threads),
            middle[optimizer, precision],
            "tokens/s",
            "nanoGPT's train.py in float32",
            middle["nanogpt"],
            goal=NANOGPT_GOALS[optimizer],
        )
        for optimizer, precision in ours
    ]


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure and report."""
    options = cli.parse(Options, argv, prog="benchmarks/train.py")
    if options.nanogpt:
        compared = functools.partial(nanogpt_rows, options.nanogpt, options.text, options.rounds)
        return report(
            "train against nanoGPT",
            [
                row
                for n in options.threads
                for row in [*compared(n), *race_rows(options.nanogpt, options.text, n)]
            ],
            options.json,
        )
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or Path(folder) / "stories"
        if options.data is None:
            prepare(Prepare(out=data, stories_bytes=2_000_000, vocab_size=2048))
        if options.busy:
            pairs = itertools.product(options.threads, options.busy)
            rows = [row for threads, busy in pairs for row in busy_rows(data, options.rounds, threads, busy)]
            return report("train with busy loops", rows, options.json)
        rows = [row for threads in options.threads for row in speed_rows(data, options.rounds, threads)]
        rows += state_rows(data) + memory_rows(data)
        step, own = overhead(data, steps=8)
        rows.append(Row("train loop's overhead", 100 * own / step, "% of a step", less_is_better=True))
    report("train", rows, options.json)


if __name__ == "__main__":
    main()
