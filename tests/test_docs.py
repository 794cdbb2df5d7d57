"""The pages lead somewhere: every link to a file or a heading, and every test that is named."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
RESULTS = ROOT / "benchmarks" / "results"
HEADLINES = {  # a row of README's table, and where its figures are from
    "encode": ("bpe_encode", "encode, warm: encode", "tiktoken.encode_to_numpy"),
    "learn": ("bpe_train", "train 10,000 ids, 189 MB", "tokenizers"),
    "attention": ("kernels", "causal_attention (2, 1024, 12, 64) float32 forward + backward", "SDPA flash"),
    "train": ("train", "train quickstart with AdamW, 2 threads", "plain torch loop"),
    "decode": ("decode", "decode batch 1, int8", "llama2.c"),
}
TESTS = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))


def prose(page: Path) -> str:
    """Return the page without its fenced code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the names by which GitHub links to the headings: lower case, punctuation gone, hyphens for blanks."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_named_tests_are_there(page):
    for name in re.findall(r"`(test_\w+)`", prose(page)):
        assert f"def {name}(" in TESTS, name


@pytest.mark.parametrize("name", HEADLINES)
def test_headlines_are_what_was_measured(name):
    file, row, peer = HEADLINES[name]
    rows = json.loads((RESULTS / f"{file}-zen-5.json").read_text(encoding="utf-8"))["rows"]
    measured = next(each for each in rows if each["name"] == row and each["peer"] == peer)
    shown = re.search(
        rf"^\| {name}\b.* \| ([\d.]+) × \|$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert shown and float(shown[1]) == round(measured["ratio"], 1)
