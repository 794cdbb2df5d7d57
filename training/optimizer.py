"""AdamW written out, and the two groups of parameters: matrices decay, everything else does not."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017, algorithm 2).

    Equal to torch.optim.AdamW, which is what to use for speed; this one is to be read.
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

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Moves every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

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


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices (weights of linear layers and embeddings) with decay; biases and norms, being vectors, without."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def make_optimizer(
    model: nn.Module,
    kind: str,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.Optimizer:
    """`ours` is the class above; `fused` is torch's AdamW, one kernel for all parameters."""
    groups = parameter_groups(model, weight_decay)
    if kind == "ours":
        return AdamW(groups, lr=learning_rate, betas=betas)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The length of the gradient as one long vector, a scalar tensor."""
    norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None])
    return torch.linalg.vector_norm(torch.stack(norms))


def clip_gradient(parameters: list[Tensor], limit: float) -> Tensor:
    """Scales the gradient down to length `limit` where it is longer (Pascanu et al. 2013); 0 leaves it.

    Returns the length before. No branch on its value: a GPU need not wait for it.
    """
    norm = gradient_norm(parameters)
    if limit > 0:
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], scale)
    return norm
