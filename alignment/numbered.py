"""Batches of numbers: which items of a list a step takes. What the items are, the objective knows."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from data.batches import Sampler
from data.sampler import permute


@dataclasses.dataclass(eq=False, repr=False)
class Numbers(Sampler):
    """Endless numbers (B,) int64 of the items in `file`, each item once an epoch in a seeded order.

    `digest` says which items they are: a position in others is refused.
    """

    file: Sequence[Any]
    digest: str = ""
    first: int = dataclasses.field(default=0, init=False)

    def __next__(self) -> torch.Tensor:
        count = len(self.file)
        places = self.first + self.rank * self.batch_size + np.arange(self.batch_size)
        self.first += self.batch_size * self.world_size
        epochs, within = np.divmod(places, count)
        found = [
            permute(within[epochs == epoch], count, (self.seed, int(epoch))) for epoch in np.unique(epochs)
        ]
        return torch.from_numpy(np.concatenate(found))

    def position(self) -> dict[str, Any]:
        return {"first": self.first, "digest": self.digest}

    def seek(self, position: dict[str, Any]) -> None:
        if position["digest"] != self.digest:
            raise ValueError("the run began with other prompts or preferences: resume with the same file")
        self.first = position["first"]
