"""python -m data web run | extract | dedup | report | classifier | synthetic: raw pages to a corpus."""

import contextlib
import dataclasses
import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from common import cli, cluster, plots
from common.workers import ordered_map, sensible_workers
from data.web import classifier as classifiers
from data.web import report, synthetic
from data.web.crawl import COMPRESSED, find_files, kind_of
from data.web.dedup import Dedup, Mapper, deduplicate, rows_of
from data.web.extract import Extractor, Tables
from data.web.pipeline import DOCUMENTS, run, texts_of
from data.web.settings import PRESET, Extract, Pipeline, read
from data.web.tally import Tally


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work(cluster.Machines):
    """Where the work is done."""

    workers: int | None = None
    """Processes. Default: one for each core, not more than files."""

    def __post_init__(self) -> None:
        self.check_machines()
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers must be at least 1, not {self.workers}")

    @contextlib.contextmanager
    def mapper(self, num_jobs: int) -> Iterator[Mapper]:
        """Yield map(call, shared, jobs) on these machines."""
        workers = min(sensible_workers(self.workers, None), max(num_jobs, 1))
        with cluster.engine(self, self.workers):
            yield lambda call, shared, jobs: ordered_map(call, shared, jobs, workers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Work):
    """Take pages through a whole pipeline: extraction, language, rules, classifiers, masking, deduplication, report."""

    pipeline: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PIPELINE.toml")] = PRESET
    """The settings of all stages; presets/web/pipeline.toml if not named."""
    source: tuple[str, ...]
    """Files or folders of pages: .warc, .wet, .html, .md, .txt, .pdf, .csv, .jsonl, also with .gz or .zst; ** matches
    folders.
    """
    out: Path
    """The folder for documents and report."""
    overwrite: bool = False
    """Replace the result of other settings or pages."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractPages(Work):
    """Turn pages into text, one JSON line each, and nothing else."""

    source: tuple[str, ...]
    """Files or folders of pages, as for run."""
    out: Path
    """The folder for documents and report."""
    tables: Tables = "keep"
    """keep tables as laid out; rows: each row of a table with a header as "column: value" sentences; drop."""
    main_content: bool = True
    """Leave out menus, headers and footers."""
    extractor: Extractor = "resiliparse"
    """What reads HTML."""
    overwrite: bool = False
    """Replace the result of other settings or pages."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DedupFiles(Dedup, Work):
    """Drop duplicate lines, documents and near-duplicates from JSON-lines files with a field "text"."""

    source: tuple[str, ...]
    """JSON-lines files; in case of doubt the document of the earlier file is kept."""
    out: Path
    """The folder for documents and report."""

    def __post_init__(self) -> None:
        Work.__post_init__(self)
        Dedup.__post_init__(self)


@dataclasses.dataclass(frozen=True)
class Report:
    """Show what each stage dropped, and write it as one HTML page."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The folder of a finished pipeline."""
    html: Path | None = None
    """Write the page here; by default DIR/report.html."""
    plot: Path | None = None
    """Draw the funnel into this file (.png, .svg, .pdf)."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a classifier on texts with a label and texts without."""

    positive: tuple[str, ...]
    """Files of texts with the label, of any kind that run reads."""
    negative: tuple[str, ...]
    """Files of texts without it."""
    out: Path
    """The model (.safetensors)."""
    label: str = "quality"
    """What positive means: the name of the score in a document."""
    seed: int = 0
    """Order of the examples."""
    plot: Path | None = None
    """Draw precision and recall against the threshold into this file (.png, .svg, .pdf)."""


@dataclasses.dataclass(frozen=True)
class Score:
    """Print the probability of a classifier's label for each text, one line each."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """What classifier train wrote."""
    source: tuple[str, ...]
    """Files of texts."""


@dataclasses.dataclass(frozen=True)
class Synthetic:
    """Write a small made-up web whose truth is known."""

    out: Path
    """The folder."""
    pages: int = 500
    """How many pages."""
    seed: int = 0
    """Which ones: the same seed, the same bytes."""

    def __post_init__(self) -> None:
        if self.pages < 1:
            raise ValueError(f"--pages must be at least 1, not {self.pages}")


def show(tally: Tally, out: Path) -> None:
    """Print the report and where the documents are."""
    from rich.console import Console

    Console().print(report.render(tally))
    if not glob.glob(str(out / DOCUMENTS / "*.jsonl")):
        raise ValueError(f"no document is left: {out}/report.html shows what each rule dropped")
    print(f"python -m data prepare --source 'jsonl:{out}/{DOCUMENTS}/*.jsonl' …   reads what is left")


def run_pipeline(options: Run) -> None:
    """Run a pipeline and show its report."""
    pipeline = read(options.pipeline)
    with options.mapper(len(find_files(options.source))) as mapper:
        show(run(pipeline, options.source, options.out, mapper, options.overwrite), options.out)


def run_extract(options: ExtractPages) -> None:
    """Run a pipeline of extraction alone."""
    extract = Extract(options.tables, options.main_content, options.extractor)
    pipeline = dataclasses.replace(Pipeline.nothing(), extract=extract)
    with options.mapper(len(find_files(options.source))) as mapper:
        show(run(pipeline, options.source, options.out, mapper, options.overwrite), options.out)


def run_dedup(options: DedupFiles) -> None:
    """Deduplicate files of JSON lines."""
    paths = [Path(path) for pattern in options.source for path in find_files((pattern,))]
    for path in paths:
        if kind_of(str(path)) != "jsonl" or path.suffix in COMPRESSED:
            raise ValueError(
                f"{path}: dedup reads plain JSON lines (.jsonl, .ndjson): make them by python -m data web extract"
            )
    if options.out.exists() and any(options.out.iterdir()):
        raise ValueError(f"{options.out} is not empty: take another --out")
    tally = Tally()
    for path in paths:
        for _, row in rows_of(path):
            tally.found(len(row["text"].encode()))
    with options.mapper(len(paths)) as mapper:
        deduplicate(paths, options.out / DOCUMENTS, options, mapper, tally)
    report.write(tally, options.out)
    show(tally, options.out)


def run_report(options: Report) -> None:
    """Show a report and write its page."""
    from rich.console import Console

    if options.plot:
        plots.check_path(options.plot)
    tally = report.read(options.directory)
    Console().print(report.render(tally))
    out = options.html or options.directory / "report.html"
    report.files.write_text(out, report.page(tally))
    print(f"{out}: funnel, samples, histograms")
    if options.plot:
        report.draw(tally, options.plot)


def run_train(options: Train) -> None:
    """Train a classifier and print its quality."""
    if options.plot:
        plots.check_path(options.plot)
    positive, negative = (list(texts_of(find_files(side))) for side in (options.positive, options.negative))
    model, quality = classifiers.train(positive, negative, options.label, options.seed)
    model.save(options.out)
    print(
        f"{options.out}: {options.label}, trained on {len(positive):,} positive and {len(negative):,} negative texts"
    )
    held = f"on {quality.examples:,} held out, calibration error {quality.calibration_error:.3f}"
    print(f"accuracy {quality.accuracy:.3f} {held}")
    print("threshold  precision  recall")
    for threshold, precision, recall in zip(
        classifiers.THRESHOLDS, quality.precision, quality.recall, strict=True
    ):
        print(f"{threshold:9.2f}  {precision:9.3f}  {recall:6.3f}")
    if options.plot:
        classifiers.draw(quality, options.plot)


def run_score(options: Score) -> None:
    """Print probabilities."""
    model = classifiers.HashedClassifier.load(options.model)
    for text in texts_of(find_files(options.source)):
        print(f"{model.probability(text):.4f}  {report.printable(' '.join(text.split())[:80])}")


def run_synthetic(options: Synthetic) -> None:
    """Write the made-up web."""
    synthetic.write(options.out, options.pages, options.seed)
    print(
        f"{options.out}: {options.pages:,} pages in WARC files, and others; truth.json says what each page is"
    )


COMMANDS = {
    "run": (Run, run_pipeline),
    "extract": (ExtractPages, run_extract),
    "dedup": (DedupFiles, run_dedup),
    "report": (Report, run_report),
    "classifier": {"train": (Train, run_train), "score": (Score, run_score)},
    "synthetic": (Synthetic, run_synthetic),
}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run python -m data web."""
    cli.dispatch(COMMANDS, argv, prog="python -m data web")


if __name__ == "__main__":
    main()
