"""Train the runs of a scaling law: a grid of sizes and token counts, each an ordinary run of train.py, within a budget.

    runner = Runner(read_plan("cpu"), Path("runs/scaling"), budget=3e14)
    runner.loss(n_layer=2, n_head=2, n_embd=64, tokens=1_000_000)     # nats per token; asked again, it costs nothing

Runs are in OUT/runs/KEY, and OUT/ledger.json says what each cost and reached. A stopped command may be given again.
"""

import dataclasses
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from common import files
from common.workers import available_cores
from data.tokenfile import read_meta
from experiments.scaling.fit import Runs
from experiments.scaling.ledger import Entry, Ledger, OverBudget, key
from model import GPTConfig, accounting
from training import failures
from training.config import PRESETS, flag
from training.watch import read_log

Count = Literal["all", "non-embedding", "no-head"]
Flops = Literal["6nd", "exact"]
Launch = Callable[[Sequence[str], int], None]
EVALUATIONS = 8  # points of a run's curve
BYTES_PER_TOKEN = 2.7  # upper estimate for a vocabulary of 512 on the built-in stories


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to train: a TOML file in presets/scaling."""

    budgets: list[float]
    """FLOPs of each IsoFLOP curve."""
    shapes: list[list[int]]
    """[n_layer, n_head, n_embd] of every size; a budget takes those whose tokens fit `tokens_per_parameter`."""
    tokens_per_parameter: list[float]
    """Least and most training tokens per parameter."""
    vocab_size: int
    """Of the tokenizer that is trained on the built-in corpus."""
    count: Count = "all"
    """Which parameters are N."""
    flops: Flops = "6nd"
    """What C is: 6 N D, or the exact count of the matrix products."""
    train: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Further settings of train.py, the same for all runs."""

    def __post_init__(self) -> None:
        for name, known in (("count", get_args(Count)), ("flops", get_args(Flops))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(known)}")
        if not self.budgets or not self.shapes or min(self.budgets) <= 0:
            raise ValueError("a plan needs budgets above 0 and shapes")

    @property
    def step_tokens(self) -> int:
        """Return the tokens of an optimizer step."""
        rows = self.train["batch_tokens"] // self.train["block_size"]
        return rows * self.train["block_size"]

    def config(self, shape: Mapping[str, int]) -> GPTConfig:
        """Return the model of a shape."""
        known = {field.name for field in dataclasses.fields(GPTConfig)}
        shared = {name: value for name, value in self.train.items() if name in known}
        sizes = {name: shape[name] for name in ("n_layer", "n_head", "n_embd")}
        return GPTConfig(vocab_size=self.vocab_size, **shared, **sizes)


def read_plan(name: str) -> Plan:
    """Read presets/scaling/NAME.toml, or a path that ends in .toml."""
    path = Path(name) if name.endswith(".toml") else PRESETS / "scaling" / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in (PRESETS / "scaling").glob("*.toml")))
        raise FileNotFoundError(f"no plan {name!r}: choose from {known}, or give the path of a .toml file")
    try:
        return Plan(**tomllib.loads(files.read_text(path)))
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise ValueError(f"{path} is not a plan: {error}") from error


def parameters(config: GPTConfig, count: Count) -> int:
    """Return N, counted as `count` says; embeddings are tokens' and positions'.

    >>> config = GPTConfig.preset("gpt2")
    >>> parameters(config, "all") - parameters(config, "non-embedding") == (50257 + 1024) * 768
    True
    """
    counts = accounting.parameters(config)
    left_out = {
        "all": (),
        "non-embedding": ("token embedding", "position embedding", "head"),
        "no-head": ("head",),
    }[count]
    return counts["total"] - sum(counts[part] for part in left_out)


def flops_per_token(config: GPTConfig, count: Count, flops: Flops) -> float:
    """Return the training FLOPs of one token: 6 N, or exactly those of all matrix products."""
    return (
        sum(accounting.flops_per_token(config).values())
        if flops == "exact"
        else 6 * parameters(config, count)
    )


class Runner:
    """Trains what it is asked for, once, within a budget of FLOPs."""

    def __init__(
        self, plan: Plan, out: Path, budget: float, jobs: int = 1, launch: Launch | None = None
    ) -> None:
        """Open the ledger in `out`; `launch(arguments, threads)` runs Python, by default as a new process."""
        self.plan, self.out, self.jobs = plan, out, jobs
        self.ledger = Ledger(out / "ledger.json", budget)
        self.data = out / "tokens"
        self._start = launch or run_python

    def grid(self) -> list[dict[str, int]]:
        """Return the hyperparameters of all runs of the plan, budget by budget."""
        low, high = self.plan.tokens_per_parameter
        runs = []
        for budget in self.plan.budgets:
            for layers, heads, width in self.plan.shapes:
                shape = {"n_layer": layers, "n_head": heads, "n_embd": width}
                run = self.spend(shape, budget)
                if low <= run["tokens"] / parameters(self.plan.config(shape), self.plan.count) <= high:
                    runs.append(run)
        return runs

    def spend(self, shape: Mapping[str, int], flops: float) -> dict[str, int]:
        """Return the run of this shape that costs `flops`, to the nearest step."""
        per_token = flops_per_token(self.plan.config(shape), self.plan.count, self.plan.flops)
        steps = max(1, round(flops / per_token / self.plan.step_tokens))
        return {**shape, "tokens": steps * self.plan.step_tokens}

    def cost(self, run: Mapping[str, int]) -> float:
        """Return the FLOPs of a run."""
        config = self.plan.config(run)
        return run["tokens"] * flops_per_token(config, self.plan.count, self.plan.flops)

    def loss(self, **hyperparameters: Any) -> float:
        """Return the validation loss of n_layer, n_head, n_embd, tokens and any field of train.py, in nats per token.

        A run that the record has is answered from it. OverBudget, before anything is made, if the rest of the budget
        does not pay for it; RuntimeError if it fails and ValueError if the data is too small, both with a refund.
        """
        return self.measure(hyperparameters).result["val_loss"]

    def prepare(self, runs: Iterable[Mapping[str, Any]]) -> None:
        """Make the token files, large enough that no run reads a token twice."""
        most = max(run["tokens"] for run in runs)
        have = read_meta(self.data).tokens["train"] if (self.data / "meta.json").is_file() else 0
        if have > most:
            return
        if have:
            raise ValueError(
                f"{self.data} holds {have:,} tokens and a run needs {most:,}: choose another --out, or ask for less"
            )
        size = int(most * BYTES_PER_TOKEN * 1.1) + 1_000_000
        words = [
            "--source",
            "stories",
            "--stories-bytes",
            str(size),
            "--vocab-size",
            str(self.plan.vocab_size),
        ]
        self._launch(["-m", "data", "prepare", *words, "--out", str(self.data)])

    def measure(self, hyperparameters: Mapping[str, Any]) -> Entry:
        """Train a run unless the record has it, with data made for it if there is none; return its entry."""
        entry = self.ledger.reserve(hyperparameters, self.cost(hyperparameters))
        if entry.state == "done":
            return entry
        run, started = self.out / "runs" / key(hyperparameters), time.monotonic()
        try:
            if not (run / "report.json").is_file():
                self.prepare([hyperparameters])
                self._launch(["-m", "train", *self._flags(hyperparameters, run)])
        except (RuntimeError, ValueError) as error:
            self.ledger.refund(entry, str(error))
            raise
        seconds = time.monotonic() - started
        return self.ledger.settle(entry, measured(run) | {"wall_seconds": seconds})

    def measure_all(self, runs: Sequence[Mapping[str, Any]]) -> list[Entry]:
        """Train all runs, `jobs` at once; a run that fails is left out and reported.

        OverBudget before anything is trained if they do not all fit.
        """
        paid = {name for name, entry in self.ledger.entries.items() if entry.state != "failed"}
        new = [run for run in runs if key(run) not in paid]
        needed = sum(self.cost(run) for run in new)
        if needed > self.ledger.left:
            raise OverBudget(
                f"{len(new)} runs need {needed:.3g} FLOPs and {self.ledger.left:.3g} are left: give --budget "
                f"{self.ledger.spent + needed:.3g} or more"
            )
        self.prepare(runs)
        with ThreadPoolExecutor(self.jobs) as pool:
            return [entry for entry in pool.map(self._try, runs) if entry]

    def _try(self, run: Mapping[str, Any]) -> Entry | None:
        try:
            entry = self.measure(run)
        except RuntimeError as error:
            print(f"failed, refunded: {dict(run)}: {error}", flush=True)
            return None
        print(f"{dict(run)}: {entry.result['val_loss']:.4f} nats per token", flush=True)
        return entry

    def _launch(self, arguments: Sequence[str]) -> None:
        """Run Python on this job's share of the cores."""
        self._start(arguments, max(1, available_cores() // self.jobs))

    def _flags(self, hyperparameters: Mapping[str, Any], run: Path) -> list[str]:
        """Return the arguments of train.py for a run that is new, or was stopped."""
        given = dict(hyperparameters)
        steps = given.pop("tokens") // self.plan.step_tokens
        fields = {
            **self.plan.train,
            **given,
            "steps": steps,
            "eval_every": max(1, steps // EVALUATIONS),
            "checkpoint_every": max(1, steps // 2),
            "coherence_stories": 0,
            "data": self.data,
            "run": run,
        }
        words = [word for name, value in fields.items() for word in flag(name, value)]
        begun = (
            ["--resume"] if failures.last_state(run).is_file() else ["--overwrite"] if run.is_dir() else []
        )
        return words + begun


def run_python(arguments: Sequence[str], threads: int) -> None:
    """Run Python on this many threads; RuntimeError with the last line of its errors if it fails."""
    paths = os.pathsep.join(filter(None, [str(PRESETS.parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"exit status {done.returncode}")


def measured(run: Path) -> dict[str, Any]:
    """Return what a finished run reached: val_loss, tokens, seconds, and the curve of (tokens, val_loss)."""
    report = files.read_json(run / "report.json")
    curve = [(r["tokens"], r["val_loss"]) for r in read_log(run / "log.jsonl") if "val_loss" in r]
    return {name: report[name] for name in ("val_loss", "tokens", "seconds")} | {"curve": curve}


def finished(plan: Plan, ledger: Ledger, count: Count, flops: Flops) -> Runs:
    """Return the finished runs of a ledger, N and C counted as asked for."""
    done = [entry for entry in ledger.entries.values() if entry.state == "done"]
    rows = []
    for entry in done:
        config, tokens = plan.config(entry.hyperparameters), entry.result["tokens"]
        per_token = flops_per_token(config, count, flops)
        rows.append((parameters(config, count), tokens, tokens * per_token, entry.result["val_loss"]))
    return Runs(*np.array(rows, dtype=np.float64).reshape(-1, 4).T)
