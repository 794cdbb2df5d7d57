"""Data parallelism and the sharded optimizer, written out in plain collectives.

torchrun starts the processes and tells each its rank through the environment; without it there is one process and
nothing here costs anything. NCCL carries the data between GPUs, gloo between CPUs. Every process holds the whole model
and its own rows of the batch. The gradient of the mean over all rows is the mean of the processes' gradients, so
averaging gradients once a step makes all processes take the same step:

    NaiveReplica       after the backward pass, one all-reduce for each parameter: correct, and slow, because the
                       network is idle during the backward pass and the processor during the all-reduces
    BucketedReplica    gradients are collected in buckets and a full bucket is sent while the backward pass goes on, as
                       torch's DistributedDataParallel does (Li et al. 2020)
    ShardedParameters  ZeRO-1 (Rajbhandari et al. 2019): each process keeps the optimizer's state for its share of the
                       parameters, moves those, and broadcasts them to the others
    ShardedReplica     FSDP (training/fsdp.py): each process keeps its rows of weights, gradients and state

They assume that all processes start from equal weights (the same seed ensures that).
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from model import GPT
from training.config import TrainConfig
from training.fsdp import FullySharded

BUCKET_BYTES = 25 * 2**20  # torch's choice: large enough to hide the latency, small enough to begin early


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among `world_size`; `local_rank` counts within one machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """True for rank 0, which alone writes files and prints."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """True if there is more than one process."""
        return self.world_size > 1

    def device(self, device: torch.device) -> torch.device:
        """Return this process's GPU, or the CPU that all share."""
        if not self.several or device.type != "cuda":
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"{self.local_rank + 1} processes on a machine with {torch.cuda.device_count()} GPUs: "
                "lower --nproc-per-node, or give --device cpu"
            )
        return torch.device("cuda", self.local_rank)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over all processes of a scalar tensor."""
        if self.several:
            dist.all_reduce(value)
            value /= self.world_size
        return value

    def mean_number(self, number: float) -> float:
        """Return the mean over all processes of a number."""
        if not self.several:
            return number
        return self.mean(torch.tensor(number, dtype=torch.float64, device=_collective_device())).item()

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag if any process sets it, so that all act in the same step."""
        if not self.several:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.float32, device=_collective_device())
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised]

    def minimum(self, number: int) -> int:
        """Return the smallest of the processes' numbers."""
        if not self.several:
            return number
        smallest = torch.tensor(number, device=_collective_device())
        dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
        return int(smallest)

    def gather(self, mine: Any) -> list[Any]:
        """Return every process's object, by rank, in rank 0; elsewhere an empty list."""
        if not self.several:
            return [mine]
        gathered: list[Any] | None = [None] * self.world_size if self.main else None
        dist.gather_object(mine, gathered)
        return gathered or []

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.several:
            dist.barrier()


SINGLE = Processes()


def _collective_device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def this_process() -> Processes:
    """Return this process by the environment that torchrun sets.

    >>> this_process().world_size
    1
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if any(name not in os.environ for name in names):
        return SINGLE
    return Processes(*(int(os.environ[name]) for name in names))


@contextlib.contextmanager
def joined(processes: Processes, device: torch.device) -> Iterator[None]:
    """Connect the processes for the duration of the block."""
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


class Replica:
    """A data-parallel replica of the model; this base class averages no gradients. Call `forward` on a batch."""

    def __init__(self, module: nn.Module) -> None:
        self.forward = module

    def accumulate(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Surround one forward and backward pass; gradients are exchanged in the `last` one of a step."""
        return contextlib.nullcontext()

    def finish(self) -> None:
        """Return when every gradient is the mean over the processes; call it after the last pass."""


class NaiveReplica(Replica):
    """One all-reduce for each parameter, after the backward pass."""

    def finish(self) -> None:
        for parameter in self.forward.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()


class BucketedReplica(Replica):
    """All-reduces of whole buckets, each started as soon as the last gradient of its bucket is complete."""

    def __init__(self, module: nn.Module, bucket_bytes: int = BUCKET_BYTES) -> None:
        super().__init__(module)
        # The backward pass reaches the last layers first: in this order buckets fill one after another.
        parameters = [p for p in reversed(list(module.parameters())) if p.requires_grad]
        self._buckets = list(buckets(parameters, bucket_bytes))
        self._last_pass = False
        self._missing: list[int] = []
        self._sent: dict[int, tuple[Tensor, dist.Work]] = {}
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._count(number))

    @contextlib.contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        self._last_pass = last
        self._missing = [len(bucket) for bucket in self._buckets]
        yield

    def _count(self, number: int) -> None:
        """Count a complete gradient of a bucket; in the last pass send the bucket when all of its are complete."""
        self._missing[number] -= 1
        if self._last_pass and self._missing[number] == 0:
            flat = torch.cat([p.grad.flatten() for p in self._buckets[number]])  # N × (…) -> (sum,)
            self._sent[number] = flat, dist.all_reduce(flat, async_op=True)

    def finish(self) -> None:
        for number, (flat, work) in self._sent.items():
            work.wait()
            flat /= dist.get_world_size()
            _unflatten(flat, [p.grad for p in self._buckets[number]])
        self._sent.clear()


def buckets(parameters: Sequence[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """Yield the parameters in order, in lists of at most `limit` bytes and of one dtype each.

    >>> [[len(p) for p in bucket] for bucket in buckets([torch.ones(n) for n in (2, 1, 4)], limit=12)]
    [[2, 1], [4]]
    """
    bucket: list[Tensor] = []
    for parameter in parameters:
        size = sum(p.nbytes for p in bucket) + parameter.nbytes
        if bucket and (size > limit or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    yield bucket


@torch.no_grad()
def _unflatten(flat: Tensor, targets: Sequence[Tensor]) -> None:
    """Copy consecutive parts of `flat`, (sum,), to tensors of any shapes."""
    parts = flat.split([target.numel() for target in targets])
    for target, part in zip(targets, parts, strict=True):
        target.copy_(part.view_as(target))


class TorchReplica(Replica):
    """torch's DistributedDataParallel, which uses buckets, too, and is written in C++."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(DistributedDataParallel(module))

    def accumulate(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if last else self.forward.no_sync()


class ShardedReplica(Replica):
    """Our FSDP (training/fsdp.py): weights, gradients and optimizer state divided, blocks whole while they compute.

    `module` is sharded in place and its parameters become DTensors: make the optimizers afterwards. Under autocast to
    `precision` the blocks' matrices travel in it: in half the bytes, and the products have the same bits.
    """

    def __init__(self, module: nn.Module, blocks: Sequence[nn.Module], precision: torch.dtype) -> None:
        super().__init__(module)
        self._sharded = FullySharded(module, [*blocks, module], precision)

    def accumulate(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        return self._sharded.accumulate(last=last)

    def finish(self) -> None:
        self._sharded.finish()


class TorchShardedReplica(Replica):
    """torch's FSDP2, which shards in place, too, and hides more of the time that weights travel."""

    def __init__(self, module: nn.Module, blocks: Sequence[nn.Module], precision: torch.dtype) -> None:
        for block in blocks:
            fully_shard(block)
        super().__init__(fully_shard(module))

    @contextlib.contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        self.forward.set_requires_gradient_sync(last)
        yield


REPLICAS = {"naive": NaiveReplica, "bucketed": BucketedReplica, "torch": TorchReplica}
SHARDED = {"ours": ShardedReplica, "torch": TorchShardedReplica}


def make_replica(model: GPT, config: TrainConfig, processes: Processes, precision: torch.dtype) -> Replica:
    """Return the model as this process calls it, compiled, divided or averaged as configured."""
    if processes.several:
        # The weights are made, and equal; from now on dropout differs.
        torch.manual_seed(config.seed + processes.rank)
    if config.shard == "full" and processes.several:
        for block in model.h if config.compile else ():
            block.forward = torch.compile(block.forward)  # without the hooks that gather and free
        return SHARDED[config.fsdp](model, model.h, precision)
    module = torch.compile(model) if config.compile else model
    return (REPLICAS[config.ddp] if processes.several else Replica)(module)


class ShardedParameters:
    """ZeRO-1: the parameters whose optimizer state this process keeps, and the exchange after each step.

    `size` returns how large the optimizer's state of a parameter is.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        world_size: int,
        rank: int,
        size: Callable[[Tensor], int] = Tensor.numel,
    ) -> None:
        self.shares = balance(parameters, world_size, size)
        self.mine = {id(p) for p in self.shares[rank]}

    @torch.no_grad()
    def exchange(self) -> None:
        """Broadcast the parameters that this process has moved, and receive the others."""
        for rank, share in enumerate(self.shares):
            if share:
                flat = torch.cat([p.flatten() for p in share])  # N × (…) -> (sum,)
                dist.broadcast(flat, src=rank)
                _unflatten(flat, share)


def balance(
    parameters: Sequence[Tensor], world_size: int, size: Callable[[Tensor], int] = Tensor.numel
) -> list[list[Tensor]]:
    """Return `world_size` shares of about equal size: the largest parameter first, each to the smallest share.

    >>> [[len(p) for p in share] for share in balance([torch.ones(n) for n in (1, 5, 2, 4)], 2)]
    [[5, 1], [4, 2]]
    """
    shares: list[list[Tensor]] = [[] for _ in range(world_size)]
    for parameter in sorted(parameters, key=size, reverse=True):
        min(shares, key=lambda share: sum(map(size, share))).append(parameter)
    return shares
