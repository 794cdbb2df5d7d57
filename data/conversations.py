"""Instruction data to batches: whole conversations, packed into rows, of which the answers alone are learned.

A conversation is a document of a token file with a mask (data/tokenfile.py). A row of 12 places that holds two of them,
`.` being <|endoftext|>, `u` and `a` the role tokens, `!` the end of a turn, `-` padding or what is not learned:

    x          . u h i a y o ! . u o a      no token sees another conversation, as `documents` says,
    y          - - - - y o ! - - - - …      and the answers, with the token that ends them, are all that is learned
    documents  0 0 0 0 0 0 0 0 1 1 1 1
"""

import dataclasses

import numpy as np
import torch

from data.batches import IGNORED, Documents, document_ids, document_spans
from data.tokenfile import open_mask

WHOLE = 1 << 40  # tokens: no conversation is cut


@dataclasses.dataclass(frozen=True)
class Packed:
    """Rows of conversations, each (B, T) int64: ids, targets (-100 where nothing is learned), conversation numbers."""

    x: torch.Tensor
    y: torch.Tensor
    documents: torch.Tensor


@dataclasses.dataclass(eq=False, repr=False)
class Conversations(Documents):
    """Every conversation once an epoch in a seeded order, packed (`mode` "pack") or one in a row ("pad").

    A conversation of more than T pairs is left out, or with `truncate` its end is; so is one of which nothing is then
    learned. `too_long` and `unlearned` count them. ValueError if none is left.
    """

    truncate: bool = False

    def __post_init__(self) -> None:
        self.mask = open_mask(self.file)
        super().__post_init__()

    def _spans(self) -> tuple[np.ndarray, np.ndarray]:
        starts, lengths = document_spans(self.file.tokens, self.end_of_text, WHOLE)
        fits = lengths <= self.block_size
        self.too_long = int((~fits).sum())
        if self.truncate:
            lengths = np.minimum(lengths, self.block_size)
        else:
            starts, lengths = starts[fits], lengths[fits]
        learned = np.concatenate([[0], np.cumsum(self.mask, dtype=np.int64)])  # up to each token
        useful = learned[starts + lengths] > learned[starts]
        self.unlearned = int((~useful).sum())
        if not useful.any():
            raise ValueError(
                f"{self.file.path} has no conversation with a learned token in {self.block_size} tokens: "
                f"{self.too_long} are longer, in {self.unlearned} the mask is 0 throughout; take a model with a longer "
                "context, or make the data again"
            )
        return starts[useful], lengths[useful]

    def __next__(self) -> Packed:
        x, y, source, place = self._next_filled()
        documents = document_ids(torch.from_numpy(y), self.end_of_text)
        y.reshape(-1)[place[self.mask[source] == 0]] = IGNORED
        return Packed(torch.from_numpy(x), torch.from_numpy(y), documents)
