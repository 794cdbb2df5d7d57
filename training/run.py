"""A run's directory, model and settings: checked and claimed before anything is written."""

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path

import torch

from common import files
from inference import devices
from inference.run import same_tokenizer, weights_directory
from model import GPT, pretrained
from training import watch
from training.checkpoint import Progress
from training.config import TrainConfig, save_config


def make_model(config: TrainConfig, device: torch.device) -> GPT:
    """Return a model with random weights, or with those to start from."""
    shape = devices.choose_kernels(config.kernels, config.model, device)
    if config.init_from is None or config.resume:
        return GPT(shape).to(device)
    check_init_from(config)
    return GPT.from_pretrained(weights_directory(config.init_from), **dataclasses.asdict(shape)).to(device)


def check_init_from(config: TrainConfig) -> None:
    """Raise ValueError if the weights to start from have another tokenizer than the data."""
    theirs = config.init_from / "tokenizer.json"
    if theirs.is_file() and not same_tokenizer(theirs, config.data / "tokenizer.json"):
        raise ValueError(
            f"{config.init_from} was trained with another tokenizer than that of {config.data}: prepare the data "
            f"with --tokenizer {theirs}"
        )


def check_resumable(config: TrainConfig, progress: Progress) -> None:
    """Raise ValueError if a run is resumed with other data, or with fewer steps than it has taken."""
    ours, theirs = config.run_directory / "tokenizer.json", config.data / "tokenizer.json"
    if not ours.is_file() or not same_tokenizer(ours, theirs):
        raise ValueError(
            f"{config.run_directory} was trained with another tokenizer than {theirs}: resume with its own --data"
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
    """Return the SHA-256 of the data's meta.json, which tells datasets apart."""
    return hashlib.sha256((data / "meta.json").read_bytes()).hexdigest()


def check_settings(config: TrainConfig) -> None:
    """Raise ValueError for settings that cannot work, as far as that is known before there is data."""
    check_free(config)
    device = devices.choose_device(config.device)
    shape = devices.choose_kernels(config.kernels, config.model, device)
    watch.wanted_trackers(config)
    if config.init_from is not None:
        pretrained.check(weights_directory(config.init_from), **dataclasses.asdict(shape))


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


def claim(config: TrainConfig) -> None:
    """Make the run directory with tokenizer and configuration in it; rename an old one to RUN.previous."""
    run = config.run_directory
    if _holds_something(run):
        previous = run.with_name(f"{run.name}.previous")
        shutil.rmtree(previous, ignore_errors=True)
        os.rename(run, previous)
    run.mkdir(parents=True, exist_ok=True)
    with files.atomic(run / "tokenizer.json") as file:
        file.write((config.data / "tokenizer.json").read_bytes())
    save_config(config)
