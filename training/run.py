"""A run's directory, model and settings: checked and claimed before anything is written."""

import dataclasses
import fcntl
import hashlib
import itertools
import os
from pathlib import Path
from typing import Any

import torch

from common import files
from data.tokenfile import sha256
from inference import devices
from inference.run import (
    TOKENIZER_CONFIG,
    load_tokenizer,
    same_tokenizer,
    tokenizer_directory,
    weights_directory,
)
from model import GPT, pretrained
from training import watch
from training.checkpoint import Progress
from training.config import TrainConfig, save_config


def make_model(config: TrainConfig, device: torch.device) -> GPT:
    """Return a model with random weights, or with those to start from unless a checkpoint will replace them."""
    devices.choose_kernels(config.kernels, config.model, device)
    resumed = config.resume and has_checkpoint(config.run_directory)
    if config.init_from is None or resumed:
        return GPT(config.model).to(device)
    check_init_from(config)
    model = GPT.from_pretrained(weights_directory(config.init_from), **_fields_of_weights(config))
    return model.with_vocabulary(config.model.vocab_size).to(device)


def _fields_of_weights(config: TrainConfig) -> dict[str, Any]:
    """Return the fields of the model to train, with the vocabulary of the weights that it starts from.

    The tokenizer of the data may have got special tokens, for which rows are added.
    """
    stored = pretrained.read_config(weights_directory(config.init_from)).vocab_size
    fields = dataclasses.asdict(config.model)
    return fields | {"vocab_size": min(stored, config.model.vocab_size)}


def has_checkpoint(run: Path) -> bool:
    """True if a run can be resumed from RUN/last; one that was killed earlier starts from the beginning."""
    return files.whole_directory(run / "last").is_dir()


def check_init_from(config: TrainConfig) -> None:
    """Raise ValueError if the weights to start from have another tokenizer than the data, or none.

    That of the data may have more special tokens.
    """
    theirs = _tokenizer_of_weights(config)
    if not same_tokenizer(theirs, config.data, or_extended=True):
        raise ValueError(
            f"{config.init_from} was trained with another tokenizer than that of {config.data}: prepare the data "
            f"with the tokenizer in {theirs}, or by --source"
        )


def _tokenizer_of_weights(config: TrainConfig) -> Path:
    theirs = tokenizer_directory(config.init_from)
    if theirs is None:
        raise FileNotFoundError(
            f"{config.init_from} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt), so that nothing "
            "tells what its ids mean: copy it from where the model was trained"
        )
    return theirs


def check_resumable(config: TrainConfig, progress: Progress) -> None:
    """Raise ValueError if a run is resumed with other data, or with fewer steps than it has taken."""
    ours = config.run_directory
    if not (ours / "tokenizer.json").is_file() or not same_tokenizer(ours, config.data):
        raise ValueError(
            f"{ours} was trained with another tokenizer than {config.data}: resume with its own --data"
        )
    if progress.data and progress.data != fingerprint(config.data):
        raise ValueError(
            f"{config.run_directory} was trained on another dataset than {config.data}: resume with its own --data"
        )
    if config.steps < progress.step:
        raise ValueError(
            f"{config.run_directory} has done {progress.step} steps already: give --steps {progress.step} or more"
        )


def fingerprint(data: Path) -> str:
    """Return the SHA-256 of the two splits' files, whatever their directory or date."""
    digest = hashlib.sha256()
    for file in sorted(file for split in ("train", "val") for file in data.glob(f"{split}.*")):
        digest.update(sha256(file).encode())
    return digest.hexdigest()


def check_settings(config: TrainConfig) -> None:
    """Raise ValueError for settings that cannot work, as far as that is known before there is data."""
    check_free(config)
    device = devices.choose_device(config.device)
    devices.choose_kernels(config.kernels, config.model, device)
    watch.wanted_trackers(config)
    if config.init_from is not None:
        GPT.check_pretrained(weights_directory(config.init_from), **_fields_of_weights(config))
        tokenizer = load_tokenizer(_tokenizer_of_weights(config))
        if tokenizer.vocab_size > config.model.vocab_size:
            raise ValueError(
                f"the tokenizer of {config.init_from} has {tokenizer.vocab_size} tokens, its model only "
                f"{config.model.vocab_size}: it is another model's tokenizer"
            )


BUSY = "another process is training {run}: wait for it, or choose another --run"


class Lock:
    """Keeps other processes from writing to a run directory; the lock ends with the process, however it ends."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def take(self, run: Path) -> bool:
        """Lock a run directory, if there is one; return False if another process has it."""
        self.release()
        if not run.is_dir():
            return True
        self._descriptor = os.open(run, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            self.release()
            return False

    def release(self) -> None:
        """Unlock the directory."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def check_free(config: TrainConfig) -> None:
    """Raise ValueError if the run directory holds something, unless it may be set aside."""
    run = config.run_directory
    if run.exists() and not run.is_dir():
        raise ValueError(f"{run} is a file, not a directory for a run: choose another --run")
    if _holds_something(run) and not config.overwrite:
        raise ValueError(
            f"{run} already holds a run: choose another --run, or continue it with --resume, or --overwrite it"
        )


def _holds_something(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())


def claim(config: TrainConfig, lock: Lock) -> None:
    """Make and lock the run directory, with tokenizer and configuration in it; rename an old one to RUN.previous."""
    run = config.run_directory
    if _holds_something(run):
        if not lock.take(run):
            raise ValueError(BUSY.format(run=run))
        os.rename(run, _free_name(run.with_name(f"{run.name}.previous")))
    run.mkdir(parents=True, exist_ok=True)
    if not lock.take(run) or _holds_something(run):
        raise ValueError(BUSY.format(run=run))
    for name in ("tokenizer.json", TOKENIZER_CONFIG):  # the latter, with a chat template, only in chat data
        if (config.data / name).is_file():
            with files.atomic(run / name) as file:
                file.write((config.data / name).read_bytes())
    save_config(config)


def _free_name(path: Path) -> Path:
    """Return the path, or the first of PATH-2, PATH-3, … that does not exist: nothing is overwritten."""
    names = itertools.chain([path], (path.with_name(f"{path.name}-{n}") for n in itertools.count(2)))
    return next(name for name in names if not name.exists())
