"""The figures on the pages are those of benchmarks/results, or it is said why not.

A figure is a number with a unit of time, speed or share. A section of a page that shows figures is in MEASURED with the
results that hold them, or in OTHERWISE with where they are from. scripts/performance.py writes what is between markers.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
UNIT = (
    r"(?:M )?tokens/s|stories/s|[MG]B/s|[TG]FLOP/s|µs|ns|ms|seconds|minutes|hours|s|×(?! ?\d)|times(?= as| the| faster)"
    r"|%|nats|bits per byte"
)
NUMBER = r"(?<![\w.,-])[-+]?\d[\d,]*(?:\.\d+)?(?:e-\d+)?"
FIGURE = re.compile(rf"({NUMBER})\s?(?:{UNIT})(?![\w/])")
CELL = re.compile(rf"({NUMBER})(?![\w/])")

MEASURED = {  # section -> files of benchmarks/results, and figures that are in none, with the reason
    "docs/alignment.md: Measured": ("alignment-zen-4", {}),
    "docs/bpe.md: How fast it is": (
        "bpe_train-zen-4 bpe_encode-zen-4",
        {"2.5": "an endless stream: the flag --stream-megabytes 1024"},
    ),
    "docs/data.md: Measured": ("batches-zen-5 prepare-zen-5", {}),
    "docs/lens.md: How large, how fast": (
        "lens-zen-4",
        {"1.49": "a step of a film, by the command of that section", "10": "a ninth of the views' 96 ms"},
    ),
    "docs/model.md: 18. The baseline of every table: counting": ("variants-zen-4", {"20": "--seconds 20"}),
    "docs/sampling.md: The cache, and what a step costs": (
        "decode-zen-5",
        {
            "2 30": "arithmetic",
            "0.33 0.66 1.37 2.0 2.01 2.08 2.64": "all matrices of a step in a loop of their own",
            "0.8 1.8": "docs/kernels/worklog.md: attention to the cache in a loop of its own",
            "8.5": "the spread over three runs, of which the results hold one",
        },
    ),
    "docs/scaling.md: What came out here": (
        "scaling-zen-4",
        {"1 3 10 43": "the report that the command scaling fit prints"},
    ),
    "docs/serving.md: Other people's programs": ("serving-zen-4", {"200": "tokens that a test compares"}),
    "docs/training.md: Measured": (
        "train-zen-4 train-zen-5 train_against_nanoGPT-zen-4 train_with_busy_loops-emerald-rapids "
        "train_with_busy_loops-zen-4",
        {
            "9 1.3": "the spread over several runs, of which the results hold one",
            "13,000 14,600 15,900 8,800 7,900 5,500 4,800 5,300 5,000 4,000 3,400 2,800 "
            "1.01 0.81 0.52 0.73 0.62 0.76 0.58 0.44": "--busy with GOMP_SPINCOUNT set to each",
        },
    ),
    "docs/web.md: A classifier of your own": ("web-zen-4", {}),
    "docs/web.md: Does it matter?": ("web_ablation-zen-4", {"15": "one less the inverse of the ratio 1.18"}),
    "docs/web.md: Measured": ("web-zen-4", {"13": "pages of Common Crawl, which cannot be shipped"}),
}
OTHERWISE = {  # page, or section -> where its figures are from
    "README.md: What comes out": "the quickstart's: scripts/performance.py; the compiler's minutes are of one build",
    "docs/alignment.md: What was tried": "single runs of the stages, each with the flags that the text names",
    "docs/alignment.md: What goes wrong": "a run of the command that is shown",
    "docs/bpe.md: Limits on memory": "tests/bpe/test_trainer.py holds the limits; the time is of one run",
    "docs/bpe.md: Your own text": "python -m bpe compare on a sample of TinyStories",
    "docs/data.md: Batches": "a bound proved for first-fit",
    "docs/kernels/attention.md: Variations": "CPU time of one run, as the text says",
    "docs/kernels/emulator.md: How it works": "of one run, an order of magnitude",
    "docs/kernels/issue.md": "counted in machine code: tests/kernels/test_issue.py",
    "docs/kernels/ladder.md": "counted: tests/kernels/test_ladder.py; a GPU's data sheet",
    "docs/kernels/mutation.md": "python -m kernels mutate",
    "docs/kernels/resources.md": "python -m kernels resources",
    "docs/kernels/worklog.md": "a diary of what came out when something was tried",
    "docs/scaling-out.md: The arithmetic": "arithmetic from the rates that are stated",
    "docs/serving.md: Two kinds of work": "arithmetic",
    "docs/training.md: What is minimized": "the quickstart's: scripts/performance.py",
    "docs/training.md: Muon": "an example",
    "docs/training.md: Precision": "docs/kernels/worklog.md, to which it links",
    "docs/training.md: FSDP, written out": "arithmetic",
    "docs/training.md: What the quickstart is made of": "runs of one recipe each, as the tables say",
    "docs/web.md: From files to text": "a setting",
    "docs/web.md: Quality rules": "settings",
    "docs/web.md: Duplicates": "the formula above the table",
}


def sections() -> Iterator[tuple[str, str]]:
    """Yield (page: heading, text) of every section of a page that is written by hand, without code and links."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text(encoding="utf-8")
        text = re.sub(
            r"<!-- (\w+): begin -->.*?<!-- \1: end -->", "", text, flags=re.DOTALL
        )  # made by the script
        text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        for section in re.split(r"^(?=#+ )", text, flags=re.MULTILINE):
            heading = re.match(r"#+ (.*)", section)
            name = f"{page.relative_to(ROOT)}: {heading[1] if heading else ''}"
            section = re.sub(r"\]\([^)]*\)|`[^`\n]*`|^    .*$", " ", section, flags=re.MULTILINE)
            yield name, section.partition("\n")[2]


def figures(section: str) -> set[str]:
    """Return the figures of a section, and the numbers in its tables but for the first column."""
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    cells = [cell for row in rows for cell in row.strip("|").split("|")[1:]]
    return {*FIGURE.findall(section), *(number for cell in cells for number in CELL.findall(cell))}


def holds(results: list[float], shown: str) -> bool:
    """True if one of the results, maybe in another unit, is this number when it is rounded as far."""
    digits = shown.replace(",", "")
    value, decimals = abs(float(digits)), len(digits.partition(".")[2].partition("e")[0])
    zeros = len(digits) - len(digits.rstrip("0")) if not decimals else 0
    unit = 10.0 ** (-decimals if decimals else max(0, min(zeros, len(digits) - 2)))
    if "e" in digits:
        unit *= 10.0 ** int(digits.partition("e")[2])
    return any(
        abs(abs(result) * factor - value) <= unit * 0.501
        for result in results
        for factor in (1, 100, 1e3, 1e-3)
    )


SECTIONS = dict(sections())


@pytest.mark.parametrize("name", MEASURED)
def test_figures_of_a_section_are_those_of_its_results(name):
    files, otherwise = MEASURED[name]
    others = " ".join(otherwise).split()
    results: list[float] = []
    for file in files.split():
        for row in json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))["rows"]:
            ratio = row["ratio"] or 0.0
            noted = CELL.findall(f"{row['name']} {row.get('note', '')} {row.get('goal', '')}")
            results += [row["ours"], row["peer_value"] or 0.0, ratio, 1 / ratio if ratio else 0.0]
            results += [float(number.replace(",", "")) for number in noted]
    missing = [each for each in figures(SECTIONS[name]) if each not in others and not holds(results, each)]
    assert not missing, f"{name}: {' '.join(sorted(missing))} in none of {files}"


def test_every_section_with_figures_says_where_they_are_from():
    shown = {name for name, section in SECTIONS.items() if FIGURE.search(section)}
    assert (
        sorted(shown - {*MEASURED, *OTHERWISE} - {name for name in shown if _page(name) in OTHERWISE}) == []
    )
    assert sorted({*MEASURED, *OTHERWISE} - set(SECTIONS) - set(map(_page, shown))) == []


def _page(name: str) -> str:
    return name.partition(": ")[0]
