"""Checkpoints: weights that any reader can load, and all that is needed to resume as if never stopped.

    RUN/best, RUN/last    config.json + model.safetensors (GPT-2's layout)
    RUN/last              also state.safetensors + state.json: optimizer, random states, step, data position
    RUN/step-N            earlier states of RUN/last, where they are kept

Tensors are safetensors and the rest is JSON: loading a checkpoint runs no code. Every tensor is saved whole, under its
parameter's name, however many processes wrote it: a run can be resumed with another number of processes.
"""

import dataclasses
import math
import operator
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from common import files
from model import GPT
from training.distributed import SINGLE, Processes
from training.optimizer import Muon

Optimizers = Sequence[torch.optim.Optimizer]


@dataclasses.dataclass
class Progress:
    """How far a run has come, as plain JSON values."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_val_loss: float = float("inf")
    skipped: int = 0
    """Steps skipped because the loss or the gradient was not finite."""
    batches: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Position of the batch sampler."""
    loss_scale: dict[str, Any] = dataclasses.field(default_factory=dict)
    """State of the loss scaling, in float16."""
    data: str = ""
    """Fingerprint of the token files."""
    copies: list[int] = dataclasses.field(default_factory=list)
    """Steps whose checkpoints were copied, in the order of the run."""


def _nothing(directory: Path) -> None:
    """Write nothing else."""


def save_best(
    directory: Path, model: GPT, val_loss: float, save_extra: Callable[[Path], None] = _nothing
) -> None:
    """Replace `directory` by one with the model's weights and config; the weights' metadata has their loss.

    `save_extra` may write more files into it.
    """
    with files.atomic_directory(directory) as aside:
        save_extra(aside)
        model.save_pretrained(aside)
        weights = aside / "model.safetensors"
        save_file(load_file(weights), weights, metadata={"format": "pt", "val_loss": repr(val_loss)})


def best_loss(directory: Path) -> float:
    """Return the validation loss of the weights in RUN/best; infinite if there are none or it is not known."""
    path = files.whole_directory(directory) / "model.safetensors"
    if not path.is_file():
        return math.inf
    try:
        with safe_open(path, "pt") as file:
            return float((file.metadata() or {}).get("val_loss", math.inf))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): remove {path.parent}, then --resume") from error


def save_state(
    directory: Path,
    model: GPT,
    optimizers: Optimizers,
    progress: Progress,
    processes: Processes = SINGLE,
    save_extra: Callable[[Path], None] = _nothing,
) -> None:
    """Replace `directory` by one with weights, optimizer, random states and progress.

    All processes call it; rank 0 gathers what the others have and writes.
    """
    whole = whole_model(model)
    state = _optimizer_tensors(model, optimizers) | _added_weights(model)
    if not processes.main and not _divided(model, optimizers):
        state.clear()  # rank 0 has all of it, too
    gathered = processes.gather(state | _random_states(model, processes.rank))
    if not processes.main:
        return
    tensors = {name: tensor for one in gathered for name, tensor in one.items()}
    with files.atomic_directory(directory) as aside:
        save_extra(aside)
        whole.save_pretrained(aside)
        save_file(tensors, aside / "state.safetensors")
        files.write_json(aside / "state.json", dataclasses.asdict(progress))


@torch.no_grad()
def whole_model(model: GPT) -> GPT:
    """Return the model, or a plain and whole copy if an objective adapted it or its weights are divided.

    All processes must call this. Weights that are computed from others (adapters) are those that they give now; heads
    that a GPT lacks are left out.
    """
    weights = model.state_dict()  # has FSDP2 divide the weights again that a forward pass gathered
    with torch.device("meta"):
        whole = GPT(model.config)
    names = whole.state_dict().keys()
    if weights.keys() == names and not any(isinstance(tensor, DTensor) for tensor in weights.values()):
        return model
    given = {name: weights[name] if name in weights else operator.attrgetter(name)(model) for name in names}
    whole.load_state_dict({name: _whole(tensor) for name, tensor in given.items()}, assign=True)
    return whole


def _added_weights(model: GPT) -> dict[str, Tensor]:
    """Return as `weights.NAME` what an objective added to a GPT, such as adapters, and what they are added to."""
    with torch.device("meta"):
        plain = GPT(model.config).state_dict()
    return {
        f"weights.{name}": tensor.cpu().clone()  # tied ones would share their memory, which no file can say
        for name, tensor in model.state_dict().items()
        if name not in plain
    }


def keep_copies(run: Path, progress: Progress, keep: int) -> None:
    """With `keep` above 1, copy RUN/last to RUN/step-N by hard links; of the copies made so far keep the newest.

    Nothing else is replaced or deleted, whatever its name.
    """
    if keep == 1:
        return
    copy = _copy_of(run, progress.step)
    if copy.exists() and not _is_copy(copy, progress.step):
        print(
            f"{copy} is no checkpoint of this run and stays: RUN/last was not copied there", file=sys.stderr
        )
    else:
        with files.atomic_directory(copy) as aside:
            for file in (run / "last").iterdir():
                os.link(file, aside / file.name)
    for step in progress.copies[:-keep]:
        if _is_copy(old := _copy_of(run, step), step):
            shutil.rmtree(old)
    progress.copies = progress.copies[-keep:]


def _copy_of(run: Path, step: int) -> Path:
    return run / f"step-{step:08d}"


def _is_copy(directory: Path, step: int) -> bool:
    """True if a directory is a checkpoint of that step."""
    state = directory / "state.json"
    return state.is_file() and files.read_json(state).get("step") == step


def load_state(directory: Path, model: GPT, optimizers: Optimizers, rank: int = 0) -> Progress:
    """Load a saved state into `model`, `optimizers` and the random generators; return its progress."""
    directory = files.whole_directory(directory)
    if not (directory / "state.json").is_file():
        raise FileNotFoundError(
            f"{directory} holds no saved state to resume from: start again with --overwrite instead of --resume"
        )
    # Resuming may change how the model is computed, not its results.
    saved = GPT.from_pretrained(directory, checkpoint_activations=model.config.checkpoint_activations)
    if saved.config != model.config:
        raise ValueError(
            f"{directory} holds another model than the one configured: resume without model flags"
        )
    try:
        tensors = load_file(directory / "state.safetensors")
    except SafetensorError as error:
        raise ValueError(
            f"{directory / 'state.safetensors'} is damaged ({error}): start again with --overwrite"
        ) from error
    _load_weights(model, saved, tensors)
    _restore_optimizers(model, optimizers, tensors)
    _restore_random_states(model, tensors, rank)
    return _read_progress(directory / "state.json")


def _read_progress(path: Path) -> Progress:
    try:
        return Progress(**files.read_json(path))
    except TypeError as error:
        raise ValueError(
            f"{path} is not what train.py writes ({error}): start again with --overwrite"
        ) from error


@torch.no_grad()
def _load_weights(model: GPT, saved: GPT, added: dict[str, Tensor]) -> None:
    plain = saved.state_dict()
    for name, target in model.state_dict().items():
        source = plain.get(name, added.get(f"weights.{name}"))
        if source is None:
            raise ValueError(f"the saved run lacks {name}: resume with the flags that the run began with")
        target.copy_(_like(target, source))


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(target: Tensor, whole: Tensor) -> Tensor:
    """Return `whole`, divided as `target` is."""
    if not isinstance(target, DTensor) or whole.shape != target.shape:  # Adam's step number is a scalar
        return whole
    return distribute_tensor(whole.to(target.device), target.device_mesh, target.placements)


def _names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


def _divided(model: GPT, optimizers: Optimizers) -> bool:
    """True if this process keeps the optimizer's state of some parameters only."""
    mine = sum(len(group["params"]) for optimizer in optimizers for group in optimizer.param_groups)
    return mine < len(list(model.parameters()))


def _optimizer_tensors(model: GPT, optimizers: Optimizers) -> dict[str, Tensor]:
    """Return the state of this process's optimizers as `optimizer.KEY.PARAMETER`, on the CPU."""
    names = _names(model)
    return {
        f"optimizer.{key}.{names[id(parameter)]}": _whole(value).cpu()
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def _restore_optimizers(model: GPT, optimizers: Optimizers, tensors: dict[str, Tensor]) -> None:
    names = _names(model)
    saved: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, key, parameter = name.split(".", 2)
            saved.setdefault(parameter, {})[key] = value
    for optimizer in optimizers:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state = {
            number: {key: _like(p, value) for key, value in saved[names[id(p)]].items()}
            for number, p in enumerate(parameters)
            if names[id(p)] in saved
        }
        if any(("momentum" in kept) != isinstance(optimizer, Muon) for kept in state.values()):
            raise ValueError("the saved state is that of another optimizer: resume without --optimizer")
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _random_states(model: GPT, rank: int) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    states = {f"random.cpu.{rank}": torch.get_rng_state()}
    if device.type == "cuda":
        states[f"random.cuda.{rank}"] = torch.cuda.get_rng_state(device)
    return states


def _restore_random_states(model: GPT, tensors: dict[str, Tensor], rank: int) -> None:
    """Restore this process's random state; a process without a saved one keeps that of its seed."""
    device = next(model.parameters()).device
    if (state := tensors.get(f"random.cpu.{rank}")) is not None:
        torch.set_rng_state(state)
    if device.type == "cuda" and (state := tensors.get(f"random.cuda.{rank}")) is not None:
        torch.cuda.set_rng_state(state, device)
