"""docs/serving.md is true: its requests are answered and its commands run."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from common import cli
from model.__main__ import main as model_main
from serving.__main__ import Options
from tests.serving.conftest import serving

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
EXPORTS = re.findall(
    r"^    python -m model (export \S+ --to (?!onnx)\S+ \S+(?: --type \S+)?)", PAGE, re.MULTILINE
)
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def address(babble):
    with serving(babble, template=False, name="quickstart") as (address, _):
        yield address


def test_the_example_with_openais_client_tells_a_story(address, capsys):
    pytest.importorskip("openai")
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert ADDRESS in example
    exec(example.replace(ADDRESS, address) + "\nclient.close()", {})
    assert len(capsys.readouterr().out) > 60


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_example_with_curl_is_answered(address):
    (command,) = re.findall(r"^    (curl .*)$", PAGE, re.MULTILINE)
    done = subprocess.run(shlex.split(command.replace(ADDRESS, address)), capture_output=True, check=True)
    assert b'"finish_reason":"' in done.stdout


def test_the_command_takes_its_flags():
    (command,) = re.findall(r"^    python -m serving (.*?)  ", PAGE, re.MULTILINE)
    options = cli.parse(Options, shlex.split(command), prog="python -m serving")
    assert options.precision == "int8" and options.run == Path("runs/quickstart")


@pytest.mark.parametrize("command", EXPORTS)
def test_the_exports_are_written(command, babble, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(babble, "runs/quickstart")
    words = shlex.split(command)
    model_main(words)
    assert Path(words[4]).exists()


def test_the_page_shows_two_exports_beside_onnx():
    assert len(EXPORTS) == 2
