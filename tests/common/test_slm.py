"""The console command finds every room, and each command answers as it does under its own name."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from common import slm


@pytest.mark.parametrize("name", slm.COMMANDS)
def test_every_command_has_a_main_with_help(name, capsys):
    try:
        slm.main([name, "--help"])
    except SystemExit as stop:
        assert not stop.code
    assert "usage" in capsys.readouterr().out.lower()


def test_help_lists_every_command(capsys):
    slm.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(slm.COMMANDS)


def test_arguments_reach_the_command(capsys):
    slm.main(["data", "stories", "--count", "1", "--seed", "5"])
    ours = capsys.readouterr().out
    importlib.import_module("data.__main__").main(["stories", "--count", "1", "--seed", "5"])
    assert ours == capsys.readouterr().out != ""


def test_an_unknown_command_is_refused(refused):
    assert "no command 'fly'" in refused(slm.main, "fly")


def test_the_installed_script_is_this_command():
    script = Path(sys.executable).with_name("slm")
    if not script.exists():
        pytest.skip("the project is not installed in this environment")
    done = subprocess.run([script, "fly"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: no command 'fly'")
