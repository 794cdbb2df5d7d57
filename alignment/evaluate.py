"""How well runs follow instructions: python -m alignment evaluate RUN…

Each run answers the same prompts, of held-out combinations, wordings and sums, once greedily and K times by sampling.
The verifiers judge; the table, the JSON file and the plot show the shares. A run without a chat template, such as the
base, is prompted as is: with the text of the request.
"""

import collections
import dataclasses
import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

import kernels
from alignment.instructions import Prompt, read_prompts
from alignment.tasks import verify
from common import files, plots
from evaluation import judge
from inference.chat import ChatTemplate, Message
from inference.run import check_seed, decode
from inference.scoring import log_probabilities
from inference.text import TextModel
from kernels.dispatch import Kernels
from model import generate
from model.generate import Rules
from model.pack import for_decoding
from training.watch import read_log

BATCH = 64  # answers at a time
FILES = ("test", "wordings", "arithmetic")
SHOWN = 3  # prompts with the answers of all runs
LONGEST = 240  # characters of an answer in the table


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Measure how well runs follow instructions: pass@1, pass@k, each constraint, coherence, length, KL."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of runs, such as the base and each stage."""
    data: Path = Path("tokens/chat")
    """Folder of python -m alignment data, whose prompts are asked."""
    base: Path = Path("runs/quickstart")
    """The run from which the distance (KL) is measured."""
    prompts: int = 500
    """Prompts of each file."""
    samples: int = 4
    """Sampled answers to each prompt, for pass@k; 0 for none."""
    temperature: float = 0.7
    """Temperature of the samples."""
    seed: int = 1234
    """Seed of the samples."""
    out: Path | None = None
    """The JSON file; default: alignment.json in the last run. The plot is next to it."""
    judge: str | None = None
    """Address of an OpenAI-compatible server that grades the answers, such as http://127.0.0.1:8000/v1."""
    judge_model: str | None = None
    """Name of the model that grades."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""
    kernels: Kernels = "auto"
    """Attention and norms by torch's ops, by our kernels (fused), or by our CUDA on the CPU (emulated, slow)."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("there is no run to evaluate: give at least one")
        if self.prompts < 1 or self.samples < 0:
            raise ValueError("--prompts must be at least 1, and --samples 0 or more")
        if (self.judge is None) != (self.judge_model is None):
            raise ValueError("--judge and --judge-model belong together: give both or none")
        check_seed(self.seed)
        Rules(temperature=self.temperature)


class Answerer:
    """A run's model, asked by its chat template, or with the text of the request if it has none."""

    def __init__(self, run: Path, device: str) -> None:
        self.run, self.text_model = run, TextModel.load(run, device)
        self.decoding = for_decoding(self.text_model.model)
        self.template = ChatTemplate.find(run)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids after which the model answers."""
        if self.template:
            return self.template.prompt(messages)
        return self.text_model.encode("\n\n".join([*(message.content for message in messages), ""]))

    @property
    def stops(self) -> set[int]:
        """Return the ids that end an answer."""
        return self.template.stops if self.template else {self.text_model.end}

    def answers(
        self, prompts: Sequence[Prompt], rules: Rules, seed: int
    ) -> list[tuple[list[int], list[int]]]:
        """Return the ids of each prompt and of its answer; one too long for the context has an empty answer."""
        asked = [self.prompt(prompt.messages) for prompt in prompts]
        size = self.text_model.model.config.block_size
        order = sorted(
            (place for place, ids in enumerate(asked) if len(ids) < size), key=lambda i: len(asked[i])
        )
        found: dict[int, list[int]] = {}
        for first in range(0, len(order), BATCH):  # prompts of similar lengths leave the most room
            batch = order[first : first + BATCH]
            room = size - len(asked[batch[-1]])
            new = generate.generate_batch(
                self.decoding,
                [asked[place] for place in batch],
                room,
                stop=self.stops,
                seed=[seed + place for place in batch],
                **dataclasses.asdict(rules),
            )
            found |= zip(batch, new, strict=True)
        return [(ids, found.get(place, [])) for place, ids in enumerate(asked)]

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of an answer."""
        return decode(self.text_model.tokenizer, ids).strip()


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Return the unbiased estimate of the chance that one of k answers passes (Chen et al. 2021).

    >>> pass_at_k(4, 2, 1), pass_at_k(4, 2, 4)
    (0.5, 1.0)
    """
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def evaluate(options: Evaluate) -> None:
    """Measure all runs; print the tables and write JSON and plot."""
    prompts = {
        name: read_prompts(options.data / "prompts" / f"{name}.jsonl")[: options.prompts] for name in FILES
    }
    out = options.out or options.runs[-1] / "alignment.json"
    with kernels.use(options.kernels):
        base = TextModel.load(options.base, options.device)
        results = {str(run): measure(run, prompts, base, options) for run in options.runs}
    files.write_json(out, results)
    draw(results, {str(run): read_log(run / "log.jsonl") for run in options.runs}, out.with_suffix(".png"))
    console = Console()
    console.print(table(results))
    console.print(side_by_side(results))
    print(f"written: {out}, {out.with_suffix('.png')}")


@torch.inference_mode()
def measure(
    run: Path, prompts: Mapping[str, Sequence[Prompt]], base: TextModel, options: Evaluate
) -> dict[str, Any]:
    """Return the figures of one run, and its first answers."""
    answerer = Answerer(run, options.device)
    figures: dict[str, float] = {}
    for name, asked in prompts.items():
        greedy = answerer.answers(asked, Rules(temperature=0), options.seed)
        verdicts = [
            verify(answerer.text(ids), prompt.check) for prompt, (_, ids) in zip(asked, greedy, strict=True)
        ]
        figures[f"{name}: pass@1"] = statistics.fmean(not any(each.values()) for each in verdicts)
        figures |= {f"{name}: {constraint}": share for constraint, share in rates(verdicts).items()}
        if name == FILES[0]:
            first = greedy
        if options.samples:
            figures[f"{name}: pass@{options.samples}"] = sampled(answerer, asked, options)
    figures["length, tokens"] = statistics.fmean(len(ids) for _, ids in first)
    figures["KL from the base, nats per token"] = distance(answerer, base, prompts[FILES[0]], options)
    texts = [answerer.text(ids) for _, ids in first]
    if options.judge:
        figures |= judge.grade_all(options.judge, options.judge_model, texts[:BATCH])
    shown = list(zip((prompt.messages[-1].content for prompt in prompts[FILES[0]]), texts, strict=True))
    return {"figures": figures, "answers": shown[:SHOWN]}


def rates(verdicts: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Return for each constraint the share of answers that meet it.

    >>> rates([{"name": ""}, {"name": "the story is about Tom, not Lily"}])
    {'name': 0.5}
    """
    met = collections.defaultdict(list)
    for verdict in verdicts:
        for constraint, fault in verdict.items():
            met[constraint].append(not fault)
    return {constraint: statistics.fmean(each) for constraint, each in sorted(met.items())}


def sampled(answerer: Answerer, prompts: Sequence[Prompt], options: Evaluate) -> float:
    """Return pass@k of k sampled answers to each prompt."""
    k = options.samples
    passed = [0] * len(prompts)
    for round in range(k):
        seed = options.seed + (round + 1) * len(prompts)
        drawn = answerer.answers(prompts, Rules(temperature=options.temperature), seed)
        for place, (prompt, (_, ids)) in enumerate(zip(prompts, drawn, strict=True)):
            passed[place] += not any(verify(answerer.text(ids), prompt.check).values())
    return statistics.fmean(pass_at_k(k, each, k) for each in passed)


def distance(answerer: Answerer, base: TextModel, prompts: Sequence[Prompt], options: Evaluate) -> float:
    """Return the mean over answers' tokens of log P(run, given the request) - log P(base, of the answer alone).

    It is the divergence KL(run || base) per token, estimated from sampled answers at temperature 1.
    """
    drawn = [pair for pair in answerer.answers(prompts[:BATCH], Rules(), options.seed) if pair[1]]
    if not drawn:
        return 0.0
    mine = log_probabilities(answerer.text_model.model, [[*asked, *ids] for asked, ids in drawn])
    theirs = log_probabilities(base.model, [[base.end, *ids] for _, ids in drawn])
    ratios = [
        own[-len(ids) :].sum() - other.sum() for own, other, (_, ids) in zip(mine, theirs, drawn, strict=True)
    ]
    return (sum(ratios) / sum(len(ids) for _, ids in drawn)).item()


def table(results: Mapping[str, Any]) -> Table:
    """Return the figures, one line each, with a column for each run."""
    shown = Table("figure", *results)
    names = functools.reduce(lambda found, each: found | dict.fromkeys(each["figures"]), results.values(), {})
    for name in names:
        values = [each["figures"].get(name) for each in results.values()]
        percent = name.partition(": ")[2] != ""
        shown.add_row(name, *("" if v is None else f"{v:.1%}" if percent else f"{v:.3g}" for v in values))
    return shown


def side_by_side(results: Mapping[str, Any]) -> Table:
    """Return the first requests with the answers of all runs."""
    shown = Table("request", *results, show_lines=True)
    answers = [each["answers"] for each in results.values()]
    for row in zip(*answers, strict=True):
        asked = row[0][0]
        shown.add_row(asked[-LONGEST:], *(answer[:LONGEST] for _, answer in row))
    return shown


def draw(results: Mapping[str, Any], logs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Save bars of pass@1 by run, and the reward over the steps of the runs that have one."""
    figure = plots.figure(10, 4)
    bars, rewards = figure.subplots(1, 2)
    width = 0.8 / len(results)
    for number, (run, each) in enumerate(results.items()):
        shares = [each["figures"][f"{name}: pass@1"] for name in FILES]
        bars.bar([place + number * width for place in range(len(FILES))], shares, width, label=Path(run).name)
    bars.set(xticks=range(len(FILES)), xticklabels=FILES, ylabel="pass@1", ylim=(0, 1))
    bars.legend()
    for run, records in logs.items():
        points = [(record["step"], record["reward"]) for record in records if "reward" in record]
        if points:
            rewards.plot(*zip(*points, strict=True), label=Path(run).name)
    rewards.set(xlabel="step", ylabel="reward")
    plots.save(figure, path)
