"""Muon: momentum whose update is made orthogonal, for the matrices inside the blocks (Jordan et al. 2024).

The gradient of a weight matrix is dominated by a few directions; Adam, which sees only single numbers, follows
those and neglects the rest. Muon replaces the update U S Vᵀ (its singular value decomposition) by U Vᵀ: every
direction of the update is equally long. Embeddings, heads, biases and norms stay with AdamW.
"""

import abc
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


def local(tensor: Tensor) -> Tensor:
    """Return the tensor, or this process's part of one that is divided among processes (FSDP2)."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class GroupOptimizer(torch.optim.Optimizer, abc.ABC):
    """An optimizer that updates one group of parameters after the other; Muon and our AdamW are two."""

    @abc.abstractmethod
    def move(self, group: dict[str, Any]) -> None:
        """Update the group's parameters that have a gradient."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; a closure, if given, first computes loss and gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.move(group)
        return loss


# A quintic whose iteration drives singular values into about 0.7 … 1.2, in five steps those from 0.003 to 1: the
# steepest slope at zero that stays in that band, found numerically by Jordan. Close to one is enough.
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalize(matrices: Tensor, steps: int = 5, precision: torch.dtype = torch.bfloat16) -> Tensor:
    """Return about the nearest matrix with orthonormal rows or columns, for each of (N, rows, columns).

    A Newton-Schulz iteration: only matrix products, X ← A X + B (X Xᵀ) X + C (X Xᵀ)² X, which acts on the singular
    values alone (docs/training.md). The result has the shape and dtype of `matrices`; products are in `precision`.
    """
    x = matrices.to(precision)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT  # (N, r, c) -> (N, c, r): the products below are then the small ones
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # all singular values in [0, 1]
    for _ in range(steps):
        gram = x @ x.mT  # (N, r, r)
        # Sums inside the product are rounded once.
        polynomial = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
        x = torch.baddbmm(x, polynomial, x, beta=A)  # (N, r, c)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(GroupOptimizer):
    """Muon for two-dimensional parameters, with Nesterov momentum and decoupled weight decay.

    Matrices of one shape are stacked and orthogonalized together. `precision` is that of the products.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        precision: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.precision = precision
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dim() != 2:
                    raise ValueError(
                        f"Muon moves matrices only, not a parameter of shape {tuple(parameter.shape)}"
                    )

    def move(self, group: dict[str, Any]) -> None:
        """Update the group's matrices that have a gradient, those of one shape together."""
        same_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                same_shape[parameter.shape].append(parameter)
        for shape, parameters in same_shape.items():
            self._update(shape, parameters, group)

    def _update(self, shape: torch.Size, parameters: list[Tensor], group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        averages = [local(self._average(parameter)) for parameter in parameters]
        gradients = [local(parameter.grad) for parameter in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, averages, momentum)  # Nesterov: where the average is going
        updates = self._orthogonal(torch.stack(ahead), parameters)  # N × (r, c) -> (N, r, c)
        # A tall matrix with orthonormal columns moves each output less: sqrt(rows / cols) lets one rate suit all.
        rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
        weights = [local(parameter) for parameter in parameters]
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, list(updates.unbind()), alpha=-rate)

    def _orthogonal(self, updates: Tensor, parameters: list[Tensor]) -> Tensor:
        """Orthogonalize (N, r, c); of matrices divided among processes (FSDP2), r are this process's rows.

        Each process then orthogonalizes N / W whole matrices, and every process gets back its rows of all N.
        """
        if not isinstance(parameters[0], DTensor):
            return orthogonalize(updates, precision=self.precision)
        mesh, size = parameters[0].device_mesh, torch.Size((len(parameters), *parameters[0].shape))
        stride = (size[1] * size[2], size[2], 1)
        rows = DTensor.from_local(updates, mesh, [Shard(1)], shape=size, stride=stride)
        mine = rows.redistribute(placements=[Shard(0)]).to_local()  # (N, r / W, c) -> (N / W, r, c)
        done = orthogonalize(mine, precision=self.precision)
        whole = DTensor.from_local(done, mesh, [Shard(0)], shape=size, stride=stride)
        return whole.redistribute(placements=[Shard(1)]).to_local()  # (N / W, r, c) -> (N, r / W, c)

    def _average(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]
