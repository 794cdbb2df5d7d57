"""What every sampler of batches has in common: its share among processes and its position."""

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from data.tokenfile import TokenFile

Batch = tuple[torch.Tensor, torch.Tensor]  # x, y: (B, T) int64


@dataclasses.dataclass(eq=False, repr=False)
class Sampler(Iterator[Batch], abc.ABC):
    """An iterator of (x, y) from `file` that can say where it stands and go there.

    Under `world_size` processes every rank takes its `batch_size` rows of each `batch_size · world_size`.
    Raises a ValueError for sizes below 1 and a rank that is not there; samplers of windows also for a file too short
    for one.
    """

    file: TokenFile
    batch_size: int  # B, rows
    block_size: int  # T, tokens of a row
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.block_size < 1:
            raise ValueError(
                f"batch_size and block_size must be at least 1, not {self.batch_size} and {self.block_size}"
            )
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank must be in 0 … {self.world_size - 1} for world_size {self.world_size}, not {self.rank}"
            )

    @abc.abstractmethod
    def __next__(self) -> Batch: ...

    @abc.abstractmethod
    def position(self) -> dict[str, int]:
        """Where the next batch begins, in the sampler's own terms."""

    @abc.abstractmethod
    def seek(self, position: dict[str, int]) -> None:
        """Makes the batch at `position` the next one."""

    def state_dict(self) -> dict[str, Any]:
        """The position as plain JSON values."""
        return {"kind": type(self).__name__, "seed": self.seed, **self.position()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the position of `state`, seed included; ValueError when another kind saved it."""
        state = dict(state)
        if (kind := state.pop("kind", None)) != type(self).__name__:
            raise ValueError(
                f"the saved data position is one of {kind}, but batches come from {type(self).__name__}: "
                f"resume with the sampler that the run began with"
            )
        self.seed = state.pop("seed")
        self.seek(state)
