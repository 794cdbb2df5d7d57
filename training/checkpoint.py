"""What a run leaves on disk: weights that any reader can load, and all that is needed to go on as if never stopped.

    RUN/best, RUN/last    config.json + model.safetensors (GPT-2's layout)
    RUN/last              also state.safetensors + state.json: optimizer, random states, step, data position

Tensors are safetensors and the rest is JSON: loading a checkpoint runs no code.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from common import files
from model import GPT


@dataclasses.dataclass
class Progress:
    """How far a run has come; everything here is plain JSON."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_val_loss: float = float("inf")
    batches: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Position of the batch sampler."""


def save_weights(directory: Path, model: GPT) -> None:
    """Replaces `directory` by one with the model's weights and config."""
    with files.atomic_directory(directory) as aside:
        model.save_pretrained(aside)


def save_state(directory: Path, model: GPT, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Replaces `directory` by one with weights, optimizer, random states and progress."""
    with files.atomic_directory(directory) as aside:
        model.save_pretrained(aside)
        save_file({**_optimizer_tensors(optimizer), **_random_states()}, aside / "state.safetensors")
        files.write_json(aside / "state.json", dataclasses.asdict(progress))


def load_state(directory: Path, model: GPT, optimizer: torch.optim.Optimizer) -> Progress:
    """Puts a saved state back into `model`, `optimizer` and the random generators."""
    directory = files.whole_directory(directory)
    if not (directory / "state.json").is_file():
        raise FileNotFoundError(
            f"{directory} holds no saved state to resume from: start the run without --resume"
        )
    saved = GPT.from_pretrained(directory)
    if saved.config != model.config:
        raise ValueError(
            f"{directory} holds another model than the one configured: resume without model flags"
        )
    model.load_state_dict(saved.state_dict())
    try:
        tensors = load_file(directory / "state.safetensors")
    except SafetensorError as error:
        raise ValueError(
            f"{directory / 'state.safetensors'} is damaged ({error}): start anew with --overwrite"
        ) from error
    _restore_optimizer(optimizer, tensors)
    _restore_random_states(tensors)
    return Progress(**files.read_json(directory / "state.json"))


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat names, `optimizer.PARAMETER.NAME`."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{i}.{name}": value for i, values in state.items() for name, value in values.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _random_states() -> dict[str, Tensor]:
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"random.cuda.{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _restore_random_states(tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available():
        saved = [
            tensors[key] for i in range(torch.cuda.device_count()) if (key := f"random.cuda.{i}") in tensors
        ]
        for device, state in enumerate(saved):
            torch.cuda.set_rng_state(state, device)
