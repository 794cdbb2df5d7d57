"""Token files to batches: (x, y), both (B, T) int64; y is x one token later.

    RandomWindows   windows that start anywhere, uniformly: the usual get_batch; train.py --batches random
    DocumentStarts  windows that start where a document does, or whole blocks later; train.py --batches documents
    Documents       whole documents, padded (what evaluation reads) or packed; train.py --batches packed
    EpochWindows    every window once an epoch, in a new order each epoch; train.py --batches epochs
    StridedWindows  windows every `stride` tokens, as in courses that build a DataLoader with a stride

No command uses StridedWindows: it is for training loops of your own.

A sampler is an iterator. The contents of a batch depend only on the seed and on the batch's number, so the number
is the whole state and a run can resume at the very next batch. With `world_size` processes the rows of one stream
are shared out: rank r with B rows reads rows rB to (r+1)B of each batch that a single process with `world_size`
times B rows would read.
"""

import dataclasses
import functools

import numpy as np
import torch

from data.sampler import Batch, Sampler, permute, prefetch
from data.tokenfile import TokenFile, chunks

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


IGNORED = -100  # torch.nn.functional.cross_entropy's default ignore_index
GROUP = 2048  # document spans that are packed together; their rows are kept until the group is used up
ORDER_AHEAD = 8192  # windows whose place in the shuffled order is computed at once


class _Windows(Sampler):
    """Share what all window samplers do: one gather a batch; the position is the batch's number."""

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
        """Return where the windows of the next batch start: (B,) int64; empty after the last one."""
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
        """Draw this rank's share of numbers from 0 … count - 1, uniform and new for every batch: (B,) int64."""
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, self.batch))))
        drawn = random.integers(count, size=self.batch_size * self.world_size)
        return drawn[self.rank * self.batch_size :][: self.batch_size]


class DocumentStarts(RandomWindows):
    """Endless windows that start where a document does, at the <|endoftext|> before it.

    In a document longer than the block they also start every `block_size` tokens. After the end of the
    document a window continues with the documents that follow it. A model trained this way has always read
    the beginning of what it continues, as in use, where every text starts after <|endoftext|>.
    """

    @functools.cached_property
    def _documents(self) -> np.ndarray:
        """Return where the windows may start: (D,) int64; found by one pass over the file."""
        starts, _ = document_spans(self.file.tokens, self.file.meta.end_of_text, self.block_size)
        starts = np.maximum(starts - 1, 0)  # no <|endoftext|> precedes the file's first document
        return starts[starts < len(self._rows)]

    def _starts(self) -> np.ndarray:
        return self._documents[self._draw(len(self._documents))]


@dataclasses.dataclass(eq=False, repr=False)
class StridedWindows(_Windows):
    """Windows of `block_size` tokens (the `context_length` of many courses) every `stride`, in order or shuffled.

    With a stride below the block size they overlap. Every window comes once in each of `epochs` epochs
    (endless if None); the last batch may be smaller. Tokens after the last whole window are left out.
    `len()` is the number of windows of an epoch.
    """

    stride: int = dataclasses.field(kw_only=True)
    shuffle: bool = False
    epochs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1, not {self.stride}")
        self.seek(
            {"batch": 0}
        )  # sets _ahead: the number of the first window whose place is known, and the places

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
            count = max(min(ORDER_AHEAD, len(self)), self.batch_size)
            begin, order = self._ahead = first, self._order(first, count)
        return order[first - begin : last - begin] * self.stride

    def _order(self, first: int, count: int) -> np.ndarray:
        """Return windows first … first + count - 1 of the endless sequence of shuffled epochs: (count,)."""
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
    """Adjacent windows without overlap, each once an epoch, in a seeded order that is new each epoch."""

    stride: int = dataclasses.field(init=False)
    shuffle: bool = dataclasses.field(init=False, default=True)

    def __post_init__(self) -> None:
        self.stride = self.block_size
        super().__post_init__()


@dataclasses.dataclass(eq=False, repr=False)
class Documents(Sampler):
    """Every document once an epoch in a seeded order, packed (`mode` "pack") or padded ("pad").

    A document of n tokens t0 … t(n-1), the last being <|endoftext|>, gives n pairs (input, target):

        x   <|endoftext|>  t0  t1 … t(n-2)
        y   t0             t1  t2 … t(n-1)

    so that the model learns to begin from <|endoftext|>, and no pair reaches from one document into another.
    Places of a row that hold no document have x = `padding` (<|pad|> if the vocabulary has it, else
    <|endoftext|>) and y = -100, the target that torch's cross_entropy ignores. Only a document with more than
    T pairs is cut: into spans of T, and its rest is treated as a document. Packing is greedy first-fit over
    groups of 2048 spans. Endless unless `epochs` is given.

    Causal attention alone lets a packed document look back at those before it in the row, as in the training of GPT-2
    and GPT-3. train.py gives the model the `document_ids`, which forbid it.
    """

    mode: str = "pack"
    epochs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("pack", "pad"):
            raise ValueError(f"mode must be pack or pad, not {self.mode!r}")
        self.end_of_text = self.file.meta.end_of_text
        self.padding = self.file.meta.special_tokens.get("<|pad|>", self.end_of_text)
        self._starts, self._lengths = self._spans()
        self.seek({"epoch": 0, "group": 0, "row": 0})

    def _spans(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the starts and lengths of what goes into rows as a whole: 2 × (S,) int64."""
        return document_spans(self.file.tokens, self.end_of_text, self.block_size)

    def __len__(self) -> int:
        """Return the spans of an epoch: documents, those longer than the block counted once a block begun."""
        return len(self._starts)

    def position(self) -> dict[str, int]:
        return {"epoch": self._epoch, "group": self._group, "row": self._row}

    def seek(self, position: dict[str, int]) -> None:
        self._epoch, self._group, self._row = (position[key] for key in ("epoch", "group", "row"))
        self._rows = self._plan()

    def __next__(self) -> Batch:
        x, y, _, _ = self._next_filled()
        return torch.from_numpy(x), torch.from_numpy(y)

    def _next_filled(self) -> tuple[np.ndarray, ...]:
        """Return x and y (B, T) of the next batch, and for their n tokens where in the file and the batch: 2 × (n,)."""
        rows = [
            row for _ in range(self.batch_size * self.world_size) if (row := self._next_row()) is not None
        ]
        mine = rows[self.rank * self.batch_size :][: self.batch_size]
        if not mine:
            raise StopIteration
        x = np.full((len(mine), self.block_size), self.padding, np.int64)  # (B, T)
        y = np.full((len(mine), self.block_size), IGNORED, np.int64)  # (B, T)
        source, place = self._gather(mine)
        y.reshape(-1)[place] = self.file.tokens[source]  # (B, T) -> (B·T,)
        # no <|endoftext|> precedes the file's first document; source - 1 is -1 there
        x.reshape(-1)[place] = np.where(source > 0, self.file.tokens[source - 1], self.end_of_text)
        return x, y, source, place

    def _gather(self, rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Return, for all tokens of the rows, their index in the file and in the batch (B·T,): 2 × (n,)."""
        numbers = np.concatenate(rows)
        lengths = self._lengths[numbers]
        before = np.cumsum(lengths) - lengths  # tokens of the spans before
        first = np.concatenate([[0], np.cumsum([len(row) for row in rows])[:-1]])  # each row's first span
        row = np.repeat(np.arange(len(rows)), [len(row) for row in rows])  # each span's row
        place = row * self.block_size + before - before[first][row]
        step = np.arange(lengths.sum()) - np.repeat(before, lengths)  # 0, 1, … within a span
        return np.repeat(self._starts[numbers], lengths) + step, np.repeat(place, lengths) + step

    def _next_row(self) -> list[int] | None:
        """Return the spans of the next row of the endless sequence of epochs; None after the last epoch."""
        while self._row == len(self._rows):
            self._row, self._group = 0, self._group + 1
            if self._group * GROUP >= len(self):
                self._group, self._epoch = 0, self._epoch + 1
            self._rows = self._plan()
            if not self._rows:
                return None
        self._row += 1
        return self._rows[self._row - 1]

    def _plan(self) -> list[list[int]]:
        """Return the rows of the present group: for each the numbers of its spans."""
        if self.epochs is not None and self._epoch >= self.epochs:
            return []
        places = np.arange(self._group * GROUP, min((self._group + 1) * GROUP, len(self)))
        numbers = permute(places, len(self), (self.seed, self._epoch))
        if self.mode == "pad":
            return [[number] for number in numbers.tolist()]
        rows = first_fit(self._lengths[numbers], self.block_size)
        return [[int(numbers[index]) for index in row] for row in rows]


def document_spans(tokens: np.ndarray, end_of_text: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the starts and lengths of all documents, cut every block_size tokens: 2 × (S,) int64.

    >>> [array.tolist() for array in document_spans(np.array([5, 6, 0, 7, 8, 9, 0]), 0, 3)]
    [[0, 3, 6], [3, 3, 1]]
    """
    found = [start + np.flatnonzero(ids == end_of_text) + 1 for start, ids in chunks(tokens)]
    bounds = np.concatenate([[0], *found, [len(tokens)]])
    starts, lengths = bounds[:-1], np.diff(bounds)
    starts, lengths = starts[lengths > 0], lengths[lengths > 0]
    count = -(-lengths // block_size)  # spans of each document
    which = np.repeat(np.arange(len(starts)), count)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)  # 0, 1, … within a document
    return starts[which] + nth * block_size, np.minimum(lengths[which] - nth * block_size, block_size)


def first_fit(lengths: np.ndarray, room: int) -> list[list[int]]:
    """Return rows of indices into `lengths`: each goes, in order, into the first row where it fits.

    First-fit needs at most 1.7 times the fewest rows possible (Dósa and Sgall, 2013).

    >>> first_fit(np.array([5, 4, 2, 3]), room=8)
    [[0, 2], [1, 3]]
    """
    rows: list[list[int]] = []
    free = np.full(len(lengths), room)  # of the rows begun and of those to come
    for index, length in enumerate(lengths):
        row = int(np.argmax(free[: len(rows) + 1] >= length))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        free[row] -= length
    return rows


def document_ids(y: torch.Tensor, end_of_text: int) -> torch.Tensor:
    """Return (B, T) int64: 0, 1, … for the documents of a row. Attend where query's and key's are equal.

    >>> document_ids(torch.tensor([[5, 6, 0, 7, 0, IGNORED]]), end_of_text=0).tolist()
    [[0, 0, 0, 1, 1, 2]]
    """
    ends = (y == end_of_text).long()
    return ends.cumsum(1) - ends


SAMPLERS: dict[str, type[Sampler]] = {
    "random": RandomWindows,
    "documents": DocumentStarts,
    "epochs": EpochWindows,
    "packed": Documents,
}  # the kinds of batches that train.py can ask for
