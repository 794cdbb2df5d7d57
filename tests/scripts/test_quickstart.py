"""The quickstart's figures are those of its run's report."""

import json

import pytest

from benchmarks import quickstart


def test_the_rows_are_the_reports(babble):
    report = json.loads((babble / "report.json").read_text(encoding="utf-8"))
    rows = {row.name.partition(": ")[2]: row.ours for row in quickstart.rows(babble)}
    assert rows["validation loss"] == report["val_loss"] and rows["steps"] == 20
    bytes_per_token = rows["bytes per token"]
    assert rows["bits per byte"] * 0.693147 * bytes_per_token == pytest.approx(report["val_loss"], rel=1e-5)


def test_the_story_goes_with_the_figures(babble, tmp_path, capsys):
    quickstart.main(["--run", str(babble), "--story", "3", "--json", str(tmp_path / "rows.json")])
    (told,) = [
        row
        for row in json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))["rows"]
        if row.get("note")
    ]
    report = json.loads((babble / "report.json").read_text(encoding="utf-8"))
    assert (told["ours"], told["note"]) == (3, report["stories"][2])
