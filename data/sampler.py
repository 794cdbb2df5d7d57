"""Share what all samplers in data/batches.py need: position, share of a rank, shuffled order, prefetching.

Sampler    an iterator of batches whose position can be saved and restored
permute    a shuffled order that is computed, not stored
prefetch   prepares the next batches in a thread during the training step
"""

import abc
import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from data.tokenfile import TokenFile

Batch = tuple[torch.Tensor, torch.Tensor]  # x, y: (B, T) int64


@dataclasses.dataclass(eq=False, repr=False)
class Sampler(Iterator[Batch], abc.ABC):
    """An iterator of (x, y) over `file` whose position can be saved and restored.

    With `world_size` processes, each rank takes its `batch_size` rows of each `batch_size · world_size`.
    Raises ValueError for sizes below 1 and for a rank outside the world; window samplers also for a file shorter than
    one window.
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
        """Return where the next batch begins, in the sampler's own terms."""

    @abc.abstractmethod
    def seek(self, position: dict[str, int]) -> None:
        """Make the batch at `position` the next one."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position as plain JSON values."""
        return {"kind": type(self).__name__, "seed": self.seed, **self.position()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of `state`, with its seed; ValueError if another kind of sampler saved it."""
        state = dict(state)
        if (kind := state.pop("kind", None)) != type(self).__name__:
            raise ValueError(
                f"the saved data position is one of {kind}, but batches come from {type(self).__name__}: "
                f"resume with the sampler that the run began with"
            )
        self.seed = state.pop("seed")
        self.seek(state)


def permute(indices: np.ndarray, n: int, key: tuple[int, ...], rounds: int = 6) -> np.ndarray:
    """Apply to `indices` the permutation of 0 … n-1 that `key` selects; nothing of length n is stored.

    A Feistel network permutes the 2k-bit numbers, 4^k >= n: each round combines one half with a hash of the
    other, which can be undone and so loses nothing. A value outside 0 … n-1 goes through again until it falls
    inside ("cycle walking": Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002), fewer than
    4 times on average.

    >>> sorted(permute(np.arange(10), 10, (7, 0)).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    keys = np.random.SeedSequence(key).generate_state(rounds, np.uint64)
    values = _feistel(indices.astype(np.uint64), half, keys)
    while len(outside := np.flatnonzero(values >= n)):
        values[outside] = _feistel(values[outside], half, keys)
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    """Permute numbers of 2·half bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's finalizer, mod 2^64 (Steele, Lea and Flood, 2014): every bit affects every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class prefetch(Iterator[Any]):
    """Iterates over `sampler`'s batches on `device`; a background thread prepares up to `depth` of them.

    On a GPU the thread also puts them in pinned memory, from which the copy to the device runs
    asynchronously. `state_dict` is the position after the last batch handed out, however many were prepared.
    An error in the sampler is raised by `next`. Close it, or use it in a `with`: the thread ends, and the
    sampler returns to the position after the last batch handed out, so that it can be used again.
    """

    def __init__(self, sampler: Sampler, device: str | torch.device = "cpu", depth: int = 2) -> None:
        self._sampler, self._device = sampler, torch.device(device)
        self._state = sampler.state_dict()
        self._ready: queue.Queue[tuple] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for batch in self._sampler:
                if self._device.type == "cuda":
                    batch = map_tensors(batch, torch.Tensor.pin_memory)
                if not self._put((batch, self._sampler.state_dict())):
                    return
            self._put((None, StopIteration()))
        except Exception as error:
            self._put((None, error))

    def _put(self, item: tuple) -> bool:
        """Wait for room in the queue; return False if the prefetcher was closed in the meantime."""
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __next__(self) -> Any:
        if self._stop.is_set():
            raise StopIteration
        batch, state = self._ready.get()
        if isinstance(state, BaseException):
            self.close()
            raise state
        self._state = state
        return map_tensors(batch, lambda tensor: tensor.to(self._device, non_blocking=True))

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch handed out."""
        return self._state

    def close(self) -> None:
        """End the thread; the sampler returns to the batch after the last one handed out."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self._sampler.load_state_dict(self._state)

    def __enter__(self) -> "prefetch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def map_tensors(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a batch with every tensor changed: a tensor, or a tuple, dict or dataclass of batches.

    >>> map_tensors((torch.ones(1), {"mask": torch.ones(1)}), lambda tensor: tensor + 1)
    (tensor([2.]), {'mask': tensor([2.])})
    """
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return {name: map_tensors(part, change) for name, part in batch.items()}
    if dataclasses.is_dataclass(batch):
        parts = {f.name: map_tensors(getattr(batch, f.name), change) for f in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **parts)
    return tuple(map_tensors(part, change) for part in batch)
