"""A run's directory and data: opened, checked and claimed before anything is written."""

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path

from common import files
from data.batches import Sampler, TokenFile, windows
from inference import devices
from inference.run import same_tokenizer, weights_directory
from model import GPT
from training import watch
from training.batching import Batching
from training.checkpoint import Progress
from training.config import TrainConfig, save_config
from training.processes import Processes


def open_split(config: TrainConfig, split: str) -> TokenFile:
    """A token file that the configured model can read."""
    file = TokenFile.open(config.data, split)
    if config.model.vocab_size < file.vocab_size:
        raise ValueError(
            f"vocab_size {config.model.vocab_size} is smaller than the vocabulary of {config.data} "
            f"({file.vocab_size}): leave --vocab-size out, or prepare the data with a smaller vocabulary"
        )
    return file


def step_batches(file: TokenFile, config: TrainConfig, cut: Batching, processes: Processes) -> Sampler:
    """Endless (x, y) of this process's rows of a whole optimizer step, (rows, T) each."""
    size = config.model.block_size
    return windows(file, config.batches, cut.rows, size, config.seed, processes.rank, processes.world_size)


def check_init_from(config: TrainConfig) -> None:
    """Weights to start from read the tokens of their own tokenizer only."""
    theirs = config.init_from / "tokenizer.json"
    if theirs.is_file() and not same_tokenizer(theirs, config.data / "tokenizer.json"):
        raise ValueError(
            f"{config.init_from} was trained with another tokenizer than that of {config.data}: prepare the data "
            f"with --tokenizer {theirs}"
        )


def check_resumable(config: TrainConfig, progress: Progress) -> None:
    """A run goes on with its own data only, and not backwards."""
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
    """What tells one dataset from another: the SHA-256 of its meta.json."""
    return hashlib.sha256((data / "meta.json").read_bytes()).hexdigest()


def check_settings(config: TrainConfig) -> None:
    """Refuses what cannot work, as far as it can be known before there is data."""
    check_free(config)
    device = devices.choose_device(config.device)
    devices.choose_kernels(config.kernels, config.model, device)
    watch.wanted_trackers(config)
    if config.init_from is not None:
        GPT.check_pretrained(weights_directory(config.init_from), **dataclasses.asdict(config.model))


def check_free(config: TrainConfig) -> None:
    """Refuses a run directory that holds something, unless `overwrite`."""
    run = config.run_directory
    if run.exists() and not run.is_dir():
        raise ValueError(f"{run} is a file, not a directory for a run: choose another --run")
    if _holds_something(run) and not config.overwrite:
        raise ValueError(
            f"{run} already holds a run: choose another --run, or go on with --resume, or --overwrite it"
        )


def _holds_something(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())


def claim(config: TrainConfig) -> None:
    """Makes the run directory with tokenizer and configuration in it; an old one is set aside."""
    run = config.run_directory
    if _holds_something(run):
        previous = run.with_name(f"{run.name}.previous")
        shutil.rmtree(previous, ignore_errors=True)
        os.rename(run, previous)
    run.mkdir(parents=True, exist_ok=True)
    with files.atomic(run / "tokenizer.json") as file:
        file.write((config.data / "tokenizer.json").read_bytes())
    save_config(config)
