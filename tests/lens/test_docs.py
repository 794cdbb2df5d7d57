"""docs/lens.md is true: its commands and examples run, and every view has its section."""

import doctest
import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest

from lens import assemble
from lens.__main__ import main

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "lens.md"
COMMANDS = re.findall(r"^    python -m lens ([^#\n]*)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_on_the_page_run(command, babble, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("webbrowser.open", lambda _: True)
    shutil.copytree(babble, "runs/quickstart")
    places = {"tokens/stories": str(corpus)}
    main([places.get(word, word) for word in shlex.split(command)])
    written = Path("lens.html") if "--out" in command else Path("runs/quickstart/lens.html")
    assert written.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_training_of_a_film_keeps_its_checkpoints(corpus):
    from training.config import parse_config

    command = re.search(r"^    python train.py (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)[1]
    config = parse_config([*shlex.split(command), "--data", str(corpus)])
    assert config.keep * config.checkpoint_every >= config.steps > config.checkpoint_every


def test_examples_on_the_page_and_in_the_code_run():
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert result.attempted >= 3 and result.failed == 0
    for name in ("export", "assemble"):
        assert doctest.testmod(importlib.import_module(f"lens.{name}")).failed == 0


def test_every_view_has_its_section():
    views = (path.read_text(encoding="utf-8") for path in (assemble.PAGE / "views").glob("*.js"))
    named = [re.search(r'doc: "([\w-]+)",\s+code: "([\w./]+)"', text).groups() for text in views]
    headings = re.findall(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert len(named) == 10
    for anchor, code in named:
        assert anchor in anchors and (ROOT / code).is_file()
