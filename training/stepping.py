"""What our optimizers share: the walk over the groups of parameters, and the part of a tensor that is here."""

import abc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """The tensor itself, or of one that is divided among processes (FSDP2), this process's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class GroupOptimizer(torch.optim.Optimizer, abc.ABC):
    """An optimizer that moves one group of parameters after the other."""

    @abc.abstractmethod
    def move(self, group: dict[str, Any]) -> None:
        """Moves the group's parameters that have a gradient."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Moves every parameter that has a gradient; a closure computes loss and gradients anew first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.move(group)
        return loss
