"""All that a training run can be told: one frozen dataclass, read from a TOML preset, then from flags.

A preset is `presets/NAME.toml` (or any path that ends in .toml): fields of TrainConfig at the top, and a table
`[model]` whose `preset` names an architecture of `model.GPTConfig` and whose other keys override its fields.
"""

import argparse
import dataclasses
import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from common import cli, files
from model import GPTConfig

PRESETS = Path(__file__).parent.parent / "presets"


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train a GPT on token files made by `python -m data prepare`."""

    model: tyro.conf.OmitArgPrefixes[GPTConfig]

    preset: str = "quickstart"
    """Name of a file in presets/ (without .toml), or the path of one of your own: the values flags start from."""
    data: Path = Path("tokens/stories")
    """Directory that holds train.bin, val.bin, meta.json and tokenizer.json."""
    run: Path | None = None
    """Directory to write: weights, log, plot, report. Default: runs/PRESET."""
    overwrite: bool = False
    """Set a run that is already in the run directory aside (as RUN.previous) and start anew."""
    resume: bool = False
    """Go on with the run in the run directory from its last checkpoint."""

    steps: int = 1000
    """Optimizer steps in all."""
    seed: int = 1234
    """Seed of the initial weights, the batches, dropout and the stories told at the end."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU where there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products (weights stay float32); auto takes bfloat16 where the hardware has it."""
    compile: bool = False
    """Compile the model with torch.compile: slow to start, faster on long runs."""

    batch_tokens: int = 4096
    """Tokens per optimizer step, over all accumulated micro-batches."""
    micro_batch: int = 16
    """Sequences per forward and backward pass; a step accumulates batch_tokens / (micro_batch * block_size)."""
    optimizer: Literal["fused", "ours"] = "fused"
    """AdamW: torch's fused one, or the plain one in training/optimizer.py (equal results)."""
    learning_rate: float = 1e-3
    """Peak learning rate, reached after the warm-up."""
    final_learning_rate: float = 1e-4
    """Learning rate at the last step, at the foot of the cosine."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly from zero."""
    weight_decay: float = 0.1
    """Decoupled weight decay on matrices; biases, norms and nothing else are left alone."""
    beta1: float = 0.9
    """AdamW's memory of the gradient."""
    beta2: float = 0.95
    """AdamW's memory of the squared gradient."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient; 0 turns clipping off."""

    eval_every: int = 100
    """Steps between two estimates of the train and validation loss."""
    eval_batches: int = 20
    """Micro-batches per estimate and split; the last estimate reads the whole validation file."""
    checkpoint_every: int = 500
    """Steps between two saves of RUN/last; the best weights by validation loss go to RUN/best."""
    coherence_stories: int = 200
    """Stories sampled at the end of a run on the built-in corpus, to be judged by its checker."""
    temperature: float = 0.7
    """Temperature of the stories told at the end."""

    def __post_init__(self) -> None:
        positive = ("steps", "batch_tokens", "micro_batch", "learning_rate", "eval_every", "eval_batches")
        for name in (*positive, "checkpoint_every"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")
        for name in ("final_learning_rate", "warmup_steps", "weight_decay", "grad_clip", "temperature"):
            if not getattr(self, name) >= 0:  # also refuses NaN
                raise ValueError(f"{name} is {getattr(self, name)}: it must not be below 0")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be in [0, 1)")
        if self.batch_tokens % self.micro_batch_tokens:
            raise ValueError(
                f"batch_tokens {self.batch_tokens} is not a multiple of micro_batch {self.micro_batch} x block_size "
                f"{self.model.block_size} = {self.micro_batch_tokens}: change one of the three"
            )
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite contradict each other: give one of them")

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens in one forward pass."""
        return self.micro_batch * self.model.block_size

    @property
    def accumulation(self) -> int:
        """Forward and backward passes per optimizer step."""
        return self.batch_tokens // self.micro_batch_tokens

    @property
    def run_directory(self) -> Path:
        """Where the run is written."""
        return self.run or Path("runs") / Path(self.preset).stem

    def to_toml(self) -> str:
        """This configuration as TOML that `read_config` reads back; None is left out.

        A JSON string, number or truth value is also a TOML one, so the standard library is enough.
        """
        values = dataclasses.asdict(self)
        model = values.pop("model")
        return f"{_toml_lines(values)}\n[model]\n{_toml_lines(model)}"


def _toml_lines(values: Mapping[str, Any]) -> str:
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in plain.items() if value is not None)


def read_config(path: Path) -> TrainConfig:
    """Reads a preset or a run's config.toml."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    model = dict(values.pop("model", {}))
    if not isinstance(model, dict):
        raise ValueError(f"{path}: model must be a table, [model]")
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
        default = fields[key].default
        kind = type(default)
        fits = isinstance(value, (int, float)) if kind is float else type(value) is kind
        if kind in (bool, int, float, str) and not fits:
            raise ValueError(
                f"{path}: {key} is {value!r}, not {'an' if kind is int else 'a'} {kind.__name__}"
            )
    return {key: Path(value) if key in ("data", "run") else value for key, value in values.items()}


def preset_path(name: str) -> Path:
    """The file of a preset given by name or by path."""
    path = Path(name) if name.endswith(".toml") else PRESETS / f"{name}.toml"
    if not path.is_file():
        names = sorted(file.stem for file in PRESETS.glob("*.toml"))
        raise FileNotFoundError(
            f"no preset {name!r}: choose from {', '.join(names)}, or give the path of a .toml file"
        )
    return path


def parse_config(argv: Sequence[str] | None, prog: str = "train.py") -> TrainConfig:
    """Preset (or, with --resume, the run's own configuration) first, flags on top.

    Unless --vocab-size is given, the model's vocabulary is that of the token files.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", nargs="?", default="quickstart")
    first.add_argument("--run", nargs="?")
    first.add_argument("--resume", action="store_true")
    first.add_argument("--vocab-size", "--vocab_size", nargs="?")
    early, _ = first.parse_known_args(argv)
    preset = early.preset or "quickstart"
    start = dataclasses.replace(read_config(preset_path(preset)), preset=preset)
    if early.resume:
        run = Path(early.run) if early.run else start.run_directory
        start = dataclasses.replace(read_config(_saved_config(run)), run=run)
    config = cli.parse(TrainConfig, argv, prog=prog, default=start)
    return config if early.vocab_size else with_vocabulary_of_data(config)


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
