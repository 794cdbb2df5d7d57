"""python -m experiments compare: the plot and the table of several runs."""

import dataclasses
import json
import re
import shutil

import pytest

from experiments.__main__ import main
from experiments.compare import read_curve
from training import loop


def test_compare_draws_and_lists_runs(tiny, tmp_path, capsys):
    other = dataclasses.replace(tiny, run=tmp_path / "other", learning_rate=1e-4)
    loop.train(tiny)
    loop.train(other)
    capsys.readouterr()
    main(["compare", str(tiny.run), str(other.run), "--out", str(tmp_path / "both.png")])
    out = capsys.readouterr().out
    assert "run" in out
    assert "other" in out
    report = json.loads((tiny.run / "report.json").read_text())
    per_nat = report["bits_per_byte"] / report["val_loss"]
    nats, bits = (read_curve(tiny.run, nats).best for nats in (True, False))
    assert bits == pytest.approx(per_nat * nats)
    assert "bits" in out and "nats" not in out
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_compare_refuses_what_is_no_run(tmp_path, refused):
    assert "no log.jsonl" in refused(main, "compare", str(tmp_path))
    assert "at least one run" in refused(main, "compare")


def test_without_its_data_a_run_is_compared_in_nats_only(babble, tmp_path, refused):
    run = shutil.copytree(babble, tmp_path / "run")
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(re.sub(r"^data = .*$", 'data = "nowhere"', config, flags=re.MULTILINE))
    assert "--nats" in refused(main, "compare", str(run))
    main(["compare", str(run), "--nats", "--out", str(tmp_path / "loss.svg")])
