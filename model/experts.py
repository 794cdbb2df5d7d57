"""Mixture of experts: many MLPs, of which each token uses a few that a router chooses for it.

The parameters grow with the number of experts, the arithmetic of a token only with how many it uses. Left alone the
router would send everything to the few experts that happened to learn first. Two ways to keep the load even:

    loss   a term that grows with the load of likely experts; probabilities by softmax (Mixtral, Switch)
    bias   a number for each expert, added to its score when experts are chosen and nowhere else, that falls while the
           expert has more than its share; scores by sigmoid (DeepSeek-V3)
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from model.config import GPTConfig
from model.layers import make_mlp

BALANCE = 0.01  # weight of the balance's gradient relative to that of the loss


class Experts(nn.Module):
    """The sum of a token's chosen experts, by the router's weights, and of the shared expert, if there is one.

    With a capacity factor c, an expert takes at most c times its even share of a training batch; later tokens are
    dropped: that expert adds nothing to them. In evaluation nothing is dropped. The number of rows of an expert
    depends on the data, so torch.compile breaks its graph here.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.active, self.capacity = config.n_expert_active, config.expert_capacity
        self.router = nn.Linear(config.n_embd, config.n_expert, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.n_expert)) if config.expert_balance == "bias" else None
        self.experts = nn.ModuleList(make_mlp(config, config.inner) for _ in range(config.n_expert))
        shared = config.n_expert_shared
        self.shared = make_mlp(config, shared * config.inner) if shared else None
        self.load: Tensor | None = (
            None  # of the last pass: the fraction of its tokens that chose each expert, (E,)
        )
        self.dropped = 0.0  # of the last pass: the fraction of its choices that were dropped
        self.guide: Tensor | None = None  # of the last pass: what the balance minimizes

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) to (…, C)."""
        rows = x.flatten(0, -2)  # (…, C) -> (N, C)
        scores, weights, chosen = self.route(rows)
        places, sizes = self._assign(chosen)
        tokens = places // self.active
        parts = rows[tokens].split(sizes)
        found = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        weighted = found * weights.flatten()[places, None]  # (N k, C)
        y = torch.zeros_like(rows) if self.shared is None else self.shared(rows).to(rows.dtype)
        self.guide = self._guide(scores) if self.training else None
        return y.index_add(0, tokens, weighted.to(y.dtype)).view_as(x)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy takes over: not the last pass's guide, which belongs to a graph."""
        return {**self.__dict__, "guide": None}

    def route(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores (N, E) of rows (N, C), and the weights and numbers of the chosen experts, both (N, k)."""
        logits = self.router(rows)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        scores = logits.softmax(-1) if self.bias is None else logits.sigmoid()
        chosen = (scores if self.bias is None else scores + self.bias).topk(self.active, dim=-1).indices
        weights = scores.gather(-1, chosen)
        return scores, weights / weights.sum(-1, keepdim=True), chosen

    def _assign(self, chosen: Tensor) -> tuple[Tensor, list[int]]:
        """Return the places in chosen (N, k) that are computed, expert by expert, and how many each expert has."""
        numbers = torch.arange(len(self.experts), device=chosen.device)
        counts = (chosen.flatten()[:, None] == numbers).sum(0)  # (N k, E) -> (E,)
        self.load = counts / len(chosen)
        if isinstance(chosen, FakeTensor):  # model.accounting: without values, an even load
            sizes = [chosen.numel() // len(numbers)] * len(numbers)
            sizes[0] += chosen.numel() - sum(sizes)
        else:
            sizes = counts.tolist()
        segments = chosen.flatten().argsort(stable=True).split(sizes)
        if self.training and self.capacity is not None:
            most = math.ceil(self.capacity * chosen.numel() / len(numbers))
            segments = [segment[:most] for segment in segments]
        places = torch.cat(segments)
        self.dropped = 1 - len(places) / chosen.numel()
        return places, [len(segment) for segment in segments]

    def _guide(self, scores: Tensor) -> Tensor:
        """Return what falls when the load, which has no gradient itself, gets more even."""
        if self.bias is None:
            return len(self.experts) * (self.load * scores.mean(0)).sum()
        return (self.bias * (self.load - self.load.mean())).sum()  # its slope is each expert's excess load


def balance(model: nn.Module) -> list[Tensor]:
    """Return, for each layer of experts, what training minimizes to keep their load even."""
    return [BALANCE * module.guide for module in model.modules() if isinstance(module, Experts)]


def figures(model: nn.Module) -> dict[str, float]:
    """Return the largest load of the last pass (1 is an even one) and the fraction dropped; nothing without experts."""
    layers = [module for module in model.modules() if isinstance(module, Experts) and module.load is not None]
    if not layers:
        return {}
    largest = max((layer.load.max() / layer.load.mean()).item() for layer in layers)
    return {"expert_load": largest, "expert_dropped": sum(layer.dropped for layer in layers) / len(layers)}
