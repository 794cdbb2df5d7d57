"""Architectures: the validation loss of every variant and of the baseline, at equal FLOPs and at equal seconds.

python benchmarks/variants.py [--text FILE] [--seconds N] [--seeds N] [--only NAME …] [--log FILE] [--json PATH]

Every variant trains the quickstart's recipe with a GPT-2 of the quickstart's size changed in a few fields, for as
many seconds as the baseline, on the built-in corpus or on FILE. The learning rate stays constant after its warm-up,
so that a run can be judged at any moment: its log holds the validation loss at ten of them, with the seconds of
training and the FLOPs until then, and both comparisons read that log. They are

loss at equal seconds   after the last second that both runs of a pair have seen
loss at equal FLOPs     after the FLOPs of that run of a pair which has done fewer

A pair is a variant and the baseline with the same seed, so with the same batches. Ours is the mean over the seeds, the
note has the mean difference, its standard deviation over the seeds, and the p-value of a paired t-test: how often seeds
alone would make so large a difference. The row of Kneser-Ney counts the same tokens and has no seed.

Variants take turns within a seed, so that a machine that slows down hits all of them. The log is kept: a comparison
that was stopped goes on where it was. With 3 seeds of 60 s a text takes about an hour and a half.
"""

import dataclasses
import itertools
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # basics/ is not installed

import kernels
from basics.ngram import NGram
from common import cli
from common.bench import Row, report, seconds
from data.batches import TokenFile
from data.prepare import Prepare, prepare
from model import GPTConfig
from model.accounting import flops_per_token
from training import loop
from training.config import PRESETS, TrainConfig, read_config, with_vocabulary_of_data

BASELINE = "baseline"
MODERN = {"norm": "rmsnorm", "positions": "rotary", "bias": False}
EXPERTS = {
    "n_expert": 8,
    "n_expert_active": 2,
    "n_inner": 256,
}  # two of them have the arithmetic of the baseline's MLP
# What each changes in a GPT-2 of the quickstart's size.
VARIANTS: dict[str, dict[str, Any]] = {
    BASELINE: {},
    "RMSNorm": {"norm": "rmsnorm"},
    "rotary positions": {"positions": "rotary"},
    "SwiGLU": {"mlp": "swiglu", "n_inner": 344},
    "ReLU²": {"mlp": "relu2"},
    "grouped queries": {"n_kv_head": 2},
    "QK-norm": {"qk_norm": True},
    "logit soft-capping": {"logit_softcap": 15.0},
    "value embedding": {"value_embedding": True},
    "zero-initialized projections": {"zero_init": True},
    "mimetic initialization": {"mimetic_init": True},
    "untied head": {"tied_head": False},
    "residual scalars": {"residual_scalars": True},
    "Llama": {**MODERN, "mlp": "swiglu", "n_inner": 344},
    "Qwen3": {**MODERN, "mlp": "swiglu", "n_inner": 344, "qk_norm": True},
    "nanochat": {
        **MODERN, "mlp": "relu2", "qk_norm": True, "logit_softcap": 15.0, "value_embedding": True,
        "zero_init": True, "tied_head": False, "residual_scalars": True,
    },
    "experts, balanced by a loss": EXPERTS,
    "experts, balanced by a bias": {**EXPERTS, "expert_balance": "bias"},
    "experts, one shared": {**EXPERTS, "expert_balance": "bias", "n_expert_active": 1, "n_expert_shared": 1},
    "latent attention": {**MODERN, "kv_lora_rank": 48},
    "Mamba-2": {**MODERN, "positions": "none", "layers": "mmmmmmm", "n_layer": 7},
    "hybrid": {**MODERN, "layers": "mmamma", "n_layer": 6},
    "a token ahead": {"n_ahead": 1},
}  # fmt: skip
POINTS = 10  # of a run's curve
EVAL_BATCHES = 8  # about 12,000 tokens, the same for all: an evaluation takes about as long as ten steps
ORDER = 3  # of the n-gram model: more of a context is hardly ever seen twice
JUDGED = 20_000  # tokens by which the n-gram model is judged
AXES = {"seconds": "seconds", "FLOPs": "flops"}

Point = dict[str, float]  # seconds, flops, loss
Curves = dict[str, dict[int, list[Point]]]  # variant -> seed -> the points of its run


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare architectures at equal FLOPs and at equal seconds."""

    text: Path | None = None
    """Text to train on; the built-in corpus when left out."""
    seconds: float = 60.0
    """Training time of each run."""
    seeds: int = 3
    """Runs of each variant, with the seeds 1, 2, …"""
    only: tuple[str, ...] = ()
    """Variants to compare with the baseline (none: all)."""
    vocab_size: int = 2048
    """Ids of the tokenizer, which is trained on the text."""
    log: Path = Path("runs/variants")
    """Directory of token files and of the log, from which a stopped comparison goes on."""
    json: Path | None = None
    """Write the rows here, too."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.only) - VARIANTS.keys())
        if unknown:
            raise ValueError(f"unknown variant {unknown[0]!r}: choose of {', '.join(VARIANTS)}")
        if self.seeds < 1 or not self.seconds > 0:
            raise ValueError(
                f"seeds is {self.seeds} and seconds {self.seconds}: give at least 1, and more than 0"
            )
        if self.text is not None and not self.text.is_file():
            raise FileNotFoundError(f"there is no {self.text}: give a text file")

    @property
    def corpus(self) -> str:
        """Return the name of what is trained on."""
        return "stories" if self.text is None else self.text.stem


def recipe(data: Path, changes: dict[str, Any], seed: int) -> TrainConfig:
    """Return the quickstart's recipe on this data for a variant of GPT-2's layout, at a constant learning rate."""
    config = read_config(PRESETS / "quickstart.toml")
    stories = TokenFile.open(data, "train").meta.source == ["stories"]
    config = dataclasses.replace(
        config,
        data=data,
        seed=seed,
        schedule="constant",
        batches="documents"
        if stories
        else "random",  # not every architecture can keep packed documents apart
        model=GPTConfig.preset("quickstart", **changes),
    )
    return with_vocabulary_of_data(config)


def curve(config: TrainConfig, budget: float) -> list[Point]:
    """Train until the time is over; return the validation loss at POINTS moments. Evaluating is not timed."""
    with kernels.use(config.kernels):
        trainer = loop.Trainer(config)
        trainer.model.train()
        flops = sum(flops_per_token(config.model).values())
        points: list[Point] = []
        with loop.prefetch(trainer.batches, trainer.device) as feed:
            for part in range(1, POINTS + 1):
                while trainer.progress.seconds < budget * part / POINTS:
                    trainer.progress.seconds += seconds(lambda: trainer.step(trainer.next_batch(feed)))
                loss = trainer.objective.estimate(trainer.model, EVAL_BATCHES, val_only=True)["val_loss"]
                done = {"seconds": trainer.progress.seconds, "flops": flops * trainer.progress.tokens}
                points.append({**done, "loss": loss})
    return points


def train_all(options: Options, data: Path, log: Path) -> Curves:
    """Return the curves of the baseline and of the variants that were asked for; train those that the log lacks."""
    names = [name for name in VARIANTS if name == BASELINE or not options.only or name in options.only]
    curves = read_log(log, options.seconds)
    for seed, name in itertools.product(range(1, options.seeds + 1), names):
        if seed in curves[name]:
            continue
        points = curve(recipe(data, VARIANTS[name], seed), options.seconds)
        curves[name][seed] = points
        record = {"variant": name, "seed": seed, "budget": options.seconds, "points": points}
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{name}, seed {seed}: {points[-1]['loss']:.4f}", file=sys.stderr)
    return {name: {seed: curves[name][seed] for seed in range(1, options.seeds + 1)} for name in names}


def read_log(log: Path, budget: float) -> Curves:
    """Return the curves of runs of this many seconds that the log holds."""
    curves: Curves = defaultdict(dict)
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    for record in map(json.loads, lines):
        if record["budget"] == budget:
            curves[record["variant"]][record["seed"]] = record["points"]
    return curves


def rows_of(curves: Curves, corpus: str) -> list[Row]:
    """Return two rows for each variant: at equal seconds and at equal FLOPs."""
    rows = []
    for (name, runs), (words, axis) in itertools.product(curves.items(), AXES.items()):
        if name == BASELINE:
            continue
        pairs = [at_equal(axis, run, curves[BASELINE][seed]) for seed, run in runs.items()]
        ours, theirs = (statistics.mean(side) for side in zip(*pairs, strict=True))
        title = f"loss at equal {words}, {corpus}: {name}"
        note = compared([a - b for a, b in pairs])
        rows.append(Row(title, ours, "nats a token", BASELINE, theirs, less_is_better=True, note=note))
    return rows


def at_equal(axis: str, ours: list[Point], theirs: list[Point]) -> tuple[float, float]:
    """Return the losses of two runs at the most of `axis` that both have seen, interpolated between points.

    >>> fast = [{"flops": 1.0, "loss": 4.0}, {"flops": 3.0, "loss": 2.0}]
    >>> slow = [{"flops": 1.0, "loss": 3.0}, {"flops": 2.0, "loss": 2.5}]
    >>> at_equal("flops", fast, slow)
    (3.0, 2.5)
    """
    budget = min(run[-1][axis] for run in (ours, theirs))
    first, second = (
        float(np.interp(budget, [p[axis] for p in run], [p["loss"] for p in run])) for run in (ours, theirs)
    )
    return first, second


def compared(differences: Sequence[float]) -> str:
    """Return the mean of paired differences, their spread and p-value, as a note.

    >>> compared([-0.02, -0.03, -0.025])
    'difference -0.025, spread 0.005, p 0.013'
    """
    mean = f"difference {statistics.mean(differences):+.3f}"
    if len(differences) < 2:
        return f"{mean}, one seed"
    return f"{mean}, spread {statistics.stdev(differences):.2g}, p {p_value(differences):.2g}"


def p_value(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of a paired t-test: that the mean difference is 0.

    The distribution of t with ν = n - 1 degrees of freedom has a closed form (Abramowitz and Stegun 26.7.3, 26.7.4).

    >>> round(p_value([1.0, 2.0, 3.0]), 4)  # t is 2 √3 with ν = 2
    0.0742
    """
    freedom, spread = len(differences) - 1, statistics.stdev(differences)
    if spread == 0:
        return float(statistics.mean(differences) == 0)
    t = abs(statistics.mean(differences)) / spread * math.sqrt(len(differences))
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * k / (k + 1)
    inside = math.sin(angle) * total
    return 1 - (2 / math.pi * (angle + inside) if odd else inside)


def counting(data: Path, curves: Curves, corpus: str) -> Row:
    """Return the row of the n-gram model, compared with the baseline at the end of its runs."""
    train, val = (TokenFile.open(data, split).tokens.tolist() for split in ("train", "val"))
    loss = math.log(NGram(ORDER, train).perplexity(val[:JUDGED]))
    baseline = statistics.mean(run[-1]["loss"] for run in curves[BASELINE].values())
    name = f"loss of Kneser-Ney, {corpus}: {ORDER}-grams"
    return Row(name, loss, "nats a token", BASELINE, baseline, less_is_better=True)


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Train what the log lacks, and report."""
    options = cli.parse(Options, argv, prog="benchmarks/variants.py")
    folder = options.log / options.corpus
    data = folder / f"tokens-{options.vocab_size}"
    if not data.is_dir():
        source = "stories" if options.text is None else f"text:{options.text}"
        prepare(Prepare(out=data, source=(source,), vocab_size=options.vocab_size))
    curves = train_all(options, data, folder / f"log-{options.vocab_size}.jsonl")
    rows = [*rows_of(curves, options.corpus), counting(data, curves, options.corpus)]
    report("variants", rows, options.json)


if __name__ == "__main__":
    main()
