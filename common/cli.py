"""Command lines: typed from dataclasses by tyro, and a user's mistake is one line and exit code 2.

    @cli.command
    def main(argv: Sequence[str] | None = None) -> None:
        options = cli.parse(Options, argv, prog="train.py")

Set SLM_TRACEBACK=1 to see where an error came from.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import inspect
import io
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, NoReturn, TypeVar

import tyro

from common import process

T = TypeVar("T")

process.spin_briefly()  # here, because every command imports this file before torch


def fail(message: str) -> NoReturn:
    """Print one line on stderr and leave with exit code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def parse(options: type[T], argv: Sequence[str] | None, *, prog: str, default: T | None = None) -> T:
    """Read `argv` (sys.argv[1:] when None) into the dataclass `options`; flags come from its fields."""
    known = {} if default is None else {"default": default}
    words = _join_repeated(list(sys.argv[1:] if argv is None else argv), _flags_of_several(options))
    box = io.StringIO()
    help_asked = {"-h", "--help"} & set(words) and importlib.util.find_spec("docstring_parser")
    try:
        with (
            contextlib.redirect_stderr(box),
            _joined_docstrings() if help_asked else contextlib.nullcontext(),
        ):
            return tyro.cli(options, args=words, prog=prog, **known)
    except SystemExit as stop:
        if not stop.code:
            raise
        text = re.sub(r"^Error parsing \w+: ", "", _first_paragraph(box.getvalue()))  # a class, not a flag
        fail(f"{text} (see {prog} --help)")


@contextlib.contextmanager
def _joined_docstrings() -> Iterator[None]:
    """Join the lines of each field's docstring: tyro's help would break where an indented line of the source begins."""
    import docstring_parser  # comes with tyro

    original = docstring_parser.parse_from_object

    def joined(obj: Any) -> docstring_parser.Docstring:
        parsed = original(obj)
        for field in parsed.params:
            field.description = " ".join((field.description or "").split()) or None
        return parsed

    docstring_parser.parse_from_object = joined
    try:
        yield
    finally:
        docstring_parser.parse_from_object = original


def _flags_of_several(options: type) -> set[str]:
    """Return the names of the fields, also of nested dataclasses, whose flag takes any number of values."""
    if not dataclasses.is_dataclass(options):
        return set()
    names: set[str] = set()
    for name, hint in typing.get_type_hints(options, include_extras=True).items():
        kind, *marks = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
        for each in typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,):
            names |= _flags_of_several(each)
            several = typing.get_origin(each) is tuple and typing.get_args(each)[-1:] == (Ellipsis,)
            if several and tyro.conf.UseAppendAction not in marks:
                names.add(name)
    return names


def _join_repeated(words: list[str], several: set[str]) -> list[str]:
    """Return the words with the values of a repeated flag in one place; tyro would take the last ones alone.

    >>> _join_repeated(["--source", "a", "--seed", "1", "--source=b", "c"], {"source"})
    ['--source', 'a', 'b', 'c', '--seed', '1']
    >>> _join_repeated(["run", "--out", "x"], set())
    ['run', '--out', 'x']
    """
    groups: dict[str, list[str]] = {}  # the words that begin with one flag, by its name
    group = groups.setdefault("", [])  # positional arguments before the first flag
    for number, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if word.startswith("--"):
            name = flag[2:].replace("-", "_").rpartition(".")[2]
            key = name if name in several else f"{flag} {number}"
            group = groups.setdefault(key, [flag])
            group += [value] if equals else []
        else:
            group.append(word)
    return [word for group in groups.values() for word in group]


class Module(NamedTuple):
    """A command that is a module with a `main(argv)`, imported when it is called."""

    name: str
    summary: str


Command = tuple[type, Callable] | Module | Mapping[str, "Command"]


def dispatch(commands: Mapping[str, Command], argv: Sequence[str] | None, *, prog: str) -> None:
    """Run `commands[name] = (options, run)` for argv = [name, flags …] as run(parse(options, flags)).

    In place of the pair, a Module parses the flags itself; a mapping holds further commands, named by the next word.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"]):
        print(f"usage: {prog} COMMAND [--help] …")
        for name, command in commands.items():
            print(f"  {name:{max(map(len, commands))}}  {_summary(command)}")
    elif not words or words[0] not in commands:
        wrong = f"no command {words[0]!r}; " if words else ""
        fail(f"{wrong}say what to do: {prog} {' | '.join(commands)} (each with --help)")
    elif isinstance(command := commands[words[0]], Module):
        importlib.import_module(command.name).main(words[1:])
    elif isinstance(command, Mapping):
        dispatch(command, words[1:], prog=f"{prog} {words[0]}")
    else:
        options, run = command
        run(parse(options, words[1:], prog=f"{prog} {words[0]}"))


def _summary(command: Command) -> str:
    """Return the first line of a command's help, or the names of the commands below it."""
    if isinstance(command, Module):
        return command.summary
    return " | ".join(command) if isinstance(command, Mapping) else inspect.getdoc(command[0]).splitlines()[0]


def _first_paragraph(box: str) -> str:
    """Return tyro's message between its title and the rule below it, as one line.

    The frame is drawn with dashes where the terminal's encoding is not UTF-8.

    >>> _first_paragraph("╭─ Value error ─╮\\n│ no such    │\\n│ flag  │\\n│ ─── │\\n│ more │\\n╰──╯")
    'no such flag'
    >>> _first_paragraph(" Value error  \\n -------- \\n  no such  \\n  flag \\n -------- \\n  more ")
    'no such flag'
    """
    words: list[str] = []
    for line in box.splitlines()[1:]:
        text = line.strip("│ ")
        if not set(text) <= set("─-╰╯"):
            words += text.split()
        elif words:
            break
    return " ".join(words)


def command(main: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a `main(argv)`: ValueError and OSError become one line and exit code 2, Ctrl-C exit code 130."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> Any:
        try:
            return main(argv)
        except BrokenPipeError:  # the reader of our output (head, less) has left: not an error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        except (ValueError, OSError) as error:
            if os.environ.get("SLM_TRACEBACK"):
                raise
            fail(_explain(error))
        except KeyboardInterrupt as stop:
            print(str(stop) or "interrupted", file=sys.stderr)
            raise SystemExit(130) from None

    return wrapped


def _explain(error: Exception) -> str:
    """Return the message; a system error names its file first."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
