"""How a step's sequences are dealt out: to processes, and within one to forward passes that fit the memory.

Which sequences a step trains on depends on the seed, the step and their number only, and every gradient is averaged
over all of them. So neither the number of processes nor the size of a pass changes what is learned, as long as whole
passes make up `batch_tokens`.
"""

import dataclasses
import os

import torch

from inference import devices
from model import GPT, accounting
from training.config import TrainConfig
from training.distributed import Processes


@dataclasses.dataclass(frozen=True)
class Batching:
    """The cut of one optimizer step."""

    sequences: int
    """Of all processes together."""
    rows: int
    """Of each process."""
    micro_batch: int
    """Of each forward pass."""

    @property
    def accumulation(self) -> int:
        """Forward passes of each process."""
        return self.rows // self.micro_batch


def deal(config: TrainConfig, world_size: int) -> Batching:
    """The cut for so many processes; ValueError where the batch cannot be divided among them.

    The size of a pass divides the process's rows, so that every pass weighs the same.
    """
    sequences = config.step_tokens // config.model.block_size
    if sequences % world_size:
        raise ValueError(
            f"a step of {sequences} sequences (batch_tokens {config.batch_tokens}) cannot be divided among "
            f"{world_size} processes: set --batch-tokens to a multiple of {world_size * config.micro_batch_tokens}"
        )
    rows = sequences // world_size
    most = rows if config.micro_batch == "auto" else config.micro_batch
    return Batching(sequences, rows, _divisor(rows, most))


def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`.

    >>> _divisor(12, 5)
    4
    """
    return next(size for size in range(min(number, most), 0, -1) if number % size == 0)


def fitted(
    cut: Batching, model: GPT, device: torch.device, precision: torch.dtype, processes: Processes
) -> Batching:
    """The cut with the largest pass that fits the memory of every process."""
    size = cut.rows
    if device.type == "cuda":
        while not _fits(model, size, device, precision):
            if size == 1:
                raise ValueError(
                    "not even one sequence fits the memory: take a smaller model or --block-size"
                )
            size = _divisor(cut.rows, size - 1)
    else:
        # A CPU's memory has no clear end (the system swaps, then kills): here it is computed, not tried.
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / processes.world_size
        words = str(precision).removeprefix("torch.")
        size = _divisor(cut.rows, max(1, accounting.largest_batch(model.config, free / 1e9, words)))
    return dataclasses.replace(cut, micro_batch=processes.least(size))


def _fits(model: GPT, size: int, device: torch.device, precision: torch.dtype) -> bool:
    """Whether a forward and backward pass over `size` sequences, and AdamW's state, find room."""
    ids = torch.zeros(size, model.config.block_size, dtype=torch.long, device=device)
    reserve: list[torch.Tensor] = []
    with torch.random.fork_rng(devices=[device]):
        try:
            reserve = [torch.empty_like(p) for p in model.parameters() for _ in range(2)]
            with devices.autocast(device, precision):
                model(ids, ids)[1].backward()
            return True
        except torch.OutOfMemoryError:
            return False
        finally:
            model.zero_grad(set_to_none=True)
            reserve.clear()
            torch.cuda.empty_cache()
