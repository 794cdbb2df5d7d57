"""The settings of a training run: a TOML preset first, then a run to resume or weights to start from, then flags.

A preset is `presets/NAME.toml` (or any path that ends in .toml): fields of TrainConfig at the top, and a table
`[model]` whose `preset` names an architecture of `model.GPTConfig` and whose other keys override its fields.
"""

import argparse
import dataclasses
import difflib
import json
import math
import os
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import tyro

from common import cli, files
from data.tokenfile import read_meta
from inference.run import check_seed, load_tokenizer, tokenizer_directory, weights_directory
from kernels.dispatch import Kernels
from model import GPTConfig, pretrained
from model.config import without_retired
from model.generate import Rules
from model.gpt import check_separable

ROOT = Path(__file__).parent.parent
PRESETS = ROOT / "presets"
C = TypeVar("C", bound="TrainConfig")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Everyday:
    """Which data, which run, how long."""

    preset: str = "quickstart"
    """Name of a file in presets/ (without .toml), or the path of one of your own: the values flags start from."""
    data: Path = Path("tokens/stories")
    """Directory that holds train.bin, val.bin, meta.json and tokenizer.json. The default one is made of the built-in
    stories when it is missing."""
    source: str | None = None
    """Prepare the data first (see python -m data prepare), such as text:my.txt, into --data or else tokens/RUN,
    by the tokenizer of --init-from if that is given."""
    run: Path | None = None
    """Directory to write: weights, log, plot, report. Default: runs/PRESET."""
    overwrite: bool = False
    """Rename a run that is already in the run directory to RUN.previous and start a new one."""
    resume: bool = False
    """Continue the run in the run directory from its last checkpoint."""
    init_from: Path | None = None
    """Start from these weights: a run (its best) or a directory with config.json and model.safetensors."""
    steps: int = 1000
    """Total optimizer steps."""
    seed: int = 1234
    """Seed of the initial weights, the batches, dropout and the sampled stories."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes a GPU if there is one."""
    kernels: Kernels = "auto"
    """Attention and norms by torch's ops, by ours (fused), or by our CUDA on the CPU (emulated, slow); auto takes ours
    if they are built for the device, unless SLM_KERNELS names others."""
    batch_tokens: int = 4096
    """Tokens per optimizer step over all processes: as many whole micro-batches as fit."""
    micro_batch: int | Literal["auto"] = 8
    """Maximum sequences per forward and backward pass; auto takes as many as fit in memory."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW, reached after the warm-up."""
    checkpoint_every: int = 500
    """Steps between two saves of RUN/last; the best weights by validation loss go to RUN/best."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimization:
    """How the weights move."""

    batches: Literal["random", "documents", "epochs", "packed"] = "random"
    """Windows that start anywhere; only where a document starts; every window once an epoch; or whole documents packed
    into rows, where none sees another (best if documents fit the context)."""
    optimizer: Literal["fused", "ours", "muon"] = "fused"
    """AdamW: torch's fused one or the plain one of training/optimizer.py (equal results); or Muon with AdamW."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of Muon, if that is the optimizer; it follows the same schedule."""
    final_learning_rate: float = 1e-4
    """Learning rate at the last step (cosine and wsd)."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """After the warm-up: half a cosine down; constant, then a linear decay (warm-up, stable, decay); or constant."""
    decay_share: float = 0.2
    """Fraction of the steps over which wsd decays."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly from zero."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; biases and norms have none, nor do embeddings under muon."""
    beta1: float = 0.9
    """AdamW's decay rate for the mean of the gradient."""
    beta2: float = 0.95
    """AdamW's decay rate for the mean of the squared gradient."""
    grad_clip: float = 1.0
    """Maximum norm of the whole gradient; 0 turns clipping off."""
    max_skips: int = 10
    """Stop after this many consecutive steps with a non-finite loss or gradient; each is skipped."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hardware:
    """How the machine computes."""

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of matrix products (weights stay float32); auto takes bfloat16 if the hardware has it."""
    tf32: bool = True
    """Let GPUs multiply float32 matrices with 10-bit mantissas (TensorFloat-32), if they can."""
    compile: bool = False
    """Compile the model with torch.compile: slow to start, faster on long runs."""
    deterministic: bool = False
    """Allow only operations that give the same bits each time, also on a GPU; slower."""
    ddp: Literal["naive", "bucketed", "torch"] = "torch"
    """Who averages the gradients under torchrun: torch's DistributedDataParallel, or one of the two teaching versions
    in training/distributed.py."""
    shard: Literal["none", "optimizer", "full"] = "none"
    """Divide among processes: nothing, the optimizer's state (ZeRO-1), or weights and all (FSDP)."""
    fsdp: Literal["ours", "torch"] = "torch"
    """Who divides the weights with --shard full: torch's FSDP2, or the teaching version in training/fsdp.py."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Monitoring:
    """What is measured, shown and kept."""

    eval_every: int = 100
    """Steps between two estimates of the training and validation loss, each with a sampled story."""
    eval_batches: int = 20
    """Micro-batches per estimate and split; the last estimate reads the whole validation file."""
    checkpoint_minutes: float = 15.0
    """Save RUN/last also when this many minutes have passed since the last save; 0 turns this off."""
    keep: int = 1
    """Checkpoints kept: RUN/last alone, or RUN/step-N of the newest K as well."""
    coherence_stories: int = 200
    """Stories sampled at the end of a run on the built-in corpus, for its checker."""
    temperature: float = 0.7
    """Sampling temperature of the stories."""
    tensorboard: bool = False
    """Also log to RUN/tensorboard (pip install tensorboard)."""
    wandb: Literal["off", "online", "offline"] = "off"
    """Also log to Weights & Biases (pip install wandb); offline writes to RUN/wandb only."""
    profile: bool = False
    """Write a trace of a few steps to RUN/profile and print the ten costliest operations."""


ABOVE_ZERO = (
    "steps",
    "batch_tokens",
    "learning_rate",
    "muon_learning_rate",
    "eval_every",
    "eval_batches",
    "checkpoint_every",
    "keep",
    "max_skips",
)
NOT_BELOW_ZERO = (
    "final_learning_rate",
    "warmup_steps",
    "weight_decay",
    "grad_clip",
    "coherence_stories",
    "temperature",
    "checkpoint_minutes",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Everyday, Optimization, Hardware, Monitoring):
    """All settings of a training run. The configuration of another objective is a subclass with a group of its own."""

    model: GPTConfig

    everyday: ClassVar[Mapping[str, type]] = {"everyday": Everyday}
    """The groups of flags that --help lists."""
    advanced: ClassVar[Mapping[str, type]] = {
        "optimization": Optimization,
        "hardware": Hardware,
        "monitoring": Monitoring,
    }
    """The further groups of flags that --help-all lists."""

    def __post_init__(self) -> None:
        for name in ABOVE_ZERO:
            if not getattr(self, name) > 0:  # also refuses NaN
                raise ValueError(f"{name} is {getattr(self, name)}: it must be above 0")
        for name in NOT_BELOW_ZERO:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must not be below 0")
        for name in ("learning_rate", "muon_learning_rate", "final_learning_rate", "weight_decay"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}: it must be finite")
        check_seed(self.seed)
        Rules(temperature=self.temperature)
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be in [0, 1)")
        if not 0 < self.decay_share <= 1:
            raise ValueError(f"decay_share is {self.decay_share}: it must be in (0, 1]")
        self._check_batch()
        self._check_contradictions()

    def _check_batch(self) -> None:
        if self.micro_batch != "auto" and not self.micro_batch > 0:
            raise ValueError(f"micro_batch is {self.micro_batch}: it must be above 0, or auto")
        if self.batch_tokens < self.micro_batch_tokens:
            raise ValueError(
                f"batch_tokens {self.batch_tokens} is less than one micro_batch of {self._rows} x block_size "
                f"{self.model.block_size} = {self.micro_batch_tokens} tokens: raise batch_tokens or lower micro_batch"
            )

    def _check_contradictions(self) -> None:
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite contradict each other: give one of them")
        if self.batches == "packed":
            check_separable(self.model)
        if self.shard == "full" and self.ddp != "torch":
            raise ValueError(f"shard full averages gradients itself: leave --ddp {self.ddp} out")

    @property
    def _rows(self) -> int:
        return 1 if self.micro_batch == "auto" else self.micro_batch

    @property
    def micro_batch_tokens(self) -> int:
        """Return the tokens in one forward pass of a process (of one sequence if micro_batch is auto)."""
        return self._rows * self.model.block_size

    @property
    def accumulation(self) -> int:
        """Return the forward and backward passes per optimizer step of a single process."""
        return self.batch_tokens // self.micro_batch_tokens

    @property
    def step_tokens(self) -> int:
        """Return the tokens per optimizer step over all processes."""
        return self.accumulation * self.micro_batch_tokens

    @property
    def run_directory(self) -> Path:
        """Return the directory that the run is written to."""
        return self.run or Path("runs") / Path(self.preset).stem

    def to_toml(self) -> str:
        """Return this configuration as TOML that `read_config` reads back, without fields that are None.

        JSON strings, numbers and booleans are also TOML, so the standard library is nearly enough.
        """
        values = dataclasses.asdict(self)
        model = values.pop("model")
        return f"{_toml_lines(values)}\n[model]\n{_toml_lines(model)}"


def _toml_lines(values: Mapping[str, Any]) -> str:
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
    words = {key: json.dumps(value, ensure_ascii=False) for key, value in plain.items() if value is not None}
    return "".join(f"{key} = {'inf' if word == 'Infinity' else word}\n" for key, word in words.items())


def read_config(path: Path, kind: type[C] = TrainConfig) -> C:
    """Read a preset or a run's config.toml as a configuration of this kind."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error
    model = values.pop("model", {})
    if not isinstance(model, dict):
        raise ValueError(f"{path}: model must be a table, [model]")
    model = without_retired(model)
    base = GPTConfig.preset(model.pop("preset")) if "preset" in model else GPTConfig()
    return kind(
        model=dataclasses.replace(base, **_known(model, GPTConfig, path)), **_known(values, kind, path)
    )


def _known(values: Mapping[str, Any], cls: type, path: Path) -> dict[str, Any]:
    """Return the values with paths as Path; ValueError for a field that `cls` lacks or a value of another type."""
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
    """True if a value from TOML has the field type `kind`."""
    if get_origin(kind) in (Union, types.UnionType):
        return any(_fits(value, each) for each in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is (str if kind is Path else kind)


def _kind(kind: Any) -> str:
    """Return a field's type in words."""
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_kind(each) for each in get_args(kind) if each is not types.NoneType)
    if get_origin(kind) is Literal:
        return " or ".join(repr(each) for each in get_args(kind))
    name = {Path: "path"}.get(kind, kind.__name__)
    return f"{'an' if name == 'int' else 'a'} {name}"


def preset_path(name: str) -> Path:
    """Return the file of a preset given by name or by path."""
    path = Path(name) if name.endswith(".toml") else PRESETS / f"{name}.toml"
    if not path.is_file():
        names = sorted(file.stem for file in PRESETS.glob("*.toml"))
        raise FileNotFoundError(
            f"no preset {name!r}: choose from {', '.join(names)}, or give the path of a .toml file"
        )
    return path


def parse_flags(argv: Sequence[str] | None, start: C, *, prog: str) -> C:
    """Return `start` changed by the flags; --help lists the everyday ones, --help-all every one, by groups."""
    words = ["--help" if word == "--help-all" else word for word in (sys.argv[1:] if argv is None else argv)]
    everyday, groups = start.everyday, {**start.everyday, **start.advanced}
    known = {
        name: group(**{field.name: getattr(start, field.name) for field in dataclasses.fields(group)})
        for name, group in groups.items()
    }
    if {"-h", "--help"} & set(sys.argv[1:] if argv is None else argv):
        brief = flags_class(everyday, "Train a GPT on token files. --help-all lists the advanced flags, too.")
        cli.parse(brief, words, prog=prog, default=brief(**{name: known[name] for name in everyday}))
    every = flags_class({**groups, "model": GPTConfig}, "Train a GPT on token files.")
    flags = cli.parse(every, words, prog=prog, default=every(**known, model=start.model))
    values = {name: value for group in groups for name, value in vars(getattr(flags, group)).items()}
    config = type(start)(**values, model=flags.model)
    _check_unused(start, config)
    return config


def flag(name: str, value: Any) -> list[str]:
    """Return the words of train.py's command line that set a field.

    >>> flag("n_embd", 64), flag("qk_norm", True), flag("bias", False)
    (['--n-embd', '64'], ['--qk-norm'], ['--no-bias'])
    """
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", str(value)]


def flags_class(groups: Mapping[str, type], summary: str) -> type:
    """Return the dataclass that the command line is read into: the fields of all groups as flags."""
    fields = [(name, tyro.conf.OmitArgPrefixes[group]) for name, group in groups.items()]
    return dataclasses.make_dataclass("Flags", fields, frozen=True, namespace={"__doc__": summary})


# A field that only some values of another one read.
READ_BY = {
    "muon_learning_rate": ("optimizer", ("muon",)),
    "decay_share": ("schedule", ("wsd",)),
    "final_learning_rate": ("schedule", ("cosine", "wsd")),
    "fsdp": ("shard", ("full",)),
}


def _check_unused(start: TrainConfig, config: TrainConfig) -> None:
    """Raise ValueError for a flag that changes a setting which no other setting lets the run read."""
    for name, (other, values) in READ_BY.items():
        if getattr(config, name) != getattr(start, name) and getattr(config, other) not in values:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{flag} has no effect with --{other} {getattr(config, other)}: leave it out, or choose "
                f"--{other} {' or '.join(values)}"
            )


def parse_config(
    argv: Sequence[str] | None,
    prog: str = "train.py",
    before_writing: Callable[[TrainConfig], None] = lambda config: None,
    *,
    kind: type[C] = TrainConfig,
    preset: str = "quickstart",
) -> C:
    """Return the preset (or, with --resume, the run's own configuration) changed by the flags, as a `kind`.

    Unless --vocab-size is given, the vocabulary of a new model is that of the token files, which are prepared here if
    they are the default corpus or have a --source. `before_writing` may refuse the configuration before that.
    """
    early = _early_flags(argv)
    if len(early.source) > 1:
        raise ValueError(
            f"--source is given {len(early.source)} times: prepare several sources by python -m data prepare, then "
            "give its folder as --data"
        )
    preset = early.preset or preset
    start = dataclasses.replace(read_config(preset_path(preset), kind), preset=preset)
    weights = Path(early.init_from) if early.init_from else start.init_from
    if early.resume:
        run = Path(early.run) if early.run else start.run_directory
        start = dataclasses.replace(read_config(_saved_config(run), kind), run=run)
    elif weights and not early.help:
        start = dataclasses.replace(start, model=pretrained.read_config(weights_directory(weights)))
    config = parse_flags(argv, start, prog=prog)
    if config.resume:
        _check_same_beginning(start, config)
        return config
    if config.source:
        if not early.data:
            config = dataclasses.replace(config, data=Path("tokens") / config.run_directory.name)
        before_writing(config)
        prepare_data(config, config.source)
    elif not early.data and not weights and _lacks_default_corpus(config):
        before_writing(config)
        prepare_data(config, DEFAULT_SOURCE)
    return config if early.vocab_size or config.init_from else with_vocabulary_of_data(config)


DEFAULT_SOURCE = "stories"


def _lacks_default_corpus(config: TrainConfig) -> bool:
    return config.data == Everyday.data and not (config.data / "meta.json").exists()


def _check_same_beginning(saved: TrainConfig, config: TrainConfig) -> None:
    """Raise ValueError if a flag changes preset, source or init_from of the run that --resume continues."""
    for field in ("preset", "source", "init_from"):
        if getattr(config, field) != getattr(saved, field):
            raise ValueError(
                f"--resume continues {config.run_directory}, which was started with another "
                f"--{field.replace('_', '-')}: leave --{field.replace('_', '-')} out"
            )


def _early_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags that decide where the other flags' defaults come from."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", nargs="?")
    first.add_argument("--run", nargs="?")
    first.add_argument("--data", nargs="?")
    first.add_argument("--source", nargs="?", action="append", default=[])
    first.add_argument("--resume", action="store_true")
    first.add_argument("-h", "--help", "--help-all", action="store_true")  # needs no weights
    first.add_argument("--init-from", "--init_from", nargs="?")
    first.add_argument("--vocab-size", "--vocab_size", nargs="?")
    return first.parse_known_args(argv)[0]


def prepare_data(config: TrainConfig, source: str) -> None:
    """Make `config.data` from `source` by the command of the data room; SystemExit if that fails.

    The tokenizer is that of the weights to start from, or a new one with the vocabulary of the model.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(
            "prepare the data once, before several processes start: "
            f"python -m data prepare --source {source} --vocab-size {config.model.vocab_size} --out {config.data}"
        )
    if config.init_from is None:
        flags = ["--vocab-size", str(config.model.vocab_size)]
    else:
        flags = ["--tokenizer", str(_tokenizer_json(config.init_from, config.data))]
    command = [sys.executable, "-m", "data", "prepare", "--source", source, "--out", str(config.data), *flags]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    if code := subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode:
        raise SystemExit(code)  # the command has printed why


def _tokenizer_json(weights: Path, data: Path) -> Path:
    """Return the tokenizer.json of the weights; GPT-2's two files are written as one next to the data."""
    directory = tokenizer_directory(weights)
    if directory is not None and (directory / "tokenizer.json").is_file():
        return directory / "tokenizer.json"
    written = data.with_name(f"{data.name}.tokenizer.json")
    load_tokenizer(weights).save(written)
    return written


def _saved_config(run: Path) -> Path:
    path = run / "config.toml"
    if not path.is_file():
        raise FileNotFoundError(f"{run} holds no run to resume (no config.toml): start one without --resume")
    return path


def with_vocabulary_of_data(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the vocabulary size of the tokenizer that made the token files."""
    model = dataclasses.replace(config.model, vocab_size=read_meta(config.data).vocab_size)
    return dataclasses.replace(config, model=model)


def save_config(config: TrainConfig) -> None:
    """Write RUN/config.toml, which `--resume` and readers of the run start from."""
    text = dataclasses.replace(config, resume=False, overwrite=False).to_toml()
    files.write_text(config.run_directory / "config.toml", text)
