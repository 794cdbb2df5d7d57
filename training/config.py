"""Where a TrainConfig comes from: a TOML preset first, then a run to resume or weights to start from, then flags.

A preset is `presets/NAME.toml` (or any path that ends in .toml): fields of TrainConfig at the top, and a table
`[model]` whose `preset` names an architecture of `model.GPTConfig` and whose other keys override its fields.
"""

import argparse
import dataclasses
import difflib
import os
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from common import cli, files
from inference.run import weights_directory
from model import GPTConfig, pretrained
from model.config import without_retired
from training.options import TrainConfig

PRESETS = Path(__file__).parent.parent / "presets"


def read_config(path: Path) -> TrainConfig:
    """Reads a preset or a run's config.toml."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    model = values.pop("model", {})
    if not isinstance(model, dict):
        raise ValueError(f"{path}: model must be a table, [model]")
    model = without_retired(model)
    base = GPTConfig.preset(model.pop("preset")) if "preset" in model else GPTConfig()
    return TrainConfig(
        model=dataclasses.replace(base, **_known(model, GPTConfig, path)), **_known(values, TrainConfig, path)
    )


def _known(values: Mapping[str, Any], cls: type, path: Path) -> dict[str, Any]:
    """The values with paths made paths; a field that `cls` lacks, or a value of another type, is refused."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{path}: unknown field {key!r}{hint}")
        if not _fits(value, fields[key].type):
            raise ValueError(f"{path}: {key} is {value!r}, not {_kind(fields[key].type)}")
    return {
        key: Path(value) if Path in (fields[key].type, *get_args(fields[key].type)) else value
        for key, value in values.items()
    }


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value from TOML is one of the field type `kind`."""
    if get_origin(kind) in (Union, types.UnionType):
        return any(_fits(value, each) for each in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is (str if kind is Path else kind)


def _kind(kind: Any) -> str:
    """A field's type in words."""
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_kind(each) for each in get_args(kind) if each is not types.NoneType)
    if get_origin(kind) is Literal:
        return " or ".join(repr(each) for each in get_args(kind))
    name = {Path: "path"}.get(kind, kind.__name__)
    return f"{'an' if name == 'int' else 'a'} {name}"


def preset_path(name: str) -> Path:
    """The file of a preset given by name or by path."""
    path = Path(name) if name.endswith(".toml") else PRESETS / f"{name}.toml"
    if not path.is_file():
        names = sorted(file.stem for file in PRESETS.glob("*.toml"))
        raise FileNotFoundError(
            f"no preset {name!r}: choose from {', '.join(names)}, or give the path of a .toml file"
        )
    return path


def parse_config(
    argv: Sequence[str] | None,
    prog: str = "train.py",
    before_writing: Callable[[TrainConfig], None] = lambda config: None,
) -> TrainConfig:
    """Preset (or, with --resume, the run's own configuration) first, flags on top.

    Unless --vocab-size is given, the vocabulary of a new model is that of the token files. `before_writing` may
    refuse the configuration before data is prepared from its source.
    """
    early = _early_flags(argv)
    preset = early.preset or "quickstart"
    start = dataclasses.replace(read_config(preset_path(preset)), preset=preset)
    if early.resume:
        run = Path(early.run) if early.run else start.run_directory
        start = dataclasses.replace(read_config(_saved_config(run)), run=run)
    elif early.init_from:
        start = dataclasses.replace(
            start, model=pretrained.read_config(weights_directory(Path(early.init_from)))
        )
    config = cli.parse(TrainConfig, argv, prog=prog, default=start)
    if config.resume:
        _check_same_beginning(start, config)
    elif config.source:
        if not early.data:
            config = dataclasses.replace(config, data=Path("tokens") / config.run_directory.name)
        before_writing(config)
        prepare_data(config)
    return (
        config if early.vocab_size or config.init_from or config.resume else with_vocabulary_of_data(config)
    )


def _check_same_beginning(saved: TrainConfig, config: TrainConfig) -> None:
    """What a run began from cannot be told it once more, or otherwise, when it goes on."""
    for field in ("preset", "source", "init_from"):
        if getattr(config, field) != getattr(saved, field):
            raise ValueError(
                f"--resume goes on from the last checkpoint of {config.run_directory}, which began otherwise: leave "
                f"--{field.replace('_', '-')} out"
            )


def _early_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags that say where the other flags' defaults come from."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", nargs="?", default="quickstart")
    first.add_argument("--run", nargs="?")
    first.add_argument("--data", nargs="?")
    first.add_argument("--resume", action="store_true")
    first.add_argument("--init-from", "--init_from", nargs="?")
    first.add_argument("--vocab-size", "--vocab_size", nargs="?")
    return first.parse_known_args(argv)[0]


def prepare_data(config: TrainConfig) -> None:
    """Makes `config.data` from `config.source`, with the tokenizer that came with the weights to start from."""
    from data.prepare import Prepare, prepare

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("prepare the data once, before several processes start: python -m data prepare")
    options: dict[str, Any] = {"source": (config.source,), "out": config.data}
    tokenizer = config.init_from / "tokenizer.json" if config.init_from else None
    if tokenizer is not None:
        options["tokenizer"] = str(tokenizer) if tokenizer.is_file() else "gpt2"
    else:
        options["vocab_size"] = config.model.vocab_size
    prepare(Prepare(**options))


def _saved_config(run: Path) -> Path:
    path = run / "config.toml"
    if not path.is_file():
        raise FileNotFoundError(f"{run} holds no run to resume (no config.toml): start one without --resume")
    return path


def with_vocabulary_of_data(config: TrainConfig) -> TrainConfig:
    """The same configuration, its model as wide as the vocabulary that the token files were made with."""
    from data.prepare import read_meta

    model = dataclasses.replace(config.model, vocab_size=read_meta(config.data).vocab_size)
    return dataclasses.replace(config, model=model)


def save_config(config: TrainConfig) -> None:
    """Writes RUN/config.toml: what `--resume` and readers of the run go by."""
    text = dataclasses.replace(config, resume=False, overwrite=False).to_toml()
    files.write_text(config.run_directory / "config.toml", text)
