"""The processes of one run: which of them this is, and the few words they exchange besides gradients.

torchrun starts them and says through the environment who is who; without it there is one, and nothing here costs
anything. NCCL carries the data between GPUs, gloo between CPUs.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among `world_size`; `local_rank` counts within one machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there is anybody to talk to."""
        return self.world_size > 1

    def device(self, device: torch.device) -> torch.device:
        """Each process's own GPU; the CPU is shared."""
        if not self.several or device.type != "cuda":
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"{self.local_rank + 1} processes on a machine with {torch.cuda.device_count()} GPUs: "
                "lower --nproc-per-node, or give --device cpu"
            )
        return torch.device("cuda", self.local_rank)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes of a scalar tensor."""
        if self.several:
            dist.all_reduce(value)
            value /= self.world_size
        return value

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether any process raises it: all of them act alike, in the same step."""
        if not self.several:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.float32, device=_talking_device())
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised]

    def least(self, number: int) -> int:
        """The smallest of the processes' numbers."""
        if not self.several:
            return number
        smallest = torch.tensor(number, device=_talking_device())
        dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
        return int(smallest)

    def gather(self, mine: Any) -> list[Any]:
        """What each process has, by rank, in the main process; elsewhere an empty list."""
        if not self.several:
            return [mine]
        everyones: list[Any] | None = [None] * self.world_size if self.main else None
        dist.gather_object(mine, everyones)
        return everyones or []

    def barrier(self) -> None:
        """Waits for all."""
        if self.several:
            dist.barrier()


def _talking_device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def this_process() -> Processes:
    """Who this is by the environment that torchrun makes.

    >>> this_process().world_size
    1
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if any(name not in os.environ for name in names):
        return Processes()
    return Processes(*(int(os.environ[name]) for name in names))


@contextlib.contextmanager
def joined(processes: Processes, device: torch.device) -> Iterator[None]:
    """Connects the processes for the time of the block."""
    if not processes.several:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
