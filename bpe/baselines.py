"""The tokenizers that BPE is measured against: one id per byte, per character, per word.

They share `encode`, `decode`, `vocab_size` and `unknown_id` with each other; what a vocabulary does not
hold becomes its unknown id, which bytes never need and BPE neither.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import regex

UNKNOWN = "<unk>"
WORD = r"\w+(?:['’]\w+)*|[^\w\s]|\s"


class ByteTokenizer:
    """UTF-8: 256 ids, nothing is unknown, and the longest sequences of all.

    >>> ByteTokenizer().encode("né")
    [110, 195, 169]
    """

    vocab_size = 256
    unknown_id = None

    def encode(self, text: str) -> list[int]:
        """The bytes of `text`; a lone surrogate becomes a question mark."""
        return list(text.encode("utf-8", "replace"))

    def decode(self, ids: Iterable[int]) -> str:
        """The text; bytes that are no UTF-8 become U+FFFD."""
        return bytes(ids).decode("utf-8", "replace")


class UnitTokenizer:
    """Ids for a fixed list of units (characters or words) after id 0, which stands for every other one."""

    unknown_id = 0

    def __init__(self, units: Iterable[str]) -> None:
        self.units = [UNKNOWN, *units]
        self._ids = {unit: id for id, unit in enumerate(self.units)}

    @property
    def vocab_size(self) -> int:
        """The units and the unknown one."""
        return len(self.units)

    def split(self, text: str) -> Sequence[str]:
        """The units of `text`, known or not."""
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """The ids of the units of `text`."""
        return [self._ids.get(unit, self.unknown_id) for unit in self.split(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The units joined; unknown ones are gone for good and read <unk>."""
        return "".join(self.units[id] for id in ids)


class CharTokenizer(UnitTokenizer):
    """One id per character of the training text.

    >>> tokenizer = CharTokenizer.train("banana")
    >>> tokenizer.encode("nab!"), tokenizer.decode(tokenizer.encode("nab!"))
    ([3, 1, 2, 0], 'nab<unk>')
    """

    @classmethod
    def train(cls, text: str) -> "CharTokenizer":
        """Takes every character of `text`, in the order of their code points."""
        return cls(sorted(set(text)))

    def split(self, text: str) -> Sequence[str]:
        """The characters."""
        return text


class WordTokenizer(UnitTokenizer):
    """One id per word, punctuation mark and white space character of the training text.

    >>> WordTokenizer.train("the cat, the dog").encode("the bird, the cat")
    [2, 1, 0, 4, 1, 2, 1, 3]
    """

    @classmethod
    def train(cls, text: str, vocab_size: int | None = None) -> "WordTokenizer":
        """Takes the most frequent units of `text`, of equals the first ones, all of them by default."""
        counts = Counter(regex.findall(WORD, text))
        return cls(unit for unit, _ in counts.most_common(None if vocab_size is None else vocab_size - 1))

    def split(self, text: str) -> Sequence[str]:
        """The words, punctuation marks and white space characters; joined they give the text again."""
        return regex.findall(WORD, text)
