"""Token files to batches: (x, y), both (B, T) int64, y being x one token later.

    RandomWindows   windows that start anywhere, uniformly: the course's get_batch
    DocumentStarts  windows that start where a document does, or whole blocks later in it
    EpochWindows    every window once an epoch, in an order drawn anew each epoch
    StridedWindows  windows every `stride` tokens, for code of your own: no command uses them
    Documents       whole documents, packed or padded (data/documents.py)
    prefetch        makes the next batch while this one is trained on (data/prefetch.py)

A sampler is an iterator. Which windows a batch holds depends only on the seed and on the batch's number,
so the number is the whole state, and a run goes on at the very next batch. Under `world_size` processes the
rows of one stream are dealt out: rank r with B rows sees rows rB to (r+1)B of each batch that a single
process with `world_size` times B rows would see.
"""

import dataclasses
import functools

import numpy as np
import torch

from data.documents import Documents, document_ids, pieces
from data.permute import permute
from data.prefetch import prefetch
from data.sampler import Batch, Sampler
from data.tokenfile import TokenFile

__all__ = [
    "SAMPLERS",
    "DocumentStarts",
    "Documents",
    "EpochWindows",
    "RandomWindows",
    "Sampler",
    "StridedWindows",
    "TokenFile",
    "document_ids",
    "prefetch",
]


AHEAD = 8192  # windows whose place in the shuffled order is computed at once


class _Windows(Sampler):
    """What the samplers of windows share: one gather a batch, and the batch's number as position."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.file) <= self.block_size:
            raise ValueError(
                f"{self.file.path} holds {len(self.file)} tokens, too few for a block of {self.block_size} "
                f"and the next token: prepare more text or use a smaller block_size"
            )
        self.batch = 0  # the number of the next batch
        # (N - T, T + 1): row i is tokens i … i + T; a view, nothing is copied
        self._rows = np.lib.stride_tricks.sliding_window_view(self.file.tokens, self.block_size + 1)

    def _starts(self) -> np.ndarray:
        """Where the windows of the next batch start: (B,) int64; empty when there is none."""
        raise NotImplementedError

    def __next__(self) -> Batch:
        self.file.check_there()
        starts = self._starts()
        if not len(starts):
            raise StopIteration
        self.batch += 1
        rows = torch.from_numpy(self._rows[starts].astype(np.int64))  # (B, T + 1)
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()  # 2 × (B, T)

    def position(self) -> dict[str, int]:
        return {"batch": self.batch}

    def seek(self, position: dict[str, int]) -> None:
        self.batch = position["batch"]


class RandomWindows(_Windows):
    """Endless windows whose starts are uniform over the file, drawn with replacement."""

    def _starts(self) -> np.ndarray:
        return self._draw(len(self._rows))

    def _draw(self, count: int) -> np.ndarray:
        """This rank's share of numbers drawn uniformly from 0 … count - 1, new for every batch: (B,) int64."""
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, self.batch))))
        drawn = random.integers(count, size=self.batch_size * self.world_size)
        return drawn[self.rank * self.batch_size :][: self.batch_size]


class DocumentStarts(RandomWindows):
    """Endless windows that start where a document does, at the <|endoftext|> before it.

    In a document longer than the block they also start every `block_size` tokens. What is left of a window
    when its document is over holds the documents after it. A model trained so knows the beginning of
    whatever it continues, as in use, where every text starts behind <|endoftext|>.
    """

    @functools.cached_property
    def _documents(self) -> np.ndarray:
        """Where the windows may start: (D,) int64; found by one pass over the file."""
        starts, _ = pieces(self.file.tokens, self.file.meta.end_of_text, self.block_size)
        starts = np.maximum(starts - 1, 0)  # before the file's first document stands no <|endoftext|>
        return starts[starts < len(self._rows)]

    def _starts(self) -> np.ndarray:
        return self._documents[self._draw(len(self._documents))]


@dataclasses.dataclass(eq=False, repr=False)
class StridedWindows(_Windows):
    """Windows of `block_size` tokens (the `context_length` of many courses) every `stride`, in order or shuffled.

    A stride below the block size makes them overlap. Every window comes once in each of `epochs` epochs
    (endless when None); a last batch may be smaller. Tokens after the last whole window are left out.
    `len()` is the number of windows of an epoch.
    """

    stride: int = dataclasses.field(kw_only=True)
    shuffle: bool = False
    epochs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1, not {self.stride}")
        self.seek({"batch": 0})  # _ahead: where the permuted windows at hand begin, and which they are

    def __len__(self) -> int:
        return (len(self._rows) - 1) // self.stride + 1

    def _starts(self) -> np.ndarray:
        first = (self.batch * self.world_size + self.rank) * self.batch_size
        last = first + self.batch_size
        if self.epochs is not None:
            last = max(first, min(last, self.epochs * len(self)))
        if not self.shuffle:
            return np.arange(first, last) % len(self) * self.stride
        begin, order = self._ahead
        if not begin <= first <= last <= begin + len(order):
            count = max(min(AHEAD, len(self)), self.batch_size)
            begin, order = self._ahead = first, self._order(first, count)
        return order[first - begin : last - begin] * self.stride

    def _order(self, first: int, count: int) -> np.ndarray:
        """Windows number first … first + count - 1 of the endless sequence of shuffled epochs: (count,)."""
        epochs, windows = np.divmod(np.arange(first, first + count), len(self))
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            windows[mine] = permute(windows[mine], len(self), (self.seed, int(epoch)))
        return windows

    def seek(self, position: dict[str, int]) -> None:
        super().seek(position)
        self._ahead = (0, np.empty(0, np.int64))


@dataclasses.dataclass(eq=False, repr=False)
class EpochWindows(StridedWindows):
    """Windows that touch but do not overlap, each once an epoch, in a seeded order that is new each epoch."""

    stride: int = dataclasses.field(init=False)
    shuffle: bool = dataclasses.field(init=False, default=True)

    def __post_init__(self) -> None:
        self.stride = self.block_size
        super().__post_init__()


SAMPLERS: dict[str, type[Sampler]] = {
    "random": RandomWindows,
    "documents": DocumentStarts,
    "epochs": EpochWindows,
    "packed": Documents,
}  # the kinds of batches that train.py can ask for
