"""Measure alignment: how fast answers are sampled, what a step of GRPO costs, and how well each stage follows requests.

    python benchmarks/alignment.py [--json PATH]                  speed alone, in a minute
    python benchmarks/alignment.py --seeds 3 [--json PATH]        and the stages of `make chat`, with DPO on the side

With seeds, each stage is the command of the Makefile in a separate process, so that its seconds and its peak memory
are those of `make chat`: a base, its instruction data, fine-tuning, GRPO; and from the fine-tuned model, on the side,
best of n and DPO on pairs of that model's answers. Figures are medians over the seeds of greedy answers to prompts that
were not trained on. Everything is kept in --work: a benchmark that was stopped continues with the stage it was at.
"""

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alignment.grpo import GRPO, GRPOConfig
from alignment.rollouts import sample
from common import cli, files
from common.bench import Row, report, seconds
from inference import devices
from inference.chat import ChatTemplate
from inference.run import weights_directory
from model import GPT
from model.generate import generate_batch
from training import loop
from training.config import parse_config, with_vocabulary_of_data
from training.run import check_settings

ROOT = Path(__file__).resolve().parents[1]
FILES = {"new combinations": "test", "new wordings": "wordings", "new sums": "arithmetic"}
RUNS = ("base", "sft", "best-of", "dpo", "grpo")
# The stages of `make chat` after the base, whose seconds add up.
CHAT = ("data", "sft", "grpo", "told")
GOALS = {
    "sft: new combinations": 0.80,
    "grpo: new combinations": 0.95,
    "grpo: new wordings": 0.80,
    "sft: new sums": 0.60,
    "grpo: new sums": 0.90,
}
DPO_GAINS, COHERENCE_MAY_LOSE = 0.03, 0.02
MOST_SECONDS, MOST_MEGABYTES = 360, 2000
Figures = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure sampling, a step of GRPO, and the stages."""

    seeds: int = 0
    """Runs of every stage, with the seeds from 1 on; 0 measures speed alone."""
    work: Path = Path("runs/alignment")
    """Folder of the runs of the stages."""
    base: Path = Path("runs/quickstart")
    """The run that speed is measured with, if no stages are run."""
    data: Path = Path("tokens/chat")
    """Its instruction data."""
    rows: int = 64
    """Answers sampled at once."""
    tokens: int = 128
    """Tokens of each."""
    steps: int = 5
    """Steps of GRPO that are timed."""
    json: Path | None = None
    """Write the table here as JSON."""


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = cli.parse(Options, argv, prog="benchmarks/alignment.py")
    rows = stages(options.work, options.seeds) if options.seeds else []
    base, data = (
        (options.work / "1" / "sft", options.work / "1" / "data") if rows else (options.base, options.data)
    )
    devices.set_up(torch.device("cpu"), tf32=True, deterministic=False)
    rows += [*sampling(base, data, options), *overhead(base, data, options.steps)]
    report("alignment", rows, options.json)


# Speed


def sampling(base: Path, data: Path, options: Options) -> list[Row]:
    """Measure the tokens per second of rollouts, next to plain batched decoding."""
    template = ChatTemplate.load(data)
    model = GPT.from_pretrained(weights_directory(base)).with_vocabulary(template.tokenizer.vocab_size)
    prompts = [[1 + i % 100] * 40 for i in range(options.rows)]
    template.end_of_turn = template.end_of_text = -1  # no answer ends early
    calls = {
        "rollouts": lambda: sample(model, template, prompts, options.tokens, 1.0),
        "plain": lambda: generate_batch(model, prompts, options.tokens, temperature=1.0, seed=1),
    }
    speeds = {
        name: [options.rows * options.tokens / timed(call) for _ in range(4)] for name, call in calls.items()
    }
    ours, plain = (statistics.median(speeds[name][1:]) for name in ("rollouts", "plain"))
    return [
        Row(
            f"rollouts, {options.rows} rows",
            ours,
            "tokens/s",
            "plain decoding",
            plain,
            note="at least 20,000 wanted",
        )
    ]


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of a call with the products that training uses."""
    device = torch.device("cpu")
    with devices.autocast(device, devices.choose_precision("auto", device)):
        return seconds(call)


def overhead(base: Path, data: Path, steps: int) -> list[Row]:
    """Measure which part of a GRPO step is neither sampling nor training."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--init-from", base, "--data", data, "--run", Path(folder) / "run"]
        config = with_vocabulary_of_data(
            parse_config(
                list(map(str, words)), "grpo", check_settings, kind=GRPOConfig, preset="alignment/grpo"
            )
        )
        trainer = loop.Trainer(config, GRPO(config))
        trainer.model.train()
        parts, whole = [], []
        for _ in range(steps + 1):
            began = time.perf_counter()
            trainer.step(next(trainer.batches))
            whole.append(time.perf_counter() - began)
            figures = trainer.objective.figures()
            parts.append(figures["reward_seconds"] + figures["preparing_seconds"])
    share = statistics.median(part / total for part, total in zip(parts[1:], whole[1:], strict=True))
    return [
        Row("grpo step", statistics.median(whole[1:]), "s", less_is_better=True),
        Row("grpo step: rewards and bookkeeping", share, "of it", "goal", 0.10, less_is_better=True),
    ]


# The stages


def stages(work: Path, seeds: int) -> list[Row]:
    """Run what is missing of every seed's stages; return their figures next to the goals."""
    found: dict[str, list[float]] = {}
    for seed in range(1, seeds + 1):
        for name, value in measure(work / str(seed), seed).items():
            found.setdefault(name, []).append(value)
    return rows_of(found)


def measure(folder: Path, seed: int) -> Figures:
    """Run the stages of one seed that have not been run; return all figures."""
    folder.mkdir(parents=True, exist_ok=True)
    used = {stage: run_once(folder, stage, words) for stage, words in commands(folder, seed).items()}
    results = files.read_json(folder / "figures.json")
    figures = {}
    for run in RUNS:
        of_run = results[str(folder / run)]["figures"]
        figures |= {f"{run}: {name}": of_run[f"{file}: pass@1"] for name, file in FILES.items()}
        figures[f"{run}: coherent"] = of_run["test: coherent"]
    figures["base: coherent, unasked"] = files.read_json(folder / "base" / "report.json")["coherence"]
    figures |= {f"{stage}: seconds": each["seconds"] for stage, each in used.items()}
    figures["chat: seconds"] = sum(used[stage]["seconds"] for stage in CHAT)
    figures |= {f"{stage}: threads": each["threads"] for stage, each in used.items()}
    figures["chat: threads"] = min(used[stage]["threads"] for stage in CHAT)
    figures["chat: peak memory"] = max(used[stage]["megabytes"] for stage in CHAT)
    return figures


def commands(folder: Path, seed: int) -> dict[str, list[str | Path]]:
    """Return the command of every stage, in their order; `told` and `figures` ask the runs."""
    base, data, sft, grpo = (folder / name for name in ("base", "data", "sft", "grpo"))
    pairs = folder / "preferences.jsonl"
    prompts = data / "prompts" / "train.jsonl"
    again = ["--seed", str(seed), "--overwrite"]
    learned = ["--data", data, *again]
    align = ["-m", "alignment"]
    ask = [*align, "evaluate", "--data", data, "--base", base, "--samples", "0"]
    return {
        "base": [ROOT / "train.py", "--run", base, *again],
        "data": [*align, "data", "--base", base, "--out", data, *again],
        "sft": [*align, "sft", "--init-from", base, "--run", sft, *learned],
        "grpo": [*align, "grpo", "--init-from", sft, "--run", grpo, *learned],
        "told": [*ask, base, sft, grpo, "--prompts", "200", "--out", folder / "told.json"],
        "pairs": [*align, "pairs", "--run", sft, "--prompts", prompts, "--out", pairs, *again],
        "dpo": [*align, "dpo", "--init-from", sft, "--preferences", pairs, "--run", folder / "dpo", *learned],
        "best-of": [*align, "best-of", "--init-from", sft, "--run", folder / "best-of", "--data", folder / "kept",
                    "--prompts", prompts, *again],
        "figures": [*ask, *(folder / run for run in RUNS), "--out", folder / "figures.json"],
    }  # fmt: skip


def run_once(folder: Path, stage: str, words: Sequence[str | Path]) -> Figures:
    """Run a command, unless it has been; return its seconds and its peak memory with those of its processes."""
    done = folder / f"{stage}.done.json"
    if done.exists():
        return files.read_json(done)
    print(f"{folder}: {stage}", flush=True)
    began = time.perf_counter()
    with (folder / f"{stage}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)], stdout=log, stderr=subprocess.STDOUT, env=environment()
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise ValueError(f"{stage} failed: {log.name} says why; run the benchmark again to continue")
    used = {
        "seconds": time.perf_counter() - began,
        "megabytes": usage.ru_maxrss / 1024,
        "threads": torch.get_num_threads(),
    }
    files.write_json(done, used)
    return used


def environment() -> dict[str, str]:
    """Return the environment in which this copy of the project is imported, wherever it is called from."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path}


def rows_of(found: dict[str, list[float]]) -> list[Row]:
    """Return the medians over the seeds, with every seed's figure as a note."""
    threads = {name.split(":")[0]: found.pop(name) for name in list(found) if name.endswith(": threads")}
    middle = {name: statistics.median(values) for name, values in found.items()}
    goals = GOALS | {
        "dpo: new combinations": middle["sft: new combinations"] + DPO_GAINS,
        "grpo: coherent": middle["base: coherent, unasked"] - COHERENCE_MAY_LOSE,
    }
    limits = {"chat: seconds": MOST_SECONDS, "chat: peak memory": MOST_MEGABYTES}
    rows = [
        row(name, values, middle[name], goals.get(name), limits.get(name)) for name, values in found.items()
    ]
    return [
        dataclasses.replace(each, note=f"{each.note}, threads {listed(threads[each.name.split(':')[0]])}")
        if each.unit == "s"
        else each
        for each in rows
    ]


def listed(counts: list[float]) -> str:
    """Return whole numbers with spaces between."""
    return " ".join(f"{count:.0f}" for count in counts)


def row(name: str, values: list[float], middle: float, least: float | None, most: float | None) -> Row:
    """Return one figure next to the least or the most that it should be."""
    unit = "s" if name.endswith("seconds") else "MB" if name.endswith("memory") else "of answers"
    goal: dict[str, Any] = {"peer": "goal", "peer_value": least or most} if least or most else {}
    note = " ".join(f"{value:.3f}" if unit == "of answers" else f"{value:.0f}" for value in values)
    return Row(name, middle, unit, **goal, less_is_better=unit != "of answers", note=note)


if __name__ == "__main__":
    main()
