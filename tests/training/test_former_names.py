"""Commands that moved to other rooms still run under their former names."""

import pytest

from training.__main__ import main


@pytest.mark.parametrize(
    ("name", "now"),
    [
        ("evaluate", "python -m evaluation"),
        ("ablate", "python -m experiments ablate"),
        ("compare", "python -m experiments compare"),
        ("sweep", "python -m experiments sweep"),
    ],
)
def test_a_former_name_runs_and_says_the_new_one(name, now, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    captured = capsys.readouterr()
    assert captured.err == f"python -m training {name} is now {now}\n"
    assert now in captured.out


def test_a_name_that_never_was_is_refused(refused):
    assert "train with python -m train" in refused(main, "fly")
