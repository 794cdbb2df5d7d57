"""How much data does a model need? The same report over runs on more and more of it.

    python -m experiments ablate --data tokens/stories --docs 1k 10k --run runs/ablation --steps 500

RUN/docs-N is the run on the first N documents; RUN/ablation.json, .html and .png compare their figures.
"""

import dataclasses
import html
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bpe import Tokenizer
from common import files, plots
from data.tokenfile import TokenFile, read_meta
from evaluation.suite import Evaluate, assess
from kernels.dispatch import Kernels

SUFFIXES = {"k": 1_000, "m": 1_000_000}


@dataclasses.dataclass(frozen=True)
class Ablate:
    """Train on the first 1k, 10k, … documents of the same data, and evaluate every run in the same way."""

    docs: tuple[str, ...]
    """Numbers of documents, such as 1k 10k 100k."""
    data: Path = Path("tokens/stories")
    """Prepared data to take them from."""
    run: Path = Path("runs/ablation")
    """Directory that will hold one run for each number."""
    preset: str = "quickstart"
    """Settings of train.py."""
    steps: int | None = None
    """Steps of each run (those of the preset)."""
    pairs: int = 100
    """Minimal pairs of each kind."""
    samples: int = 100
    """Stories to sample from each run."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""
    kernels: Kernels = "auto"
    """Attention and norms by torch's ops, by our kernels (fused), or by our CUDA on the CPU (emulated, slow)."""

    def __post_init__(self) -> None:
        if not self.sizes:
            raise ValueError("docs is empty: give numbers of documents, such as 1k 10k")
        self.evaluation(self.run)  # refuses what it cannot do before anything is trained

    def evaluation(self, run: Path) -> Evaluate:
        """Return the options by which a run is evaluated."""
        return Evaluate(run, pairs=self.pairs, samples=self.samples, device=self.device, kernels=self.kernels)

    @property
    def sizes(self) -> list[int]:
        """Return the numbers of documents, ascending."""
        return sorted({size(word) for text in self.docs for word in text.split(",")})


def size(word: str) -> int:
    """Return a number of documents from how a user writes it.

    >>> size("500"), size("10k"), size("1.5M")
    (500, 10000, 1500000)
    """
    factor = SUFFIXES.get(word[-1:].lower(), 1)
    try:
        count = float(word[:-1] if factor > 1 else word) * factor
    except ValueError:
        count = 0.0
    if not (1 <= count < math.inf and count == int(count)):
        raise ValueError(f"docs is {word!r}: give whole numbers of at least 1, such as 500, 10k or 1m")
    return int(count)


def ablate(options: Ablate) -> None:
    """Train, evaluate and compare."""
    sizes, meta = options.sizes, read_meta(options.data)
    if sizes[-1] > meta.documents["train"]:
        raise ValueError(
            f"{options.data} has {meta.documents['train']:,} documents to train on, not {sizes[-1]:,}: "
            "prepare more, or ask for fewer"
        )
    figures = {count: _run(options, count) for count in sizes}
    files.write_json(options.run / "ablation.json", {str(count): found for count, found in figures.items()})
    files.write_text(options.run / "ablation.html", html_page(figures))
    plot(figures, options.run / "ablation.png")
    Console().print(table(figures))
    print(f"written: {options.run}/ablation.json, ablation.html, ablation.png")


def _run(options: Ablate, count: int) -> dict[str, float]:
    """Train one run; return its figures."""
    from training.config import parse_config
    from training.loop import train

    data, run = options.run / f"tokens-{count}", options.run / f"docs-{count}"
    truncate(options.data, data, count)
    steps = [] if options.steps is None else ["--steps", str(options.steps)]
    flags = ["--preset", options.preset, "--data", str(data), "--run", str(run), "--device", options.device]
    flags += ["--kernels", options.kernels]
    train(parse_config([*flags, *steps, "--overwrite"]))
    return assess(options.evaluation(run)).figures


def truncate(source: Path, target: Path, count: int) -> None:
    """Write to `target` the token files of `source` with the first `count` training documents only."""
    train, meta = TokenFile.open(source, "train"), read_meta(source)
    ends = np.flatnonzero(train.tokens == meta.end_of_text)
    tokens = np.asarray(train.tokens[: ends[count - 1] + 1])
    vocab = Tokenizer.load(source / "tokenizer.json").vocab
    widths = np.array([len(vocab[id]) for id in range(meta.vocab_size)])
    widths[meta.end_of_text] = 0
    changed = {
        "tokens": {**meta.tokens, "train": len(tokens)},
        "documents": {**meta.documents, "train": count},
        "bytes": {**meta.bytes, "train": int(widths[tokens].sum())},
    }
    with files.atomic_directory(target) as aside:
        tokens.tofile(aside / "train.bin")
        for name in ("val.bin", "tokenizer.json"):
            shutil.copy(source / name, aside / name)
        files.write_json(aside / "meta.json", {**dataclasses.asdict(meta), **changed})


def table(figures: Mapping[int, Mapping[str, float]]) -> Table:
    """Return a table with a column for each number of documents."""
    shown = Table("figure", *(f"{count:,} docs" for count in figures))
    for name in _names(figures):
        shown.add_row(name, *(f"{found[name]:.4g}" for found in figures.values()))
    return shown


def _names(figures: Mapping[int, Mapping[str, float]]) -> Sequence[str]:
    return list(next(iter(figures.values())))


def html_page(figures: Mapping[int, Mapping[str, float]]) -> str:
    """Return a page with the table and the plot, a file in the same directory."""
    head = "".join(f"<th>{count:,} docs</th>" for count in figures)
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td>{found[name]:.4g}</td>" for found in figures.values())
        + "</tr>"
        for name in _names(figures)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Data ablation</title>\n'
        "<style>:root{color-scheme:light dark}body{font:16px/1.6 system-ui,sans-serif;margin:2rem}"
        "td,th{padding:0 1rem;text-align:right}"
        "img{max-width:100%}</style></head>\n"
        f"<body><h1>Data ablation</h1>\n<table><tr><th></th>{head}</tr>{rows}</table>\n"
        '<img src="ablation.png" alt="each figure over the number of documents"></body></html>\n'
    )


def plot(figures: Mapping[int, Mapping[str, float]], path: Path) -> None:
    """Draw each figure over the number of documents."""
    names = _names(figures)
    columns = 4
    figure = plots.figure(4 * columns, 3 * -(-len(names) // columns))
    for number, name in enumerate(names, 1):
        axes = figure.add_subplot(-(-len(names) // columns), columns, number)
        axes.plot(list(figures), [found[name] for found in figures.values()], marker="o")
        axes.set(title=name, xscale="log", xlabel="documents")
        axes.set_xticks(list(figures), [f"{count:,}" for count in figures])
        axes.minorticks_off()
        if name.startswith(("pairs", "coherence")):
            axes.set_ylim(-0.05, 1.05)
        axes.grid(alpha=0.3)
    plots.save(figure, path)
