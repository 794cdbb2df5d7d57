"""python -m experiments compare: the plot and the table of several runs."""

import dataclasses

from experiments.__main__ import main
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
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_compare_refuses_what_is_no_run(tmp_path, refused):
    assert "no log.jsonl" in refused(main, "compare", str(tmp_path))
    assert "at least one run" in refused(main, "compare")
