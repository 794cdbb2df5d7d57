"""Hold what a tokenizer knows: its tokens, merges, special tokens and split pattern, checked when it is made.

tokenizer.py encodes and decodes with it, formats.py reads and writes it.
"""

import functools
import itertools
import operator
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bpe.merging import Merge, Pair
from bpe.pretokenize import END_OF_TEXT, Pattern

# Names that tokenizers give to the token that closes a document; the first that is there is taken.
END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<EOT>", "</s>", "<eos>", "<|eos|>")
NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes that no text holds


class Vocabulary:
    """The tokens of a byte-level BPE with their ids, the merges that make them, and the split pattern.

    `merges` are pairs of byte strings, the first learnt first. By default ids 0..255 are the bytes, then come
    the merges, then the special tokens; `vocab` (id -> bytes, without special tokens) gives other ids.
    `special_tokens` are names, or names with their ids; `end_of_text` names the one that closes a document.
    `added_tokens` (name -> id) are ordinary text that is always one token. `pattern` is a name (see
    pretokenize.PATTERNS) or a regular expression.

    From other projects' files come: `nfc`, text is brought to Unicode's form NFC first; `normalized`, the special
    and added tokens that are looked for after that; `ignore_merges`, a pre-token that is a token is not
    merged. Anything inconsistent is a ValueError.
    """

    def __init__(
        self,
        merges: Iterable[Merge],
        special_tokens: Mapping[str, int] | Sequence[str] = (),
        pattern: str | Pattern = "gpt2",
        *,
        vocab: Mapping[int, bytes] | None = None,
        added_tokens: Mapping[str, int] | None = None,
        normalized: Collection[str] = (),
        nfc: bool = False,
        ignore_merges: bool = False,
        end_of_text: str | None = None,
    ) -> None:
        self.merges: list[Merge] = [(bytes(left), bytes(right)) for left, right in merges]
        self.pattern = Pattern.of(pattern)
        self.normalized, self.nfc, self.ignore_merges = frozenset(normalized), nfc, ignore_merges
        if vocab is None:
            vocab = dict(enumerate([bytes([byte]) for byte in range(256)] + [a + b for a, b in self.merges]))
        if not isinstance(special_tokens, Mapping):
            check_names(special_tokens)
            special_tokens = {token: len(vocab) + index for index, token in enumerate(special_tokens)}
        self.special_tokens: dict[str, int] = dict(special_tokens)
        self.added_tokens: dict[str, int] = dict(added_tokens or {})
        self._ids = _checked_ids(vocab, self.special_tokens, self.added_tokens)
        self._ranks, self._made = _merge_table(self.merges, self._ids, ignore_merges)
        named = {
            id: token.encode() for token, id in self._spelled(self.special_tokens | self.added_tokens).items()
        }
        self.vocab: dict[int, bytes] = dict(sorted({**vocab, **named}.items()))
        self.dtype = id_dtype(self.vocab_size)
        self.end_of_text = _end_of_text(end_of_text, self.special_tokens)

    @property
    def vocab_size(self) -> int:
        """Return the greatest id plus one: the number of rows an embedding needs."""
        return next(reversed(self.vocab)) + 1

    def __len__(self) -> int:
        """Return the number of tokens; less than `vocab_size` if special tokens leave a gap in the ids."""
        return len(self.vocab)

    def __repr__(self) -> str:
        special = ", ".join(self.special_tokens) or "none"
        name = self.pattern.name or "own"
        return f"Tokenizer({self.vocab_size} ids, pattern {name}, special tokens: {special})"

    def __reduce__(self) -> tuple:
        """Pickle the arguments of the constructor, so that workers get the tokenizer without its caches."""
        settings = self.settings()
        return functools.partial(type(self), **settings), ()

    def settings(self) -> dict[str, Any]:
        """Return the arguments that make an equal tokenizer."""
        names = ("merges", "special_tokens", "pattern", "added_tokens", "normalized", "nfc", "ignore_merges")
        return {
            "vocab": self.ordinary(),
            "end_of_text": self.end_of_text,
            **{name: getattr(self, name) for name in names},
        }

    def ordinary(self) -> dict[int, bytes]:
        """Return id -> bytes of the tokens that are neither special nor added."""
        return {id: token for token, id in self._ids.items()}

    def with_special_tokens(self, names: Sequence[str], end_of_text: str | None = None):
        """Return a tokenizer that has these special tokens, too, with ids behind all others.

        `end_of_text` chooses the one that closes a document.
        """
        check_names(names)
        if known := [name for name in names if name in self.special_tokens or name in self.added_tokens]:
            raise ValueError(f"{known[0]!r} is already a special token of this tokenizer")
        added = {name: self.vocab_size + index for index, name in enumerate(names)}
        settings = self.settings() | {"special_tokens": self.special_tokens | added}
        return type(self)(**settings | {"end_of_text": end_of_text or self.end_of_text})

    def _matched(self, allowed_special: Iterable[str]) -> dict[str, int]:
        """Return the tokens that are looked for in a text, as they are spelled there, with their ids."""
        return self._spelled(
            {name: self.special_tokens[name] for name in allowed_special} | self.added_tokens
        )

    def _spelled(self, names: dict[str, int]) -> dict[str, int]:
        """Return the tokens as they are spelled in a text that is brought to the form NFC if it has to be."""
        if not self.nfc:
            return names
        return {
            unicodedata.normalize("NFC", name) if name in self.normalized else name: id
            for name, id in names.items()
        }


def id_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest type that holds the ids of a vocabulary: uint16 or uint32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def check_names(special_tokens: Sequence[str]) -> None:
    """Raise a ValueError unless these are a list of different names."""
    if isinstance(special_tokens, str):
        raise ValueError(f"special_tokens is the string {special_tokens!r}: give a list or a tuple of names")
    if len(set(special_tokens)) < len(special_tokens):
        raise ValueError(f"special_tokens holds a name twice: {list(special_tokens)}")


def default_end(special_tokens: Collection[str]) -> str | None:
    """Return the special token that closes a document unless another one is chosen."""
    return next((name for name in END_NAMES if name in special_tokens), None)


def _end_of_text(chosen: str | None, special_tokens: Mapping[str, int]) -> str | None:
    if chosen is None:
        return default_end(special_tokens)
    if chosen not in special_tokens:
        known = ", ".join(map(repr, special_tokens)) or "none"
        raise ValueError(
            f"end_of_text is {chosen!r}, which is not a special token of this tokenizer: it has {known}"
        )
    return chosen


def _checked_ids(
    vocab: Mapping[int, bytes], special_tokens: Mapping[str, int], added_tokens: Mapping[str, int]
) -> dict[bytes, int]:
    """Return bytes -> id of the ordinary tokens, after checking everything that can be wrong with ids."""
    ids = {token: id for id, token in vocab.items()}
    if len(ids) < len(vocab):
        twice = next(token for id, token in vocab.items() if ids[token] != id)
        raise ValueError(f"the token {twice!r} has two ids in the vocabulary")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ids and byte not in NEVER_IN_UTF8]:
        raise ValueError(
            f"the vocabulary has no token for the byte 0x{missing[0]:02x} ({len(missing)} of 256 lack one), "
            "but a byte-level BPE needs one for every byte that occurs in UTF-8"
        )
    seen = set(vocab)
    for token, id in (*special_tokens.items(), *added_tokens.items()):
        if not token:
            raise ValueError("a special token is the empty string: give it a name")
        if id in seen:
            raise ValueError(f"the special token {token!r} has the id {id}, which another token has too")
        seen.add(id)
    if min(seen) < 0 or max(seen) >= 1 << 32:
        raise ValueError(f"ids run from {min(seen)} to {max(seen)}: they must be in 0..2**32-1")
    if (gap := next(id for id in itertools.count() if id not in seen)) < max(vocab):
        raise ValueError(f"no token has the id {gap}: the vocabulary has a gap")
    return ids


def _merge_table(
    merges: Sequence[Merge], ids: Mapping[bytes, int], ignore_merges: bool
) -> tuple[dict[Pair, int], list[int]]:
    """Return (left id, right id) -> rank, and rank -> id of what the merge makes."""
    lefts, rights = [left for left, _ in merges], [right for _, right in merges]
    parts = [list(map(ids.get, tokens)) for tokens in (lefts, rights, map(operator.add, lefts, rights))]
    if any(None in found for found in parts):
        rank, found = next(
            (rank, found) for rank, found in enumerate(zip(*parts, strict=True)) if None in found
        )
        left, right = merges[rank]
        missing = (left, right, left + right)[found.index(None)]
        raise ValueError(
            f"merge {rank} ({left!r} + {right!r}) needs the token {missing!r}, which does not exist"
        )
    ranks: dict[Pair, int] = dict(zip(zip(*parts[:2], strict=True), itertools.count()))
    made: list[int] = parts[2]
    if len(ranks) < len(merges):
        raise ValueError(f"{len(merges) - len(ranks)} of the {len(merges)} merges are there twice")
    n_bytes = sum(bytes([byte]) in ids for byte in range(256))
    if len(set(made)) < len(ids) - n_bytes and not ignore_merges:
        orphan = next(token for token, id in ids.items() if len(token) > 1 and id not in made)
        raise ValueError(f"no merge makes the token {orphan!r} (id {ids[orphan]})")
    return ranks, made
