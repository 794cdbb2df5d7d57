"""Measure alignment: how fast answers are sampled, what a step of GRPO costs, and how well each stage follows requests.

    python benchmarks/alignment.py [--json PATH]                  speed alone, in a minute
    python benchmarks/alignment.py --seeds 3 [--json PATH]        and the stages of `make chat`, with DPO on the side

The stages start from --base and its --data (python -m alignment data). A figure of a stage is the median over the seeds
of the fraction of prompts whose greedy answers pass every check; no prompt of the files was trained on.
"""

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alignment import dpo, grpo, pairs, sft, tasks
from alignment.grpo import GRPO, GRPOConfig
from alignment.instructions import Prompt, read_prompts
from alignment.rollouts import sample
from common import cli
from common.bench import Row, report, seconds
from inference import devices
from inference.chat import ChatTemplate
from inference.run import weights_directory
from model import GPT
from model.generate import generate_batch
from training import loop
from training.config import preset_path, read_config, with_vocabulary_of_data

FILES = {"held-out combinations": "test", "held-out wordings": "wordings", "held-out sums": "arithmetic"}
GOALS = {
    "sft test": 0.80,
    "grpo test": 0.95,
    "grpo wordings": 0.80,
    "sft arithmetic": 0.60,
    "grpo arithmetic": 0.90,
}
LONGEST = 200


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure sampling, a step of GRPO, and the stages."""

    base: Path = Path("runs/quickstart")
    """The run that the stages start from."""
    data: Path = Path("tokens/chat")
    """Its instruction data."""
    seeds: int = 0
    """Runs of every stage; 0 measures speed alone."""
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
    devices.set_up(torch.device("cpu"), tf32=True, deterministic=False)
    rows = [*sampling(options), *overhead(options)]
    if options.seeds:
        rows += stages(options)
    report("alignment", rows, options.json)


def sampling(options: Options) -> list[Row]:
    """Measure the tokens per second of rollouts, next to plain batched decoding."""
    template = ChatTemplate.load(options.data)
    model = GPT.from_pretrained(weights_directory(options.base)).with_vocabulary(
        template.tokenizer.vocab_size
    )
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


def overhead(options: Options) -> list[Row]:
    """Measure which part of a GRPO step is neither sampling nor training."""
    with tempfile.TemporaryDirectory() as folder:
        start = read_config(preset_path("grpo"), GRPOConfig)
        config = dataclasses.replace(
            start, init_from=options.base, data=options.data, run=Path(folder) / "run", preset="grpo"
        )
        trainer = loop.Trainer(with_vocabulary_of_data(config), GRPO(with_vocabulary_of_data(config)))
        trainer.model.train()
        parts, whole = [], []
        for _ in range(options.steps + 1):
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


def stages(options: Options) -> list[Row]:
    """Run every stage with every seed, and return its rates next to the goals."""
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, options.seeds + 1):
            runs = train_stages(options, Path(folder) / str(seed), seed)
            for stage, run in runs.items():
                for file in FILES.values():
                    prompts = read_prompts(options.data / "prompts" / f"{file}.jsonl")
                    rates.setdefault(f"{stage} {file}", []).append(passed(run, prompts))
    return [
        Row(
            f"{stage}, {name}",
            statistics.median(rates[f"{stage} {file}"]),
            "passed",
            "goal" if f"{stage} {file}" in GOALS else "",
            GOALS.get(f"{stage} {file}"),
            note=" ".join(f"{rate:.3f}" for rate in rates[f"{stage} {file}"]),
        )
        for stage in ("sft", "dpo", "grpo")
        for name, file in FILES.items()
    ]


def train_stages(options: Options, folder: Path, seed: int) -> dict[str, Path]:
    """Run the stages with one seed; return the run of each."""
    runs = {stage: folder / stage for stage in ("sft", "dpo", "grpo")}
    chosen = folder / "preferences.jsonl"
    common = ["--data", str(options.data), "--seed", str(seed)]
    sft.main([*common, "--init-from", str(options.base), "--run", str(runs["sft"])])
    after = [*common, "--init-from", str(runs["sft"])]
    grpo.main([*after, "--run", str(runs["grpo"])])
    prompts = options.data / "prompts" / "train.jsonl"
    pairs.make(pairs.Make(run=runs["sft"], prompts=prompts, out=chosen, seed=seed))
    dpo.main([*after, "--run", str(runs["dpo"]), "--preferences", str(chosen)])
    return runs


def passed(run: Path, prompts: Sequence[Prompt]) -> float:
    """Return the fraction of prompts whose greedy answers end and pass every check."""
    template, model = ChatTemplate.load(run), GPT.from_pretrained(weights_directory(run))
    found = sample(model, template, [template.prompt(prompt.messages) for prompt in prompts], LONGEST, 0.0)
    right = [
        tasks.passes(answer, prompt.check) for answer, prompt in zip(found.answers, prompts, strict=True)
    ]
    return (torch.tensor(right) & found.finished).float().mean().item()


if __name__ == "__main__":
    main()
