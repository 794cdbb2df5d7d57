"""How fast do web pages become text, how good is the search for near-duplicates, and in how much memory?

    python benchmarks/web.py [--only extract signatures classifier near ray] [--documents 1000000] [--json PATH]

    extract      a WARC file of made-up pages through extraction and all quality rules; the peer is datatrove's local
                 executor with the same extractor and its own filters, one worker on each side
    signatures   text to a signature of 128 numbers over runs of 5 words; the peers are datasketch and rensa, for which
                 Python makes the runs
    classifier   precision and recall at 0.5 of ours and of fastText, trained and tested on the same documents, of which
                 web_classifier.py makes three kinds
    near         1,000,000 made-up documents, a third of them altered copies: recall and precision at a Jaccard
                 similarity of 0.8, which is known for every pair; memory of all processes
    ray          the pipeline on a Ray cluster of this machine with two workers, and in two processes of our own

A peer that is not installed (extra web-peers, extra ray) is left out, and a line says so.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import web_classifier
from common import cli, cluster
from common.bench import Row, medians, report
from common.textfiles import matching_files
from common.workers import ordered_map
from data.web import dedup, minhash, pipeline, synthetic
from data.web.extract import html_text
from data.web.records import read_documents
from data.web.settings import Pipeline, Rules

ROOT = Path(__file__).resolve().parents[1]
WORDS = 64  # of a made-up document, so 60 runs of 5 words
FILES = 20
RECENT = 10_000  # documents of which copies are still made
FAMILIES = ("gopher", "repetition", "c4", "fineweb")
Question = Literal["extract", "signatures", "classifier", "near", "ray"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Time data web, datatrove, datasketch, rensa, fastText and Ray."""

    only: tuple[Question, ...] = get_args(Question)
    """Which questions."""
    pages: int = 2000
    """Made-up pages for extract and ray."""
    documents: int = 1_000_000
    """Made-up documents for near."""
    repeat: int = 3
    """Measurements of each side of extract and signatures."""
    json: Path | None = None
    """Write the table here as JSON."""


def installed(*names: str) -> bool:
    """True if the libraries can be imported; else say which row is missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    for name in missing:
        print(f"{name} is not installed: its rows are left out", file=sys.stderr)
    return not missing


def rules_only() -> Pipeline:
    """Return the pipeline of extraction and all rules."""
    return dataclasses.replace(Pipeline.nothing(), rules=Rules(use=FAMILIES, c4_lines=True))


def here(call: Callable, shared: object, jobs: list) -> Iterator:
    """Call in this process."""
    return ordered_map(call, shared, jobs, 1)


def measure_extract(options: Options, folder: Path) -> Iterator[Row]:
    """Yield MB of HTML a second, ours and datatrove's."""
    crawl = folder / "crawl"
    synthetic.write(crawl, options.pages, per_file=options.pages)
    path = crawl / "crawl-00000.warc.gz"
    size = sum(len(page.html.encode()) for page in synthetic.web(options.pages)) / 1e6

    def ours() -> None:
        pipeline.run(rules_only(), (str(path),), folder / "ours", here, overwrite=True)

    calls: dict[str, Callable[[], None]] = {"ours": ours}
    if installed("datatrove", "spacy"):
        calls["datatrove"] = functools.partial(datatrove, path, folder / "theirs")
    times = medians(calls, options.repeat)
    theirs = size / times["datatrove"] if "datatrove" in times else None
    kept = sum(1 for file in (folder / "ours" / "documents").glob("*") for _ in read_documents(file))
    note = f"{kept:,} of {options.pages:,} pages kept"
    yield Row("extract and all rules", size / times["ours"], "MB/s", "datatrove", theirs, goal=1.5, note=note)


def datatrove(path: Path, out: Path) -> None:
    """Do the same by datatrove: read, extract by the same function, filter, write."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.extractors.base import BaseExtractor
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.readers import WarcReader
    from datatrove.pipeline.writers import JsonlWriter

    class Same(BaseExtractor):
        name = "resiliparse"

        def __init__(self) -> None:
            super().__init__()

        def extract(self, text: str) -> str:
            return html_text(text, "keep", True, "resiliparse")[0]

    steps = [
        WarcReader(str(path.parent), glob_pattern=path.name),
        Same(),
        C4QualityFilter(),
        GopherQualityFilter(),
        GopherRepetitionFilter(),
        FineWebQualityFilter(),
        JsonlWriter(str(out), compression=None),
    ]
    LocalPipelineExecutor(
        steps, tasks=1, workers=1, skip_completed=False, logging_dir=str(out / "logs")
    ).run()


def measure_signatures(options: Options, folder: Path) -> Iterator[Row]:
    """Yield MB of text a second from text to signature."""
    texts = [page.text for page in synthetic.web(1000, seed=4) if page.kind == "good"]
    size = sum(map(len, texts)) / 1e6

    def runs(text: str) -> list[str]:
        words = text.lower().split()
        return [
            " ".join(words[place : place + minhash.SHINGLE])
            for place in range(len(words) - minhash.SHINGLE + 1)
        ]

    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: minhash.signatures(*minhash.shingles(texts)),
        "k permutations": lambda: minhash.k_permutations(*minhash.shingles(texts)),
    }
    goals = {"datasketch": 10.0, "rensa": 0.5}
    if installed("datasketch"):
        from datasketch import MinHash

        def by_datasketch() -> None:
            for text in texts:
                MinHash(minhash.PERMUTATIONS).update_batch([run.encode() for run in runs(text)])

        calls["datasketch"] = by_datasketch
    if installed("rensa"):
        from rensa import RMinHash

        def by_rensa() -> None:
            for text in texts:
                signature = RMinHash(minhash.PERMUTATIONS, 42)
                signature.update(runs(text))
                signature.digest()

        calls["rensa"] = by_rensa
    times = medians(calls, options.repeat)
    for peer in [name for name in goals if name in times]:
        yield Row(
            "minhash signatures", size / times["ours"], "MB/s", peer, size / times[peer], goal=goals[peer]
        )
    yield Row("minhash signatures, k permutations", size / times["k permutations"], "MB/s")


def measure_classifier(options: Options, folder: Path) -> Iterator[Row]:
    """Yield precision and recall on texts that neither side has seen."""
    trains = web_classifier.VARIABLE in os.environ
    if not trains:
        print(
            f"{web_classifier.VARIABLE} names no folder with fastText: its columns are left out",
            file=sys.stderr,
        )
    for name, make in web_classifier.TASKS.items():
        task = make()
        found = web_classifier.precision_and_recall(web_classifier.by_ours(task), task.test)
        peer: tuple[float | None, ...] = (None, None)
        if trains:
            peer = web_classifier.precision_and_recall(web_classifier.by_fasttext(task, folder), task.test)
        note = " and ".join(f"{sum(map(len, side)):,}" for side in task) + " texts"
        for measure, own, theirs in zip(("precision", "recall"), found, peer, strict=True):
            yield Row(
                f"classifier, {name}: {measure}", own, "", "fastText" if trains else "", theirs, note=note
            )


def made_documents(count: int, seed: int = 0) -> Iterator[tuple[str, int, float]]:
    """Yield documents of WORDS random words: (text, number of its original or -1, Jaccard similarity to it).

    A copy has its last t words changed: of 60 runs 60 - t are common, of 60 + t in both together.
    """
    draw = np.random.default_rng(seed)
    runs = WORDS - minhash.SHINGLE + 1
    vocabulary = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdfgklmnprst"]
    recent: list[tuple[int, list[str]]] = []
    for number in range(count):
        if recent and draw.random() < 1 / 3:
            original, words = recent[draw.integers(len(recent))]
            changed = int(draw.integers(0, 25))
            tail = [f"x{each}" for each in draw.integers(1 << 40, size=changed)]
            yield " ".join([*words[: WORDS - changed], *tail]), original, (runs - changed) / (runs + changed)
            continue
        words = [vocabulary[each] for each in draw.integers(len(vocabulary), size=WORDS)]
        if len(recent) == RECENT:
            recent[draw.integers(RECENT)] = (number, words)
        else:
            recent.append((number, words))
        yield " ".join(words), -1, 0.0


def write_made(folder: Path, count: int) -> dict[int, tuple[int, float]]:
    """Write the documents as FILES files; return {number of a copy: (its original, similarity)}."""
    truth = {}
    documents = made_documents(count)
    number = 0
    for part in range(FILES):
        with open(folder / f"{part:02d}.jsonl", "w", encoding="utf-8") as file:
            for _ in range(count // FILES):
                text, original, similarity = next(documents)
                if original >= 0:
                    truth[number] = (original, similarity)
                file.write(json.dumps({"text": text, "record": number}) + "\n")
                number += 1
    return truth


def measure_near(options: Options, folder: Path) -> Iterator[Row]:
    """Yield recall, precision, memory and speed of the search for near-duplicates among known pairs."""
    count = options.documents // FILES * FILES
    truth = write_made(folder, count)
    command = [sys.executable, "-m", "data", "web", "dedup", "--workers", "1"]
    command += ["--source", str(folder / "*.jsonl")]
    start = time.perf_counter()
    subprocess.run([*command, "--out", str(folder / "out")], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    kept = {
        row["record"]
        for path in matching_files(str(folder / "out/documents/*"))
        for _, row in dedup.rows_of(path)
    }
    alike = [number for number, (_, similarity) in truth.items() if similarity >= 0.8]
    dropped = [number for number in range(count) if number not in kept]
    # Two copies of one original are at most as alike as the less alike of them is to the original.
    right = sum(number in truth and truth[number][1] >= 0.8 for number in dropped)
    recall = sum(number not in kept for number in alike) / len(alike)
    millions = f"near-duplicates, {count:,} documents"
    yield Row(
        f"{millions}: recall at 0.8", recall, "of pairs", "goal", 0.98, goal=1.0, note=f"{len(alike):,} pairs"
    )
    precision = right / len(dropped)
    yield Row(f"{millions}: precision at 0.8", precision, "of documents", "goal", 0.99, goal=1.0)
    yield Row(f"{millions}: peak memory", peak, "MB", "goal", 2000, less_is_better=True, goal=1.0)
    yield Row(f"{millions}: speed", count / seconds, "documents/s", note="one process, from start to end")


def measure_ray(options: Options, folder: Path) -> Iterator[Row]:
    """Yield the speed of the pipeline on Ray and in our processes, two workers each."""
    if not installed("ray"):
        return
    synthetic.write(folder / "crawl", options.pages, per_file=max(1, options.pages // 8))
    size = sum(len(page.html.encode()) for page in synthetic.web(options.pages)) / 1e6
    times = {}
    for engine in ("processes", "ray"):
        with cluster.engine(cluster.Machines(engine=engine), 2):
            mapper = functools.partial(ordered_map, num_workers=2)
            start = time.perf_counter()
            pipeline.run(rules_only(), (str(folder / "crawl" / "*.gz"),), folder / engine, mapper)
            times[engine] = size / (time.perf_counter() - start)
    yield Row(
        "pipeline, two workers, Ray", times["ray"], "MB/s", "our processes", times["processes"], goal=0.85
    )


QUESTIONS: dict[Question, Callable[[Options, Path], Iterator[Row]]] = {
    "extract": measure_extract,
    "signatures": measure_signatures,
    "classifier": measure_classifier,
    "near": measure_near,
    "ray": measure_ray,
}


@cli.command
def main(argv: list[str] | None = None) -> None:
    """Answer the questions and print the table."""
    options = cli.parse(Options, argv, prog="benchmarks/web.py")
    rows: list[Row] = []
    for question in options.only:
        with tempfile.TemporaryDirectory() as folder:
            rows += QUESTIONS[question](options, Path(folder))
    report("web", rows, options.json)


if __name__ == "__main__":
    main()
