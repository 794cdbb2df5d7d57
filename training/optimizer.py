"""AdamW written out (basics/train.py, for groups of parameters), the choice of optimizers, clipping, loss scaling."""

import dataclasses
from collections.abc import Container, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from model import GPT
from training.config import TrainConfig
from training.distributed import Processes, ShardedParameters
from training.muon import GroupOptimizer, Muon, local


class AdamW(GroupOptimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017, algorithm 2).

    A teaching version, for --optimizer ours: equal to torch.optim.AdamW, which is faster.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def move(self, group: dict[str, Any]) -> None:
        """Update the group's parameters that have a gradient."""
        for parameter in group["params"]:
            if parameter.grad is not None:
                self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        step, (beta1, beta2) = state["step"].item(), group["betas"]

        mean, mean_square = state["exp_avg"], state["exp_avg_sq"]
        mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
        mean_square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)

        # Both averages start at zero and are too small at first; dividing by 1 - beta^t undoes exactly that.
        corrected_root = (mean_square / (1 - beta2**step)).sqrt_().add_(group["eps"])
        # Decay acts on the weight itself, not through the gradient: else Adam would divide it away.
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(mean, corrected_root, value=-group["lr"] / (1 - beta1**step))


def parameter_groups(parameters: Iterable[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: matrices (linear layers and embeddings) with decay; vectors (biases and norms) without."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in wanted if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in wanted if p.dim() < 2], "weight_decay": 0.0},
    ]


def by_muon(model: GPT, config: TrainConfig) -> set[int]:
    """Return the ids of the parameters that Muon updates if it is chosen: the matrices inside the blocks."""
    return {id(p) for p in model.h.parameters() if p.dim() == 2 and config.optimizer == "muon"}


def make_optimizers(
    model: GPT, config: TrainConfig, precision: torch.dtype, mine: Container[int] | None = None
) -> list[torch.optim.Optimizer]:
    """Return one AdamW (`ours`, `fused`), or for `muon` an AdamW and a Muon for the blocks' matrices.

    Every group's "scale" is its peak learning rate divided by the configured one, for the schedule. `mine` holds the
    ids of the parameters that this process updates (None: all).
    """
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    parameters = [p for p in model.parameters() if mine is None or id(p) in mine]
    if config.optimizer == "ours":
        optimizers = [AdamW(parameter_groups(parameters, decay), betas=betas)]
    elif config.optimizer == "fused":
        optimizers = [torch.optim.AdamW(parameter_groups(parameters, decay), betas=betas, fused=True)]
    else:
        in_blocks = by_muon(model, config)
        matrices = [p for p in parameters if id(p) in in_blocks]
        rest = [p for p in parameters if id(p) not in in_blocks]
        # Without decay: the embeddings are few next to the steps, and each is seen in a few of them only.
        optimizers = [
            torch.optim.AdamW(parameter_groups(rest, 0.0), betas=betas, fused=True),
            Muon([{"params": matrices, "scale": config.muon_learning_rate / config.learning_rate}],
                 weight_decay=decay, precision=precision),
        ]  # fmt: skip
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("scale", 1.0)
    return optimizers


def share_state(model: GPT, config: TrainConfig, processes: Processes) -> ShardedParameters | None:
    """Return how the optimizer's state is divided among the processes; None if each keeps all of it."""
    if config.shard != "optimizer" or not processes.several:
        return None
    muons = by_muon(model, config)

    def averages(parameter: Tensor) -> int:  # Muon keeps one, AdamW two
        return parameter.numel() * (1 if id(parameter) in muons else 2)

    return ShardedParameters(list(model.parameters()), processes.world_size, processes.rank, averages)


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Give every group its share of the scheduled rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]


def gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the gradients of the parameters that have one; of a sharded gradient this process's part."""
    return [local(p.grad) for p in parameters if p.grad is not None]


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Return the L2 norm of all gradients together, a scalar tensor."""
    parameters = list(parameters)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients(parameters))))
    if any(isinstance(p.grad, DTensor) for p in parameters):
        square = norm.square()  # the parts of the processes do not overlap: their squares add up
        dist.all_reduce(square)
        norm = square.sqrt()
    return norm


def clip_gradient(parameters: list[Tensor], limit: float) -> Tensor:
    """Scale the gradient down to norm `limit` if it is larger (Pascanu et al. 2013); 0 turns this off.

    Return the norm before.
    """
    norm = gradient_norm(parameters)
    if limit > 0:
        scale_gradient(parameters, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def scale_gradient(parameters: Iterable[Tensor], factor: Tensor | float) -> None:
    """Multiply the gradient by `factor`."""
    torch._foreach_mul_(gradients(parameters), factor)


def state_bytes(optimizers: Iterable[torch.optim.Optimizer]) -> int:
    """Return the bytes of the optimizers' state in this process."""
    tensors = (value for each in optimizers for state in each.state.values() for value in state.values())
    return sum(local(tensor).nbytes for tensor in tensors)


@dataclasses.dataclass
class LossScale:
    """Dynamic loss scaling, which float16 needs (Micikevicius et al. 2017, section 3.2); constant 1 unless `active`.

    float16 cannot hold numbers below 6e-8, and many gradients are smaller. The loss is multiplied by a large scale
    before the backward pass, which multiplies all gradients, and they are divided by it, in float32, before they are
    used. The scale doubles after a long time without overflow and is halved at each overflow, whose step is skipped,
    as in torch.amp.GradScaler.

    >>> scale = LossScale(active=True, value=8.0, growth_interval=2)
    >>> [(scale.update(finite), scale.value)[1] for finite in (True, False, True, True)]
    [8.0, 4.0, 4.0, 8.0]
    """

    active: bool
    value: float = 65536.0
    growth_interval: int = 2000
    good_steps: int = 0
    """Steps without overflow since the scale last changed."""

    def __post_init__(self) -> None:
        if not self.active:
            self.value = 1.0

    def update(self, finite: bool) -> bool:
        """Adapt the scale to a step; return True if the step overflowed and a smaller scale may cure that."""
        if not self.active:
            return False
        if not finite:
            self.value, self.good_steps = self.value / 2, 0
            return self.value >= 1.0
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            self.value, self.good_steps = self.value * 2, 0
        return False
