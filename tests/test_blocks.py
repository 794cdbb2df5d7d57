"""Commands, Python blocks and examples of README and the pages run, in a folder as README's first command leaves it.

Trainings are cut short (`SHORT`). What needs a network, a GPU or other machines is listed in `NOT_HERE`; pages that
the tests of their room run, in `ELSEWHERE`; Python that is not whole, in `EXCERPTS`. A new command is run unless one
of these names it.
"""

import contextlib
import doctest
import gzip
import importlib
import io
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest

import kernels

ROOT = Path(__file__).parents[1]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
ELSEWHERE = {
    "docs/alignment.md": "tests/alignment/test_page.py",
    "docs/kernels/emulator.md": "tests/emulator/test_page.py",
    "docs/kernels/mutation.md": "tests/emulator/test_mutation.py: the real kernels take half an hour to prepare",
    "docs/lens.md": "tests/lens/test_docs.py",
    "docs/scaling.md": "tests/experiments/test_scaling_runner.py",
    "docs/scaling-out.md": "tests/common/test_cluster.py, its Python by tests/data/web/test_rules.py",
    "docs/serving.md": "tests/serving/test_docs.py",
    "docs/web.md": "tests/data/web/test_page.py",
}
EXCERPTS = {
    "docs/model.md": "tests/model/test_docs.py",
    "docs/kernels/cross_entropy.md": "what kernels/chunked_loss.py does, in outline",
}
NOT_HERE = {
    "make ": "installs, or runs everything",
    "python -m pytest": "runs tests in a test",
    "python benchmarks/": "measures",
    "python -m data prepare --source tinystories": "needs a network",
    "scripts/gpu_check.sh": "tests/scripts/test_gpu_check.py",
    "python scripts/performance.py": "tests/scripts/test_performance.py: it would write into this folder",
    "torchrun": "several machines",
    "python -m experiments": "tests/experiments",
}
SLOW = ("python -m kernels ladder", "docs/kernels/ladder.md")
SHORT = {  # flags that make a command small
    "python train.py": "--steps 2 --eval-batches 1 --coherence-stories 2 --warmup-steps 1",
    "python -m data prepare --vocab-size": "--stories-bytes 200000",
    "python -m scripts.pictures": "--out plots",
    "python -m evaluation": "--samples 2 --pairs 2",
}
NAMES = """
import torch
import kernels
from data.stories import stories
from kernels import *
from kernels.reference import moments
rows, scale, eps = (0,), 0.5, 1e-5
x, residual, gate, grad_out = torch.randn(4, 3, 8).unbind(0)
weight, bias, gate_bias = torch.randn(3, 8).unbind(0)
rstd = moments(x, eps)[1]
q, k, v, out = torch.randn(4, 2, 5, 2, 4).unbind(0)
qkv, angles = torch.randn(2, 5, 3, 2, 4), torch.randn(5, 2)
weights = torch.rand(2, 2, 5, 5)
hidden, head, targets = torch.randn(3, 8), torch.randn(5, 8), torch.tensor([0, 1, 2])
parameters, gradients, averages, squares = [[torch.rand(3)] for _ in range(4)]
texts = ["Once."]
"""
FOR_A_PAGE = {
    "docs/kernels/attention.md": "grad_out = torch.randn(2, 5, 2, 4)",
    "docs/kernels/README.md": "ends = torch.tensor([0, 2, 5])",
}


def commands(page: str) -> list[str]:
    """Return the commands of a page: indented by four blanks or in a fence without a language, lines joined."""
    text = re.sub(r"\\\n\s*", "", PAGES[page])
    fences = [block for kind, block in FENCE.findall(text) if kind in ("", "sh", "bash")]
    outside = FENCE.sub("", text)
    lines = re.findall(r"^    (\S.*)$", outside, re.MULTILINE) + "".join(fences).splitlines()
    found = [re.sub(r" +(#| {3,}).*", "", line) for line in lines]
    return [
        " ".join(line.split())
        for line in found
        if re.match(r"(python|make|torchrun|scripts/\S+\.sh)\b", line)
    ]


def blocks(page: str) -> list[str]:
    """Return the Python blocks of a page."""
    return [block for kind, block in FENCE.findall(PAGES[page]) if kind == "python"]


def listed(command: str, names) -> bool:
    return any(command.startswith(name) for name in names)


@pytest.fixture
def clone(babble, corpus, tmp_path, monkeypatch) -> Path:
    """A folder as a clone is after README's first command, with the texts that the pages speak of."""
    from data.stories import story

    shutil.copytree(babble, tmp_path / "runs" / "quickstart")
    shutil.copytree(corpus, tmp_path / "tokens" / "stories")
    text = "\n".join(story(9, number) for number in range(300))
    for name in ("my.txt", "book.txt", "stories.txt"):
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "more.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "lines.txt").write_text("Lily was sad.\nLily was sat.\n", encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("Once there was\nOne day\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    return tmp_path


def run(command: str) -> None:
    """Run `python FILE.py …` or `python -m ROOM …` in this process; a SystemExit other than 0 fails."""
    for start, flags in SHORT.items():
        if command.startswith(start):
            command = f"{command} {flags}"
    _, *words = shlex.split(command)
    with contextlib.suppress(SystemExit) if "--help" in words else contextlib.nullcontext():
        if words[0] == "-m":
            importlib.import_module(f"{words[1]}.__main__").main(words[2:])
        elif "/" in words[0]:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        else:
            importlib.import_module(words[0].removesuffix(".py")).main(words[1:])


HERE = [page for page in PAGES if page not in ELSEWHERE]


@pytest.mark.parametrize("page", [page for page in HERE if commands(page)])
def test_commands_of_a_page_run(page, clone):
    for command in commands(page):
        if not listed(command, NOT_HERE) and not listed(command, SLOW):
            try:
                run(command)
            except (Exception, SystemExit) as error:
                raise AssertionError(f"{page}: {command}") from error


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in HERE if commands(page)])
def test_slow_commands_of_a_page_run(page, clone):
    for command in commands(page):
        if listed(command, SLOW):
            run(command)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW))
        for page in HERE
        if blocks(page) and page not in EXCERPTS
    ],
)
def test_python_of_a_page_runs(page, clone):
    names: dict = {}
    exec(NAMES + FOR_A_PAGE.get(page, ""), names)
    try:
        for block in blocks(page):
            exec(block, names)
    finally:
        kernels.set_default("auto")


@pytest.mark.parametrize("page", [page for page in HERE if ">>> " in PAGES[page]])
def test_examples_of_a_page_run(page):
    assert doctest.testfile(str(ROOT / page), module_relative=False).failed == 0


@pytest.mark.parametrize("page", ELSEWHERE)
def test_commands_that_run_elsewhere_are_there_and_have_the_flags(page, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)  # help needs no run and no data
    for command in commands(page):
        if command.startswith("python -m") and not command.startswith("python -m pytest"):
            _, _, room, *words = shlex.split(command.partition(" && ")[0])
            flags = [word for word in words if word.startswith("--")]
            named = words[: words.index(flags[0])] if flags else words
            help_all = room == "alignment" and flags  # its everyday help, as train.py's, is not all
            with contextlib.suppress(SystemExit):
                importlib.import_module(f"{room}.__main__").main(
                    [*named, "--help-all" if help_all else "--help"]
                )
            shown = capsys.readouterr().out
            assert "--help" in shown, command
            assert [flag for flag in flags if flag not in shown] == [], command


def test_every_exception_is_of_something_that_is_there():
    everything = [command for page in PAGES for command in commands(page)]
    assert all(any(command.startswith(start) for command in everything) for start in (*NOT_HERE, SLOW[0]))
    assert set(ELSEWHERE) - set(PAGES) <= {"docs/serving.md"}
