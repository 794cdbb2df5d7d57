"""Byte-level byte-pair encoding: text to token ids and back, and learning the merges from text.

    from bpe import Tokenizer, train
    tokenizer = train("stories.txt", 10_000)
    tokenizer.save("tokenizer.json")

basics/bpe.py is the whole idea in one file; this room makes it exact and fast. Read in this order: pretokenize (where
text is cut), trainer (how merges are learnt), merging (how they are applied), vocabulary and tokenizer (encode and
decode), formats (files). piecetable, counting and batches make it fast. docs/bpe.md explains it by hand.
"""

import importlib
from typing import TYPE_CHECKING, Any

from bpe.pretokenize import END_OF_TEXT
from bpe.tokenizer import Tokenizer
from bpe.vocabulary import id_dtype

if TYPE_CHECKING:
    from bpe.trainer import train

__all__ = ["END_OF_TEXT", "Tokenizer", "id_dtype", "train"]


def __getattr__(name: str) -> Any:
    """Return bpe.trainer.train when it is first asked for: encoding loads neither the trainer nor what it needs."""
    if name != "train":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("bpe.trainer").train
