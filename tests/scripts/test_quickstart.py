"""The quickstart's figures are those of its run's report."""

import json

import pytest

import sample
from benchmarks import quickstart
from inference.__main__ import main as embeddings


def test_the_rows_are_the_reports(babble):
    report = json.loads((babble / "report.json").read_text(encoding="utf-8"))
    rows = {row.name.partition(": ")[2]: row.ours for row in quickstart.rows(babble)}
    assert rows["validation loss"] == report["val_loss"] and rows["steps"] == 20
    bytes_per_token = rows["bytes per token"]
    assert rows["bits per byte"] * 0.693147 * bytes_per_token == pytest.approx(report["val_loss"], rel=1e-5)


def test_the_examples_are_what_the_commands_print(babble, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    by_name = {row.name.partition(": ")[2]: row for row in quickstart.examples(babble)}
    sample.main(["--run", str(babble), "--score", *quickstart.ENDINGS])
    shown = capsys.readouterr().out
    for text in quickstart.ENDINGS:
        assert f"{by_name[text].ours:.2f}" in shown and by_name[text].note in shown
    embeddings(["embeddings", str(babble), "--words", *quickstart.WORDS, "--neighbours", "5"])
    for word, line in zip(quickstart.WORDS, capsys.readouterr().out.splitlines(), strict=True):
        assert line.endswith(f": {by_name[f'nearest to {word}'].note}")


def test_the_story_goes_with_the_figures(babble, tmp_path, capsys):
    quickstart.main(["--run", str(babble), "--story", "3", "--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))["rows"]
    report = json.loads((babble / "report.json").read_text(encoding="utf-8"))
    assert rows[-1]["name"] == "quickstart: story"
    assert (rows[-1]["ours"], rows[-1]["note"]) == (3, report["stories"][2])
