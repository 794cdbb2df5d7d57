"""Instruction data for the babbling base model, made once."""

from pathlib import Path

import pytest

from alignment.__main__ import main


@pytest.fixture(scope="session")
def chat_data(babble, tmp_path_factory) -> Path:
    """Return 60 conversations about arithmetic and a few about stories, for a context of 48 tokens."""
    out = tmp_path_factory.mktemp("tokens") / "chat"
    sizes = [
        "--count",
        "60",
        "--arithmetic",
        "0.9",
        "--prompts",
        "20",
        "--tests",
        "10",
        "--val-fraction",
        "0.1",
    ]
    main(["data", "--base", str(babble), "--out", str(out), "--workers", "1", *sizes])
    return out
