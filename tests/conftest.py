"""What several rooms' tests share: a tiny corpus, prepared once, and a check of one-line errors."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """Token files of 200 KB of built-in stories with 384 tokens of vocabulary."""
    from data.__main__ import main

    directory = tmp_path_factory.mktemp("tokens") / "stories"
    main(
        [
            "prepare",
            "--source",
            "stories",
            "--stories-bytes",
            "200000",
            "--vocab-size",
            "384",
            "--out",
            str(directory),
        ]
    )
    return directory


@pytest.fixture
def refused(capsys):
    """Calls main(argv) and returns its error: one line on stderr, exit code 2."""

    def call(main, *argv: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(list(argv))
        err = capsys.readouterr().err
        assert stop.value.code == 2
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return call
