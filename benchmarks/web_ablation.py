"""Does it matter what is dropped? One model on raw, filtered and deduplicated pages, the same number of tokens each.

    python benchmarks/web_ablation.py [--pages 6000] [--steps 700] [--seeds 3] [--json PATH]

Of one made-up web three corpora are made: all text of all pages; what language and quality rules leave; what
deduplication leaves of that. Each is mixed with built-in stories, and the quickstart model is trained on it with the
same tokenizer and number of tokens, once for each seed, which decides the first weights and the order of the texts. The
figure is bits per byte on clean stories that are in none of them: the mean of the seeds, and their standard deviation.
The defaults take a quarter of an hour on one core.
"""

import dataclasses
import itertools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bpe import END_OF_TEXT, train
from common import cli, files
from common.bench import Row, report
from common.workers import ordered_map
from data.stories import corpus, stories
from data.web import pipeline, settings, synthetic

ROOT = Path(__file__).resolve().parents[1]
QUIET = ("--eval-every", 100_000, "--checkpoint-every", 100_000, "--coherence-stories", 1)
HELD_OUT_SEED, TOKENIZER_SEED = 777, 778  # made-up pages begin at 1000


@dataclasses.dataclass(frozen=True)
class Options:
    """Train the quickstart model on raw, filtered and deduplicated pages."""

    pages: int = 6000
    """Made-up pages."""
    steps: int = 700
    """Steps of each run."""
    seeds: int = 3
    """Runs on each corpus."""
    web: float = 3.0
    """Bytes of pages to one byte of stories."""
    folder: Path | None = None
    """Keep everything here; without it a temporary folder is used."""
    json: Path | None = None
    """Write the table here as JSON."""

    def __post_init__(self) -> None:
        for name in ("pages", "steps", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, not {getattr(self, name)}")


def variants() -> dict[str, settings.Pipeline]:
    """Return the pipelines by name."""
    whole = settings.read(settings.PRESET)
    nothing = settings.Pipeline.nothing()
    raw = dataclasses.replace(nothing, extract=dataclasses.replace(nothing.extract, main_content=False))
    filtered = dataclasses.replace(whole, dedup=nothing.dedup)
    return {"raw": raw, "filtered": filtered, "deduplicated": whole}


def here(call, shared, jobs) -> Iterator:
    """Call in this process."""
    return ordered_map(call, shared, jobs, 1)


def command(*words: object) -> None:
    """Run a command of the project."""
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def prepare_common(options: Options, folder: Path) -> None:
    """Write the pages, the tokenizer and the held-out stories."""
    synthetic.write(folder / "crawl", options.pages)
    train(corpus(2_000_000, TOKENIZER_SEED), 2048, progress=False).save(folder / "tokenizer.json")
    held = itertools.islice(stories(HELD_OUT_SEED), 400)
    files.write_text(folder / "held.txt", f"\n{END_OF_TEXT}\n".join(held))


def make_corpus(options: Options, folder: Path, name: str, chosen: settings.Pipeline) -> int:
    """Write the token files of a corpus to folder/tokens-NAME and return how many pages are in it."""
    tally = pipeline.run(chosen, (str(folder / "crawl"),), folder / name, here)
    source = ("--source", f"jsonl:{folder / name}/documents/*.jsonl", "stories", "--weights", options.web, 1)
    shared = (
        "--tokenizer",
        folder / "tokenizer.json",
        "--val-source",
        f"text:{folder}/held.txt",
        "--workers",
        1,
    )
    command("-m", "data", "prepare", *source, *shared, "--out", folder / f"tokens-{name}")
    return tally.funnel()[-1][1]


def bits_per_byte(options: Options, folder: Path, name: str, seed: int) -> float:
    """Train on a corpus and return bits per byte on the held-out stories."""
    run = folder / f"run-{name}-{seed}"
    where = ("--preset", "quickstart", "--data", folder / f"tokens-{name}", "--run", run)
    command("train.py", *where, "--steps", options.steps, "--seed", seed, *QUIET)
    return files.read_json(run / "report.json")["bits_per_byte"]


@cli.command
def main(argv: list[str] | None = None) -> None:
    """Train all variants and print the table."""
    options = cli.parse(Options, argv, prog="benchmarks/web_ablation.py")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        prepare_common(options, folder)
        for name, chosen in variants().items():
            documents = make_corpus(options, folder, name, chosen)
            found = [bits_per_byte(options, folder, name, seed) for seed in range(1, options.seeds + 1)]
            spread = f", ± {statistics.stdev(found):.4f} over {len(found)} seeds" if len(found) > 1 else ""
            first = rows[0].ours if rows else None
            note = f"{documents:,} documents{spread}"
            peer = "raw" if rows else ""
            mean = statistics.mean(found)
            rows.append(
                Row(f"bits per byte, {name}", mean, "bits", peer, first, less_is_better=True, note=note)
            )
    report("web_ablation", rows, options.json)


if __name__ == "__main__":
    main()
