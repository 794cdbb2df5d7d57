"""A user's mistake is one line and exit code 2; a bug keeps its traceback."""

import dataclasses
from typing import Literal

import pytest
import tyro

from common import cli


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a test."""

    count: int = 1
    """How many; this help text is long enough to be wrapped in a terminal of the usual eighty columns."""
    kind: Literal["plain", "fancy"] = "plain"
    """Which of the two: a text that is written in
    two lines."""

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count is {self.count}: it must not be negative")


@cli.command
def main(argv=None) -> Options:
    return cli.parse(Options, argv, prog="test.py")


def test_flags_become_a_dataclass():
    assert main(["--count", "3", "--kind", "fancy"]) == Options(3, "fancy")


@dataclasses.dataclass(frozen=True)
class Nested:
    """Options within others."""

    sizes: tuple[int, ...] = ()
    """Sizes."""
    shape: tuple[int, int] = (0, 0)
    """A fixed number of values."""


@dataclasses.dataclass(frozen=True)
class Several:
    """Options that take several values."""

    source: tuple[str, ...] = ("default",)
    """Sources."""
    weights: tuple[float, ...] | None = None
    """Weights."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Collected by tyro itself."""
    steps: int = 1
    """A single value."""
    inner: Nested = Nested()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], Several()),
        (["--source", "a", "--source", "b"], Several(source=("a", "b"))),
        (["--source", "a", "b", "--steps", "3", "--source=c"], Several(source=("a", "b", "c"), steps=3)),
        (["--weights", "1", "--source", "-", "--weights", "-2", "3"], Several(("-",), weights=(1, -2, 3))),
        (["--inner.sizes", "1", "--inner.sizes", "2"], Several(inner=Nested(sizes=(1, 2)))),
        (["--inner.shape", "1", "2", "--inner.shape", "3", "4"], Several(inner=Nested(shape=(3, 4)))),
        (["--stop", "a", "--stop", "b"], Several(stop=("a", "b"))),
        (["--steps", "3", "--steps", "4"], Several(steps=4)),  # one value: the last, as everywhere
    ],
)
def test_a_repeated_flag_keeps_all_its_values(argv, expected):
    assert cli.parse(Several, argv, prog="test.py") == expected


def test_a_command_gets_its_own_options(capsys, refused):
    def several(*argv):
        return cli.dispatch({"say": (Options, lambda options: print(options.count))}, argv, prog="several")

    several("say", "--count", "4")
    assert capsys.readouterr().out == "4\n"
    several("--help")
    assert "say  Options of a test." in capsys.readouterr().out
    for argv, problem in (([], "error: "), (["shout"], "error: no command 'shout'; ")):
        assert f"{problem}say what to do: several say" in refused(lambda words: several(*words), *argv)


def test_help_names_every_flag(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    text = capsys.readouterr().out
    assert not stop.value.code
    assert "--count" in text
    assert "How many" in text
    assert "written in two lines" in " ".join(text.replace("│", " ").split())
    broken = [line.strip("│ ") for line in text.splitlines() if "Which of the two" in line]
    assert not broken[0].endswith("written in")


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--cuont", "3"], "error: Unrecognized options: --cuont, 3 (see test.py --help)"),
        (["--count", "three"], "--count"),
        (["--kind", "odd"], "odd"),
        (["--count"], "--count"),
        (["--count", "-3"], "error: count is -3: it must not be negative (see test.py --help)"),
    ],
)
def test_a_wrong_flag_is_one_line(refused, argv, complaint):
    assert complaint in refused(main, *argv)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("cause:\nfix"), "error: cause: fix\n"),
        (FileNotFoundError("no such run"), "error: no such run\n"),
        (PermissionError(13, "Permission denied", "a.txt"), "error: a.txt: Permission denied\n"),
    ],
)
def test_mistakes_become_one_line(error, line, capsys, monkeypatch):
    monkeypatch.delenv("SLM_TRACEBACK", raising=False)

    @cli.command
    def failing(argv=None):
        raise error

    with pytest.raises(SystemExit) as stop:
        failing([])
    assert stop.value.code == 2
    assert capsys.readouterr().err == line
    monkeypatch.setenv("SLM_TRACEBACK", "1")
    with pytest.raises(type(error)):
        failing([])


def test_a_bug_is_not_hidden():
    @cli.command
    def buggy(argv=None):
        raise KeyError("x")

    with pytest.raises(KeyError):
        buggy([])


def test_ctrl_c_leaves_with_130(capsys):
    @cli.command
    def endless(argv=None):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        endless([])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_commands_may_hold_further_commands(capsys, refused):
    seen = []
    commands = {"outer": {"inner": (Options, seen.append)}}
    cli.dispatch(commands, ["outer", "inner"], prog="p")
    assert seen == [Options()]
    cli.dispatch(commands, ["--help"], prog="p")
    assert "outer  inner" in capsys.readouterr().out
    assert "say what to do: p outer inner" in refused(
        lambda argv: cli.dispatch(commands, argv, prog="p"), "outer"
    )
