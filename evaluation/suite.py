"""What a trained model can do, as one report: python -m evaluation RUN

Likelihood (bits per byte, perplexity of held-out text), grammar and meaning (minimal pairs), coherence (the story
checker), variety (distinct-n, repetition) and copying (the longest run of tokens that training data holds too).
Grammar, meaning and coherence are those of the built-in stories: models of other text are not asked for them.
RUN/evaluation.json and RUN/evaluation.html hold what the table shows.
"""

import dataclasses
import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

import kernels
from common import files
from data.batches import TokenFile
from evaluation import losses, minimal_pairs, originality
from inference.run import check_seed, decode, same_tokenizer, settings
from inference.text import TextModel
from kernels.dispatch import Kernels
from model.generate import Rules

BATCH = 32  # sequences at a time
SEARCHED = 1 << 22  # tokens of the training file that are searched for copies
SHOWN = 5  # stories and failed pairs in the report


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate a run's model: likelihood, grammar, coherence, variety, copying; as table, JSON and HTML."""

    run: tyro.conf.Positional[Path]
    """Directory of a training run."""
    data: Path | None = None
    """Prepared data to evaluate on (default: that of the run)."""
    pairs: int = 100
    """Minimal pairs of each of the seven kinds."""
    pairs_file: Path | None = None
    """More pairs: kind, good text, bad text in each line, with tabs between."""
    samples: int = 100
    """Stories to sample."""
    temperature: float = 0.7
    """Temperature of the samples."""
    seed: int = 1234
    """Seed of the samples."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""
    kernels: Kernels = "auto"
    """Attention and norms by torch's ops, by our kernels (fused), or by our CUDA on the CPU (emulated, slow)."""

    def __post_init__(self) -> None:
        for name in ("pairs", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        check_seed(self.seed)
        Rules(temperature=self.temperature)


MEANINGS = {
    "bits per byte": "of the validation text; fewer are better, also across tokenizers",
    "perplexity": "as unsure as a choice among that many equally likely tokens",
    "nats per token": "mean loss on the validation file, as in training",
    "pairs: agreement": "how often 'Lily was' is likelier than 'Lily were'",
    "pairs: article": "… 'a kite' than 'an kite'",
    "pairs: tense": "… 'she felt' than 'she feels': stories are told in the past",
    "pairs: pronoun": "… 'she' than 'he', of Lily",
    "pairs: reference": "… the name that was introduced than another one",
    "pairs: word order": "… 'under the bed' than 'bed under the'",
    "pairs: selection": "… 'ate a cookie' than 'ate a rusty nail'",
    "pairs: all": "all pairs together; 0.5 is guessing",
    "coherence": "fraction of samples that the checker of the built-in stories passes",
    "distinct-1": "different words, of all words of the samples",
    "distinct-2": "different pairs of neighbouring words, of all pairs",
    "distinct-3": "different triples of neighbouring words, of all triples",
    "repetition": "four-word sequences that the same sample had before, of all",
    "longest copy, tokens": "longest sequence of a sample that the training data hold too, on average",
    "longest copy, share": "the same, relative to the length of the sample",
}


def meaning(figure: str) -> str:
    """Return what a figure says.

    >>> meaning("distinct-2"), meaning("pairs: a kind of your own")
    ('different pairs of neighbouring words, of all pairs', 'how often the right text is likelier')
    """
    return MEANINGS.get(figure, "how often the right text is likelier")


@dataclasses.dataclass(frozen=True)
class Assessment:
    """The figures, and examples of them."""

    figures: dict[str, float]
    """Name -> value; fractions are between 0 and 1."""
    failed_pairs: list[dict[str, Any]]
    stories: list[str]

    def table(self, title: str) -> Table:
        """Return the figures as a table, a line each."""
        table = Table("figure", "value", "meaning", title=title, title_justify="left")
        for name, value in self.figures.items():
            table.add_row(name, f"{value:.4g}", meaning(name))
        return table


def evaluate(options: Evaluate) -> None:
    """Assess a run, print the table and write both files."""
    found = assess(options)
    files.write_json(options.run / "evaluation.json", dataclasses.asdict(found))
    files.write_text(options.run / "evaluation.html", html_page(options.run.name, found))
    Console().print(found.table(str(options.run)))
    print(f"written: {options.run / 'evaluation.json'}, {options.run / 'evaluation.html'}")


def assess(options: Evaluate) -> Assessment:
    """Return all figures of a run's model, computed by the kernels that the options name."""
    with kernels.use(options.kernels):
        return _assess(options)


def _assess(options: Evaluate) -> Assessment:
    rules = Rules(temperature=options.temperature)
    pairs = minimal_pairs.read(options.pairs_file) if options.pairs_file else []
    text_model = TextModel.load(options.run, options.device)
    config = settings(options.run)
    directory = options.data or Path(config["data"])
    train, val = (TokenFile.open(directory, split) for split in ("train", "val"))
    check_tokenizer(options.run, directory)
    coherence = losses.coherence_checker(val.meta.source)
    if coherence:
        pairs = minimal_pairs.make(options.pairs) + pairs
    verdicts = minimal_pairs.judge(text_model, pairs)
    rows = sample(text_model, options.samples, rules, options.seed)
    texts = [decode(text_model.tokenizer, ids).strip() for ids in rows]
    figures = {
        **likelihood(text_model, val, config["batches"]),
        **{f"pairs: {kind}": share for kind, share in minimal_pairs.accuracy(verdicts).items()},
        **({"coherence": coherence(texts)} if coherence else {}),
        **variety(texts),
        **copying(rows, train),
    }
    failed = [dataclasses.asdict(verdict) for verdict in verdicts if not verdict.passed]
    return Assessment(figures, failed[:SHOWN], texts[:SHOWN])


def check_tokenizer(run: Path, data: Path) -> None:
    """Raise ValueError if the ids of run and data have different meanings."""
    if not same_tokenizer(run, data):
        raise ValueError(f"{run} and {data} have different tokenizers: give --data that the run can read")


def likelihood(text_model: TextModel, val: TokenFile, kind: str) -> dict[str, float]:
    """Return the loss on the validation file, over windows of the `kind` that the run was trained on."""
    loss = losses.full_loss(text_model.model, val, kind, BATCH)
    return {
        "bits per byte": losses.bits_per_byte(loss, val.meta.tokens["val"], val.meta.bytes["val"]),
        "perplexity": math.exp(loss),
        "nats per token": loss,
    }


def sample(text_model: TextModel, count: int, rules: Rules, seed: int) -> list[list[int]]:
    """Return the ids of `count` stories, each as long as the context at most."""
    start = text_model.encode("")
    rows = []
    for first in range(0, count, BATCH):
        seeds = range(seed + first, seed + min(count, first + BATCH))
        room = text_model.model.config.block_size - len(start)
        rows += text_model.generate([start] * len(seeds), room, rules, seeds=seeds).finish()
    return [row.ids for row in rows]


def variety(texts: Sequence[str]) -> dict[str, float]:
    """Return distinct-1 to distinct-3, and the repetition of four-word sequences within a story."""
    shares = {f"distinct-{n}": originality.distinct(texts, n) for n in (1, 2, 3)}
    return {**shares, "repetition": originality.repetition(texts)}


def copying(rows: Sequence[Sequence[int]], train: TokenFile) -> dict[str, float]:
    """Return the mean over stories of the longest sequence copied from the training data."""
    longest = originality.longest_copies(rows, train.tokens[:SEARCHED].tolist())
    sizes = [(copied, len(ids)) for copied, ids in zip(longest, rows, strict=True) if ids]
    if not sizes:
        return {"longest copy, tokens": 0.0, "longest copy, share": 0.0}
    return {
        "longest copy, tokens": sum(copied for copied, _ in sizes) / len(sizes),
        "longest copy, share": sum(copied / size for copied, size in sizes) / len(sizes),
    }


def html_page(name: str, found: Assessment) -> str:
    """Return one self-contained page; whatever a model or a user wrote is escaped."""
    figures = "".join(
        f"<tr><td>{html.escape(figure)}</td><td>{value:.4g}</td><td>{html.escape(meaning(figure))}</td></tr>"
        for figure, value in found.figures.items()
    )
    failed = "".join(map(_failed_row, found.failed_pairs)) or "<tr><td>none</td></tr>"
    stories = "".join(f"<blockquote>{html.escape(text)}</blockquote>" for text in found.stories)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body><h1>{html.escape(name)}</h1>\n<table>{figures}</table>\n"
        f"<h2>Pairs where the wrong text was likelier</h2>\n<table>{failed}</table>\n"
        f"<h2>Stories</h2>\n{stories}</body></html>\n"
    )


_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.6 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
td{padding:.1rem 1.5rem .1rem 0;vertical-align:top}
blockquote{white-space:pre-wrap;border-left:3px solid #bbb;margin:1rem 0;padding:0 1rem}
"""


def _failed_row(verdict: dict[str, Any]) -> str:
    """Return a table row: kind, both texts from a little before they differ, both log-probabilities."""
    pair = verdict["pair"]
    letters = zip(pair["good"], pair["bad"], strict=False)
    same = next((place for place, (good, bad) in enumerate(letters) if good != bad), 0)
    texts = [html.escape(pair[side][max(0, same - 40) :]) for side in ("good", "bad")]
    cells = [html.escape(pair["kind"]), *texts, f"{verdict['good']:.2f}", f"{verdict['bad']:.2f}"]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
