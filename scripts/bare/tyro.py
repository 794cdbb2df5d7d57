"""Stands in for tyro on a machine without a network: scripts/gpu_check.py puts this folder on the path without tyro.

It reads what the check needs, the flags of a dataclass: --name VALUE for each field, those of a nested dataclass among
them, --flag and --no-flag for truth values, positional arguments where a field is annotated so. It knows no
subcommands; other annotations are accepted and ignored. tests/scripts/test_bare.py holds it against tyro itself.
"""

import argparse
import dataclasses
import sys
import types
import typing


class _Marker:
    """tyro.conf.NAME: NAME[type] is the type, and NAME(…) says nothing."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return self.name

    def __getitem__(self, kind):
        return kind

    def __call__(self, *_, **__):
        return self


class _Conf:
    def __getattr__(self, name):
        return _Marker(name)


conf = _Conf()


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        print(f"Error\n{message}", file=sys.stderr)  # a title and a text, as common/cli.py expects them
        raise SystemExit(2)


def cli(options, *, args=None, prog=None, default=None):
    """Return `options` with the fields that the flags give; the others come from `default`."""
    parser = _Parser(prog=prog, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    _add_flags(parser, options)
    return _build(options, vars(parser.parse_args(args)), default)


def _fields(options):
    kinds = typing.get_type_hints(options)
    return [(field, kinds[field.name]) for field in dataclasses.fields(options)]


def _positional(options):
    """Return the names of the fields annotated with tyro.conf.Positional."""
    hints = typing.get_type_hints(options, include_extras=True)
    return {
        name for name, hint in hints.items() if "Positional" in map(repr, getattr(hint, "__metadata__", ()))
    }


def _add_flags(parser, options):
    for field, kind in _fields(options):
        if dataclasses.is_dataclass(kind):
            _add_flags(parser, kind)
            continue
        if field.name in _positional(options):
            parser.add_argument(field.name, **{"nargs": "?", **_action(kind)})
            continue
        names = {f"--{field.name.replace('_', '-')}", f"--{field.name}"}
        parser.add_argument(*sorted(names), dest=field.name, **_action(kind))


def _action(kind):
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(kind) is tuple:
        return {"nargs": "*", "type": _reader(typing.get_args(kind)[0])}
    return {"type": _reader(kind)}


def _reader(kind):
    """Return a function from a word to a value of `kind`: a type, a Literal or a union of these."""
    choices = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)

    def read(word):
        for choice in choices:
            if typing.get_origin(choice) is typing.Literal and word in typing.get_args(choice):
                return word
            try:
                if choice is types.NoneType and word == "None":
                    return None
                if choice is not types.NoneType and typing.get_origin(choice) is not typing.Literal:
                    return choice(word)
            except ValueError:
                pass
        raise argparse.ArgumentTypeError(f"{word!r} is not {kind}")

    return read


def _build(options, given, default):
    values = {}
    for field, kind in _fields(options):
        known = {} if default is None else {field.name: getattr(default, field.name)}
        if dataclasses.is_dataclass(kind):
            values[field.name] = _build(kind, given, known.get(field.name))
        elif field.name in given:
            value = given[field.name]
            values[field.name] = tuple(value) if isinstance(value, list) else value
        else:
            values |= known
    return options(**values)
