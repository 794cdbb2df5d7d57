"""Failures of a run as one-line errors: what happened, what is saved, and what to do."""

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
    """The run was asked to stop and is saved in `directory`."""

    def __init__(self, directory: Path, step: int) -> None:
        super().__init__(
            f"stopped after step {step}, saved in {directory}: continue with --run {directory.parent} --resume"
        )


class Diverged(ValueError):
    """Loss or gradient were not finite in too many consecutive steps."""

    def __init__(self, run: Path, step: int, in_a_row: int, text: str) -> None:
        super().__init__(
            f"loss or gradient were not finite in {in_a_row} steps in a row, up to step {step}, whose batch begins "
            f"{text[:SHOWN_CHARACTERS]!r}; {last_good(run)}. Lower --learning-rate, or use --precision float32"
        )


class Damaged(ValueError):
    """The validation loss is not finite when the run is to be saved for the last time."""

    def __init__(self, run: Path, step: int) -> None:
        super().__init__(
            f"the validation loss is not finite after {step} steps: the weights are damaged and were not saved; "
            f"{last_good(run)}. Lower --learning-rate, or use --precision float32"
        )


class NothingLearned(ValueError):
    """Every step of the run was skipped."""

    def __init__(self, run: Path, steps: int) -> None:
        super().__init__(
            f"all {steps} steps were skipped, because loss or gradient were not finite: {run} has learned nothing. "
            "Lower --learning-rate, use --precision float32, or take more steps"
        )


def last_state(run: Path) -> Path:
    """Return the path of the last checkpoint's state, which may not exist."""
    return files.whole_directory(run / "last") / "state.json"


def last_good(run: Path) -> str:
    """Return in words which checkpoint can be resumed."""
    state = last_state(run)
    if not state.is_file():
        return "no checkpoint had been saved yet"
    return f"the last good checkpoint is {run / 'last'}, of step {files.read_json(state)['step']}"


@contextlib.contextmanager
def explained(run: Path, micro_batch: int) -> Iterator[None]:
    """Turn errors of torch and the system about memory, disks and lost processes into cause and remedy."""
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
    """True if the disk is full, or a quota or file size limit is reached; safetensors has the number in its text."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError):
        return error.errno in numbers
    return any(f"(os error {number})" in str(error) for number in numbers)


def _lost(error: RuntimeError) -> bool:
    """True if another process has left in the middle of a collective."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection " in str(error)


def _out_of_memory(error: RuntimeError) -> bool:
    """True if a GPU's memory is full, or the CPU's, for which torch has no exception class."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _memory_advice(micro_batch: int) -> str:
    if micro_batch == 1:
        return (
            "out of memory with --micro-batch 1: add --checkpoint-activations (a --resume takes it, too), or start "
            "again with a smaller --block-size or --n-layer"
        )
    return (
        f"out of memory with {micro_batch} sequences a pass: lower --micro-batch to {micro_batch // 2} "
        "(the results stay the same where that divides the batch), or let --micro-batch auto find out"
    )


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yield a list that is filled when SIGINT or SIGTERM arrives; a second signal interrupts at once."""
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
