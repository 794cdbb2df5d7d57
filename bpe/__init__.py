"""Byte-level byte-pair encoding: text to token ids and back, and learning the merges from text.

    from bpe import Tokenizer, train
    tokenizer = train("stories.txt", 10_000)
    tokenizer.save("tokenizer.json")

Read in this order: pretokenize (where text is cut), trainer (how merges are learnt), merging (how they
are applied), tokenizer (encode and decode), formats (files). counting, batches and workers make it fast.
docs/bpe.md explains it by hand.
"""

from bpe.pretokenize import END_OF_TEXT
from bpe.tokenizer import Tokenizer
from bpe.trainer import train

__all__ = ["END_OF_TEXT", "Tokenizer", "train"]
