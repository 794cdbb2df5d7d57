"""Data parallelism and the sharded optimizer, written out in plain collectives.

Every process holds the whole model and its own rows of the batch. The gradient of the mean over all rows is the mean
of the processes' gradients, so averaging gradients once a step makes all processes take the same step:

    Naive        after the backward pass, one all-reduce for each parameter: correct, and slow, because the network is
                 idle during the backward pass and the processor during the all-reduces
    Bucketed     gradients are collected in buckets and a full bucket is sent while the backward pass goes on, as
                 torch's DistributedDataParallel does (Li et al. 2020)
    ShardedParameters  ZeRO-1 (Rajbhandari et al. 2019): each process keeps the optimizer's state for its share of the
                 parameters, moves those, and sends them to the others

They assume that all processes start from equal weights (the same seed sees to that).
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


BUCKET_BYTES = 25 * 2**20  # torch's choice: large enough to hide the latency, small enough to begin early


class Alone:
    """One process's copy of the model, and how its gradients meet the others': here there are no others.

    `forward` is what to call on a batch.
    """

    def __init__(self, module: nn.Module) -> None:
        self.forward = module

    def passes(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Surrounds a forward and backward pass; gradients travel in the `last` one of a step."""
        return contextlib.nullcontext()

    def finish(self) -> None:
        """After the last pass: returns when every gradient is the mean over the processes."""


class Naive(Alone):
    """One all-reduce for each parameter, when the backward pass is over."""

    def finish(self) -> None:
        for parameter in self.forward.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()


class Bucketed(Alone):
    """All-reduces of whole buckets, started as soon as the last gradient of a bucket is there."""

    def __init__(self, module: nn.Module, bucket_bytes: int = BUCKET_BYTES) -> None:
        super().__init__(module)
        # The backward pass reaches the last layers first: in this order buckets fill one after another.
        parameters = [p for p in reversed(list(module.parameters())) if p.requires_grad]
        self._buckets = list(_buckets(parameters, bucket_bytes))
        self._last_pass = False
        self._missing: list[int] = []
        self._sent: dict[int, tuple[Tensor, dist.Work]] = {}
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._arrived(number))

    @contextlib.contextmanager
    def passes(self, *, last: bool) -> Iterator[None]:
        self._last_pass = last
        self._missing = [len(bucket) for bucket in self._buckets]
        yield

    def _arrived(self, number: int) -> None:
        """A gradient of a bucket is complete in this pass; after the last one the bucket is sent."""
        self._missing[number] -= 1
        if self._last_pass and self._missing[number] == 0:
            flat = torch.cat([p.grad.flatten() for p in self._buckets[number]])  # N × (…) -> (sum,)
            self._sent[number] = flat, dist.all_reduce(flat, async_op=True)

    def finish(self) -> None:
        for number, (flat, work) in self._sent.items():
            work.wait()
            flat /= dist.get_world_size()
            _spread(flat, [p.grad for p in self._buckets[number]])
        self._sent.clear()


def _buckets(parameters: Sequence[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """The parameters in order, cut where a bucket would pass `limit` bytes or change its type."""
    bucket: list[Tensor] = []
    for parameter in parameters:
        size = sum(p.nbytes for p in bucket) + parameter.nbytes
        if bucket and (size > limit or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    yield bucket


@torch.no_grad()
def _spread(flat: Tensor, targets: Sequence[Tensor]) -> None:
    """Copies the pieces of `flat`, (sum,), to tensors of any shapes."""
    pieces = flat.split([target.numel() for target in targets])
    for target, piece in zip(targets, pieces, strict=True):
        target.copy_(piece.view_as(target))


class Torchs(Alone):
    """torch's DistributedDataParallel, which is bucketed, too, and written in C++."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(DistributedDataParallel(module))

    def passes(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if last else self.forward.no_sync()


class FullySharded(Alone):
    """FSDP2: weights, gradients and optimizer state divided; a block's weights are gathered while it computes.

    `module` is sharded in place and its parameters become DTensors: make the optimizers afterwards.
    """

    def __init__(self, module: nn.Module, blocks: Sequence[nn.Module]) -> None:
        for block in blocks:
            fully_shard(block)
        super().__init__(fully_shard(module))

    @contextlib.contextmanager
    def passes(self, *, last: bool) -> Iterator[None]:
        self.forward.set_requires_gradient_sync(last)
        yield


REPLICAS = {"naive": Naive, "bucketed": Bucketed, "torch": Torchs}


class ShardedParameters:
    """ZeRO-1: which parameters' optimizer state this process keeps, and the exchange after each step.

    `size` says how large the state of a parameter is.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        world_size: int,
        rank: int,
        size: Callable[[Tensor], int] = Tensor.numel,
    ) -> None:
        self.shares = deal(parameters, world_size, size)
        self.mine = {id(p) for p in self.shares[rank]}

    @torch.no_grad()
    def exchange(self) -> None:
        """Everyone gets the parameters that another process has moved."""
        for rank, share in enumerate(self.shares):
            if share:
                flat = torch.cat([p.flatten() for p in share])  # N × (…) -> (sum,)
                dist.broadcast(flat, src=rank)
                _spread(flat, share)


def deal(
    parameters: Sequence[Tensor], world_size: int, size: Callable[[Tensor], int] = Tensor.numel
) -> list[list[Tensor]]:
    """The parameters in `world_size` shares of about equal size: the largest first, each to the smallest share.

    >>> [[len(p) for p in share] for share in deal([torch.ones(n) for n in (1, 5, 2, 4)], 2)]
    [[5, 1], [4, 2]]
    """
    shares: list[list[Tensor]] = [[] for _ in range(world_size)]
    for parameter in sorted(parameters, key=size, reverse=True):
        min(shares, key=lambda share: sum(map(size, share))).append(parameter)
    return shares
