"""When it goes wrong: what happened, what is saved, and what to do, each in one line."""

import contextlib
import errno
import signal
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from common import files

SHOWN_CHARACTERS = 200


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; what it had is saved in `directory`."""

    def __init__(self, directory: Path, step: int) -> None:
        super().__init__(
            f"stopped after step {step}, saved in {directory}: go on with --run {directory.parent} --resume"
        )


class Diverged(ValueError):
    """Loss or gradient were not finite in too many steps in a row."""

    def __init__(self, run: Path, step: int, in_a_row: int, text: str) -> None:
        super().__init__(
            f"loss or gradient were not finite in {in_a_row} steps in a row, up to step {step}, whose batch begins "
            f"{text[:SHOWN_CHARACTERS]!r}; {last_good(run)}. Lower --learning-rate, or use --precision float32"
        )


class Damaged(ValueError):
    """The weights are such that the loss is no number any more, when they are to be saved for good."""

    def __init__(self, run: Path, step: int) -> None:
        super().__init__(
            f"the validation loss is not finite after {step} steps: the weights are damaged and were not saved; "
            f"{last_good(run)}. Lower --learning-rate, or use --precision float32"
        )


def last_state(run: Path) -> Path:
    """Where the last checkpoint has its state, if there is one."""
    return files.whole_directory(run / "last") / "state.json"


def last_good(run: Path) -> str:
    """Which checkpoint is there to go on from, in words."""
    state = last_state(run)
    if not state.is_file():
        return "no checkpoint had been saved yet"
    return f"the last good checkpoint is {run / 'last'}, of step {files.read_json(state)['step']}"


@contextlib.contextmanager
def explained(run: Path, micro_batch: int) -> Iterator[None]:
    """Turns what torch and the system say about memory, disks and lost processes into cause and remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not _no_room(error):
            raise
        where = getattr(error, "filename", None) or run
        raise OSError(f"the disk is full ({where}); {last_good(run)}: make room, then --resume") from error
    except RuntimeError as error:
        if _out_of_memory(error):
            raise ValueError(_memory_advice(micro_batch)) from error
        if _lost(error):
            raise ConnectionError(
                f"a process of this run is gone; {last_good(run)}: start all again with --resume "
                f"({str(error).splitlines()[0][:SHOWN_CHARACTERS]})"
            ) from error
        raise


def _no_room(error: Exception) -> bool:
    """Of the disk, the quota or the size that a file may have; safetensors tells the number in words."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError):
        return error.errno in numbers
    return any(f"(os error {number})" in str(error) for number in numbers)


def _lost(error: RuntimeError) -> bool:
    """Whether another process has left in the middle of a collective."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection " in str(error)


def _out_of_memory(error: RuntimeError) -> bool:
    """Of a GPU, or of the CPU, where torch has no class of its own for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _memory_advice(micro_batch: int) -> str:
    if micro_batch == 1:
        return "out of memory with --micro-batch 1: add --checkpoint-activations, or lower --block-size or --n-layer"
    return (
        f"out of memory with {micro_batch} sequences a pass: lower --micro-batch to {micro_batch // 2} "
        "(the results stay the same where that divides the batch), or let --micro-batch auto find out"
    )


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that fills when SIGINT or SIGTERM arrives; a second one interrupts at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
