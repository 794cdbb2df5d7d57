"""docs/serving.md is true: its requests are answered and its commands run."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from common import cli
from model.__main__ import main as model_main
from model.generate import Rules
from serving.__main__ import Options
from tests.serving.conftest import serving

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
EXPORTS = re.findall(
    r"^    python -m model (export \S+ --to (?!onnx)\S+ \S+(?: --type \S+)?)", PAGE, re.MULTILINE
)
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def server(babble):
    with serving(babble, template=False, name="quickstart") as running:
        yield running


@pytest.fixture
def address(server):
    return server[0]


def test_the_example_with_openais_client_tells_a_story(server, capsys):
    """The one that sample.py tells with the same seed: without a seed each story is another one."""
    pytest.importorskip("openai")
    address, engine = server
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert ADDRESS in example and "stream=True" in example
    seeded = example.replace("stream=True", 'stream=True, seed=7, extra_body={"ignore_eos": True}')
    exec(seeded.replace(ADDRESS, address) + "\nclient.close()", {})
    ids = engine.text_model.encode("One day")
    count = min(60, engine.text_model.model.config.block_size - len(ids))  # the server does not slide
    (story,) = engine.text_model.generate([ids], count, Rules(), seeds=[7], ignore_eot=True).finish()
    assert capsys.readouterr().out == story.text != ""


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
