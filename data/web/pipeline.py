"""The whole pipeline: files of pages to a folder of documents, resumable by file, on one machine or on many.

    each file of pages   ->  guarded steps          ->  work/NNNNN.jsonl, and its tally when it is whole
    all of them          ->  deduplication          ->  documents/NNNNN.jsonl
    all tallies          ->  report.json, report.html

A file whose tally is there is not read again. The result does not depend on how many processes or machines there are,
nor on which was faster, because every file is a job of its own and results are taken in the order of the files.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from common import files
from data.web import private, report
from data.web.crawl import find_files, kind_of, pages
from data.web.dedup import Mapper, deduplicate, held_out_ngrams, name_of
from data.web.extract import Refused, extract
from data.web.guard import Failure, Guard
from data.web.ngrams import NgramModel
from data.web.records import Fault, Page
from data.web.rules import Rule
from data.web.settings import Pipeline
from data.web.steps import EXTRACTION, READING, Outcome, Steps, all_rules, stages_of
from data.web.tally import EXCERPT, Tally

DOCUMENTS = "documents"


@dataclasses.dataclass(frozen=True)
class Job:
    """One file of pages and where its documents go."""

    path: str
    documents: Path
    tally: Path


@dataclasses.dataclass(frozen=True)
class Shared:
    """What every job needs: the settings, and the file of the n-gram model if there is one."""

    pipeline: Pipeline
    perplexity: Path | None


def build_steps(pipeline: Pipeline, perplexity: Path | None) -> Steps:
    """Return the steps with their models; called in the process that reads pages."""
    return Steps(pipeline, NgramModel.load(perplexity) if perplexity else None)


def process_file(shared: Shared, job: Job) -> Path:
    """Take every page of a file through the steps; return the path of its tally, which is written last."""
    if job.tally.exists():
        return job.tally
    extraction, tally = shared.pipeline.extract, Tally()
    tally.enter(*stages_of(shared.pipeline))
    perplexity = NgramModel.load(shared.perplexity) if shared.perplexity else None
    rules = {rule.key: rule for rule in all_rules(shared.pipeline, perplexity)}
    args = (shared.pipeline, shared.perplexity)
    with (
        files.atomic(job.documents) as out,
        Guard(build_steps, args, extraction.seconds, extraction.memory_mb) as guard,
    ):
        for page, outcome in guard.map(_counted(job.path, extraction.max_bytes, tally)):
            if isinstance(outcome, Failure):
                tally.dropped(EXTRACTION, outcome.reason, "", name_of(page._asdict()), len(page.data))
            else:
                _count(tally, page, outcome, rules, shared.pipeline.personal.mask)
                if outcome.document is not None:
                    out.write((outcome.document.as_json() + "\n").encode(errors="replace"))
    files.write_json(job.tally, tally.as_json())
    return job.tally


def _counted(path: str, max_bytes: int, tally: Tally) -> Iterator[tuple[Page, int]]:
    """Yield the pages of a file and their sizes; what cannot be read is counted."""
    for page in pages(path, max_bytes):
        if isinstance(page, Fault):
            tally.found(0)
            tally.dropped(READING, page.reason, "", name_of(page._asdict()))
        else:
            tally.found(len(page.data))
            yield page, len(page.data)


def _count(
    tally: Tally, page: Page, outcome: Outcome, rules: dict[str, Rule], personal: tuple[str, ...]
) -> None:
    """Count what became of a page; personal data is masked in samples, too."""
    name = name_of(page._asdict())
    if outcome.stage == EXTRACTION:
        sample = private.mask(page.data[:EXCERPT].decode(errors="replace"), personal)[0]
        tally.dropped(EXTRACTION, outcome.reason, sample, name, len(page.data))
        return
    tally.edited(EXTRACTION, len(page.data) - outcome.size)
    for stage, lost in outcome.edited.items():
        tally.edited(stage, lost)
    for key, value in outcome.values.items():
        tally.measured(rules[key], value)
    if outcome.document is None:
        left = outcome.size - sum(outcome.edited.values())
        sample = private.mask(outcome.text[:EXCERPT], personal)[0]
        tally.dropped(outcome.stage, outcome.reason, sample, name, left)
        return
    for key, value in outcome.values.items():
        tally.missed(rules[key], value, outcome.text, name)
    for kind, count in outcome.document.masked.items():
        tally.masked[kind] = tally.masked.get(kind, 0) + count


def run(
    pipeline: Pipeline, sources: tuple[str, ...], out: Path, mapper: Mapper, overwrite: bool = False
) -> Tally:
    """Run a pipeline into the folder `out` and return what was counted.

    FileNotFoundError if there is no file, ValueError if no page is in them or the folder holds the result of other
    settings.
    """
    paths = find_files(sources)
    check(pipeline, paths)
    prepare_folder(out, pipeline, paths, overwrite)
    if (out / "report.json").exists():
        return report.read(out)  # it is finished
    work = out / "work"
    work.mkdir(exist_ok=True)
    shared = Shared(pipeline, train_perplexity(pipeline, work))
    jobs = [Job(path, work / f"{n:05d}.jsonl", work / f"{n:05d}.json") for n, path in enumerate(paths)]
    tally = Tally()
    for path in mapper(process_file, shared, jobs):
        tally.merge(Tally.from_json(files.read_json(path)))
    if not tally.documents:
        shutil.rmtree(work)
        (out / "recipe.json").unlink()
        raise ValueError(
            f"no page in {len(paths):,} file{'s' * (len(paths) > 1)}, such as {paths[0]}: check --source"
        )
    shutil.rmtree(out / DOCUMENTS, ignore_errors=True)
    deduplicate([job.documents for job in jobs], out / DOCUMENTS, pipeline.dedup, mapper, tally)
    report.write(tally, out)
    shutil.rmtree(work)
    return tally


def check(pipeline: Pipeline, paths: list[str]) -> None:
    """Raise ValueError or OSError for what no page could go on without: a library, a model, a file."""
    Steps(pipeline)
    if pipeline.perplexity.reference:
        find_files(pipeline.perplexity.reference)
    held_out_ngrams(pipeline.dedup.held_out, pipeline.dedup.overlap)
    kinds = {kind_of(path) for path in paths}
    for media, needed in (("html", kinds & {"html", "warc"}), ("pdf", "pdf" in kinds)):
        if needed:
            with contextlib.suppress(Refused):
                extract(Page(b"", media, ""), extractor=pipeline.extract.extractor)


def prepare_folder(out: Path, pipeline: Pipeline, paths: list[str], overwrite: bool) -> None:
    """Make the folder and note what it is for; ValueError if it is for something else."""
    inputs = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
    recipe = json.loads(json.dumps({"pipeline": dataclasses.asdict(pipeline), "inputs": inputs}))
    noted = out / "recipe.json"
    if overwrite and noted.exists():
        for name in ("work", DOCUMENTS):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in ("report.json", "report.html", "recipe.json"):
            (out / name).unlink(missing_ok=True)
    if noted.exists() and files.read_json(noted) != recipe:
        raise ValueError(
            f"{out} holds the result of other settings or pages: take another --out, or add --overwrite"
        )
    if not noted.exists() and out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds other files: take another --out")
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(noted, recipe)


def train_perplexity(pipeline: Pipeline, work: Path) -> Path | None:
    """Train the n-gram model on the reference text, if a pipeline has one; return its file."""
    path = work / "perplexity.safetensors"
    if not pipeline.perplexity.reference:
        return None
    if not path.exists():
        found = find_files(pipeline.perplexity.reference)
        NgramModel.train(texts_of(found)).save(path)
    return path


def texts_of(paths: list[str]) -> Iterator[str]:
    """Yield the texts of all pages that can be read, for what is trained on them."""
    for path in paths:
        for page in pages(path):
            if isinstance(page, Page):
                try:
                    yield extract(page).text
                except ValueError:  # no text in this one
                    continue
