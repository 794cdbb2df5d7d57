"""Batches of whole documents: packed several to a row, or one to a row and padded.

A document of n tokens t0 … t(n-1), the last being <|endoftext|>, gives n pairs (input, target):

    x   <|endoftext|>  t0  t1 … t(n-2)
    y   t0             t1  t2 … t(n-1)

so that the model learns to begin from <|endoftext|>, and no pair reaches from one document into another.
Places of a row that hold no document have x = padding and y = -100, the target that torch's cross_entropy
ignores. Rows of T places hold whole documents; one with more than T pairs fills rows of its own, and its
rest is packed.

Attention that is only causal still lets a packed document look back at those before it in the row, as in
the training of GPT-2 and GPT-3; `document_ids` gives what a mask needs to forbid it.
"""

import dataclasses

import numpy as np
import torch

from data.permute import permute
from data.sampler import Batch, Sampler
from data.tokenfile import chunks

IGNORED = -100  # torch.nn.functional.cross_entropy's default ignore_index
GROUP = 2048  # pieces that are packed together; the rows of a group stand as long as it is dealt out


@dataclasses.dataclass(eq=False, repr=False)
class Documents(Sampler):
    """Every document once an epoch in a seeded order, packed (`mode` "pack") or padded ("pad").

    Endless unless `epochs` is given. Packing is greedy first-fit over groups of 2048 pieces: each
    piece goes into the first row with room.
    The attribute `padding` is the id in x where there is no document: <|pad|> if the vocabulary has it.
    """

    mode: str = "pack"
    epochs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("pack", "pad"):
            raise ValueError(f"mode must be pack or pad, not {self.mode!r}")
        self.end_of_text = self.file.meta.end_of_text
        self.padding = self.file.meta.special_tokens.get("<|pad|>", self.end_of_text)
        self._starts, self._lengths = pieces(self.file.tokens, self.end_of_text, self.block_size)
        self.seek({"epoch": 0, "group": 0, "row": 0})

    def __len__(self) -> int:
        """Pieces of an epoch: documents, those longer than the block counted once a block begun."""
        return len(self._starts)

    def position(self) -> dict[str, int]:
        return {"epoch": self._epoch, "group": self._group, "row": self._row}

    def seek(self, position: dict[str, int]) -> None:
        self._epoch, self._group, self._row = (position[key] for key in ("epoch", "group", "row"))
        self._rows = self._plan()

    def __next__(self) -> Batch:
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
        # before the file's first document stands no <|endoftext|>; source - 1 is -1 there
        x.reshape(-1)[place] = np.where(source > 0, self.file.tokens[source - 1], self.end_of_text)
        return torch.from_numpy(x), torch.from_numpy(y)

    def _gather(self, rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """For all tokens of the rows: where each stands in the file and where it goes in (B·T,): 2 × (n,)."""
        numbers = np.concatenate(rows)
        lengths = self._lengths[numbers]
        before = np.cumsum(lengths) - lengths  # tokens of the pieces before
        first = np.concatenate([[0], np.cumsum([len(row) for row in rows])[:-1]])  # each row's first piece
        row = np.repeat(np.arange(len(rows)), [len(row) for row in rows])  # each piece's row
        place = row * self.block_size + before - before[first][row]
        step = np.arange(lengths.sum()) - np.repeat(before, lengths)  # 0, 1, … within a piece
        return np.repeat(self._starts[numbers], lengths) + step, np.repeat(place, lengths) + step

    def _next_row(self) -> list[int] | None:
        """The pieces of the next row of the endless sequence of epochs; None after the last epoch."""
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
        """The rows of the present group: for each the numbers of its pieces."""
        if self.epochs is not None and self._epoch >= self.epochs:
            return []
        places = np.arange(self._group * GROUP, min((self._group + 1) * GROUP, len(self)))
        numbers = permute(places, len(self), (self.seed, self._epoch))
        if self.mode == "pad":
            return [[number] for number in numbers.tolist()]
        rows = first_fit(self._lengths[numbers], self.block_size)
        return [[int(numbers[index]) for index in row] for row in rows]


def pieces(tokens: np.ndarray, end_of_text: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the documents start and how long they are, cut at block_size tokens: 2 × (P,) int64.

    >>> [array.tolist() for array in pieces(np.array([5, 6, 0, 7, 8, 9, 0]), 0, 3)]
    [[0, 3, 6], [3, 3, 1]]
    """
    found = [start + np.flatnonzero(ids == end_of_text) + 1 for start, ids in chunks(tokens)]
    bounds = np.concatenate([[0], *found, [len(tokens)]])
    starts, lengths = bounds[:-1], np.diff(bounds)
    starts, lengths = starts[lengths > 0], lengths[lengths > 0]
    count = -(-lengths // block_size)  # pieces of each document
    which = np.repeat(np.arange(len(starts)), count)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)  # 0, 1, … within a document
    return starts[which] + nth * block_size, np.minimum(lengths[which] - nth * block_size, block_size)


def first_fit(lengths: np.ndarray, room: int) -> list[list[int]]:
    """Rows of indices into `lengths`: each goes, in order, into the first row where it fits.

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
    """(B, T) -> (B, T) int64: 0, 1, … for the documents of a row. Attend where query's and key's are equal.

    >>> document_ids(torch.tensor([[5, 6, 0, 7, 0, IGNORED]]), end_of_text=0).tolist()
    [[0, 0, 0, 1, 1, 2]]
    """
    ends = (y == end_of_text).long()
    return ends.cumsum(1) - ends
