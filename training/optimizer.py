"""What moves the weights: AdamW written out (basics/train.py), Muon, the learning rate, clipping, loss scaling."""

import abc
import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from model import GPT
from model.attention import CausalSelfAttention
from training.config import TrainConfig
from training.distributed import Processes, ShardedParameters


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


class Muon(GroupOptimizer):
    """Momentum whose update is made orthogonal, for the matrices inside the blocks (Jordan et al. 2024).

    The gradient of a weight matrix is dominated by a few directions; Adam, which sees only single numbers, follows
    those and neglects the rest. Muon replaces the update U S Vᵀ (its singular value decomposition) by U Vᵀ: every
    direction of the update is equally long. With Nesterov momentum and decoupled weight decay. Embeddings, heads,
    biases and norms stay with AdamW. Matrices of one shape are stacked and orthogonalized together; `precision` is
    that of the products.

    A group's "heads" is None, or (dimension, size) if each `size` rows (dimension 0) or columns (1) of its matrices
    belong to a head of attention, which is then orthogonalized by itself: heads do not compete for directions, and the
    products are smaller.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        precision: torch.dtype = torch.bfloat16,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "heads": None}
        super().__init__(params, defaults)
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
        updates = self._orthogonal(torch.stack(ahead), parameters, group["heads"])  # N × (r, c) -> (N, r, c)
        # A tall matrix with orthonormal columns moves each output less: sqrt(rows / cols) lets one rate suit all.
        # By heads it needs no factor: rows or columns of each are orthonormal, however many heads there are.
        tall = max(1.0, shape[0] / shape[1]) if group["heads"] is None else 1.0
        rate = group["lr"] * tall**0.5
        weights = [local(parameter) for parameter in parameters]
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, list(updates.unbind()), alpha=-rate)

    def _orthogonal(self, updates: Tensor, parameters: list[Tensor], heads: tuple[int, int] | None) -> Tensor:
        """Orthogonalize (N, r, c); of matrices divided among processes (FSDP2), r are this process's rows.

        Each process then orthogonalizes N / W whole matrices, and every process gets back its rows of all N.
        """
        if not isinstance(parameters[0], DTensor):
            return self._by_head(updates, heads)
        mesh, size = parameters[0].device_mesh, torch.Size((len(parameters), *parameters[0].shape))
        stride = (size[1] * size[2], size[2], 1)
        rows = DTensor.from_local(updates, mesh, [Shard(1)], shape=size, stride=stride)
        mine = rows.redistribute(placements=[Shard(0)]).to_local()  # (N, r / W, c) -> (N / W, r, c)
        done = self._by_head(mine, heads).contiguous()
        whole = DTensor.from_local(done, mesh, [Shard(0)], shape=size, stride=stride)
        return whole.redistribute(placements=[Shard(1)]).to_local()  # (N / W, r, c) -> (N, r / W, c)

    def _by_head(self, updates: Tensor, heads: tuple[int, int] | None) -> Tensor:
        """Orthogonalize whole matrices (N, r, c), or the part of each head in them."""
        if heads is None:
            return orthogonalize(updates, precision=self.precision)
        dimension, size = heads[0] + 1, heads[1]
        parts = updates.unflatten(dimension, (-1, size)).movedim(dimension, 1)  # (N, H, D, c) or (N, H, r, D)
        done = orthogonalize(parts.flatten(0, 1), precision=self.precision)  # (N, H, …) -> (N H, …)
        return done.unflatten(0, parts.shape[:2]).movedim(1, dimension).flatten(dimension, dimension + 1)

    def _average(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]


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


def parameter_groups(parameters: Iterable[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: matrices (linear layers and embeddings) with decay; vectors (biases and norms) without."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for p in wanted if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in wanted if p.dim() < 2], "weight_decay": 0.0},
    ]


def adamw_groups(model: GPT, parameters: Iterable[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameter groups of AdamW, which with µP has lower rates for the blocks' matrices.

    Adam moves every number by about its rate, and a wider matrix adds up more of them: the rate is divided by the width
    (Yang et al. 2022, table 8). Muon needs no such rule: its updates have the same norm at every width.
    """
    groups = parameter_groups(parameters, weight_decay)
    if model.config.width_ratio == 1:
        return groups
    in_blocks = {id(p) for p in model.h.parameters()}
    inside = [p for p in groups[0]["params"] if id(p) in in_blocks]
    outside = [p for p in groups[0]["params"] if id(p) not in in_blocks]
    slow = {"params": inside, "weight_decay": weight_decay, "scale": 1 / model.config.width_ratio}
    return [{**groups[0], "params": outside}, groups[1], slow]


def by_muon(model: GPT, config: TrainConfig) -> set[int]:
    """Return the ids of the parameters that Muon updates if it is chosen: the matrices inside the blocks."""
    return {id(p) for p in model.h.parameters() if p.dim() == 2 and config.optimizer == "muon"}


def muon_groups(model: GPT, matrices: Iterable[Tensor]) -> list[dict[str, Any]]:
    """Return the parameter groups of Muon: matrices of attention by their heads, the others whole."""
    heads: dict[int, tuple[int, int]] = {}
    for module in model.h.modules():
        if isinstance(module, CausalSelfAttention):
            heads[id(module.c_attn.weight)] = (0, module.head_dim)  # makes the q, k and v of each head
            heads[id(module.c_proj.weight)] = (1, module.head_dim)  # reads what each head has found
    # The group of whole matrices is there even if empty: of a few processes that share the state, one may have none.
    groups: dict[tuple[int, int] | None, list[Tensor]] = {None: []}
    for matrix in matrices:
        groups.setdefault(heads.get(id(matrix)), []).append(matrix)
    return [{"params": params, "heads": each} for each, params in groups.items()]


def make_optimizers(
    model: GPT, config: TrainConfig, precision: torch.dtype, mine: Container[int] | None = None
) -> list[torch.optim.Optimizer]:
    """Return one AdamW (`ours`, `fused`), or for `muon` an AdamW and a Muon for the blocks' matrices.

    Every group's "scale" is its peak learning rate divided by the configured one, for the schedule. `mine` holds the
    ids of the parameters that this process updates (None: all).
    """
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    parameters = [p for p in model.parameters() if p.requires_grad and (mine is None or id(p) in mine)]
    if config.optimizer == "ours":
        optimizers = [AdamW(adamw_groups(model, parameters, decay), betas=betas)]
    elif config.optimizer == "fused":
        optimizers = [torch.optim.AdamW(adamw_groups(model, parameters, decay), betas=betas, fused=True)]
    else:
        in_blocks = by_muon(model, config)
        matrices = [p for p in parameters if id(p) in in_blocks]
        rest = [p for p in parameters if id(p) not in in_blocks]
        # Without decay: the embeddings are few next to the steps, and each is seen in a few of them only.
        optimizers = [
            torch.optim.AdamW(adamw_groups(model, rest, 0.0), betas=betas, fused=True),
            Muon(muon_groups(model, matrices), weight_decay=decay, precision=precision),
        ]  # fmt: skip
    for optimizer in optimizers:
        scale = config.muon_learning_rate / config.learning_rate if isinstance(optimizer, Muon) else 1.0
        for group in optimizer.param_groups:
            group.setdefault("scale", scale)
    return optimizers


def share_state(model: GPT, config: TrainConfig, processes: Processes) -> ShardedParameters | None:
    """Return how the optimizer's state is divided among the processes; None if each keeps all of it."""
    if config.shard != "optimizer" or not processes.several:
        return None
    muons = by_muon(model, config)

    def averages(parameter: Tensor) -> int:  # Muon keeps one, AdamW two
        return parameter.numel() * (1 if id(parameter) in muons else 2)

    return ShardedParameters(list(model.parameters()), processes.world_size, processes.rank, averages)


def learning_rate(
    step: int,
    *,
    peak: float,
    final: float,
    warmup_steps: int,
    steps: int,
    shape: str = "cosine",
    decay_share: float = 0.2,
) -> float:
    """Return the rate for optimizer step `step`, counted from 0: a linear warm-up to `peak`, then by `shape`:

        cosine    half a cosine down to `final` (Loshchilov and Hutter 2016, section 3)
        wsd       warm-up, stable, decay: constant, then linear to `final` (Hu et al. 2024, section 4)
        constant

    A wsd run that was stopped while it was stable can be continued with more steps.

    >>> [round(learning_rate(s, peak=1.0, final=0.0, warmup_steps=2, steps=7), 2) for s in range(7)]
    [0.5, 1.0, 0.9, 0.65, 0.35, 0.1, 0.0]
    >>> wsd = {"shape": "wsd", "decay_share": 0.4}
    >>> [round(learning_rate(s, peak=1.0, final=0.0, warmup_steps=2, steps=10, **wsd), 2) for s in range(10)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if shape == "constant":
        return peak
    down = steps - warmup_steps
    if shape == "wsd":
        down = min(down, round(decay_share * steps))
    progress = min(max(step + 1 - (steps - down), 0) / max(down, 1), 1.0)
    fall = progress if shape == "wsd" else (1 - math.cos(math.pi * progress)) / 2
    return peak + (final - peak) * fall


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Give every group its share of the scheduled rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]


def local(tensor: Tensor) -> Tensor:
    """Return the tensor, or this process's part of one that is divided among processes (FSDP2)."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


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
    # Where looking at the norm waits for nothing, a factor of 1 costs no pass over the gradient.
    if limit > 0 and not (norm.is_cpu and norm + 1e-6 <= limit):
        scale_gradient(parameters, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def clear_gradients(parameters: Iterable[Tensor]) -> None:
    """Drop the gradients. Module.zero_grad looks for all parameters in the tree of modules first, at every step."""
    for parameter in parameters:
        parameter.grad = None


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
