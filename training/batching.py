"""How the sequences of a step are divided: among processes, and within one into micro-batches that fit in memory.

Which sequences a step trains on depends only on the seed, the step and their number, and every gradient is averaged
over all of them. So neither the number of processes nor the size of a micro-batch changes what is learned, as long as
whole micro-batches make up `batch_tokens`.
"""

import dataclasses
import operator
import os
from typing import Any

import torch

from data.sampler import map_tensors
from inference import devices
from model import GPT, accounting
from training.config import TrainConfig
from training.distributed import Processes


@dataclasses.dataclass(frozen=True)
class Batching:
    """The numbers of sequences in one optimizer step."""

    sequences: int
    """Over all processes."""
    rows: int
    """In each process."""
    micro_batch: int
    """In each forward pass."""

    @property
    def accumulation(self) -> int:
        """Return the forward passes of each process."""
        return self.rows // self.micro_batch


def divide(config: TrainConfig, world_size: int) -> Batching:
    """Return the batching for `world_size` processes; ValueError if the batch cannot be divided among them.

    The micro-batch divides the process's rows, so that every pass has the same size.
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
    """Return the largest divisor of `number` that is at most `most`.

    >>> _divisor(12, 5)
    4
    """
    return next(size for size in range(min(number, most), 0, -1) if number % size == 0)


def split(batch: Any, rows: int) -> list[Any]:
    """Return micro-batches of `rows` rows of a batch: a tensor, or a tuple, dict or dataclass of batches.

    >>> split((torch.arange(4), {"mask": torch.ones(4)}), rows=2)[1]
    (tensor([2, 3]), {'mask': tensor([1., 1.])})
    """
    lengths: list[int] = []
    map_tensors(batch, lambda tensor: lengths.append(len(tensor)) or tensor)
    return [
        map_tensors(batch, operator.itemgetter(slice(first, first + rows)))
        for first in range(0, lengths[0], rows)
    ]


def fit_memory(
    batching: Batching, model: GPT, device: torch.device, precision: torch.dtype, processes: Processes
) -> Batching:
    """Return the batching with the largest micro-batch that fits in the memory of every process."""
    size = batching.rows
    if device.type == "cuda":
        while not _fits(model, size, device, precision):
            if size == 1:
                raise ValueError(
                    "not even one sequence fits in memory: take a smaller model or a smaller --block-size"
                )
            size = _divisor(batching.rows, size - 1)
    else:
        # A CPU's memory has no clear end (the system swaps, then kills): here it is computed, not tried.
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / processes.world_size
        words = str(precision).removeprefix("torch.")
        size = _divisor(batching.rows, max(1, accounting.largest_batch(model.config, free / 1e9, words)))
    return dataclasses.replace(batching, micro_batch=processes.minimum(size))


def _fits(model: GPT, size: int, device: torch.device, precision: torch.dtype) -> bool:
    """True if a forward and backward pass over `size` sequences and AdamW's state fit in memory."""
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
