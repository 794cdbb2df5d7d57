"""Text to token ids and back, by the merges of a trained byte-level BPE.

A dictionary maps a piece of text (a word with its leading space and what follows it up to the next one) to
its ids, so that common text costs one look-up per piece. Training is in trainer.py, files in formats.py.
"""

import array
import codecs
import contextlib
import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from bpe.batches import BatchEncoder
from bpe.merging import Merge, Pair, merge
from bpe.piecetable import PADDING, PieceTable, find_cuts, spare_special
from bpe.pretokenize import Pattern, blocks, repair_surrogates, split_special
from bpe.workers import sensible_workers

BLOCK = 1 << 17  # characters that are encoded at once: few enough to stay in the processor's cache
WORTH_ARRAYS = 1 << 10  # characters from which the table of pieces is faster than a dictionary
CACHED_PIECES = 1 << 16  # pieces in one generation of the cache; there are two
LONGEST_CACHED = 128  # characters
WORTH_A_WORKER = 64_000_000  # characters: one process encodes them before another has warmed up
AllowedSpecial = Collection[str]  # "all", or the special tokens that are to be recognised


class Tokenizer:
    """A byte-level BPE tokenizer.

    `merges` are pairs of byte strings, first learnt first. By default ids 0..255 are the bytes, then come
    the merges, then the special tokens; `vocab` (id -> bytes, without special tokens) gives other ids.
    `special_tokens` are names, or names with their ids. `pattern` is gpt2, cl100k, o200k or a regular
    expression. Anything inconsistent is a ValueError.

    >>> tokenizer = Tokenizer([(b"h", b"i"), (b" ", b"hi")], special_tokens=["<end>"])
    >>> tokenizer.encode("hi hi<end>"), tokenizer.encode("hi hi<end>", allowed_special="all")
    ([256, 257, 60, 101, 110, 100, 62], [256, 257, 258])
    >>> tokenizer.decode([256, 257, 258])
    'hi hi<end>'
    """

    def __init__(
        self,
        merges: Iterable[Merge],
        special_tokens: Mapping[str, int] | Sequence[str] = (),
        pattern: str | Pattern = "gpt2",
        *,
        vocab: Mapping[int, bytes] | None = None,
    ) -> None:
        self.merges: list[Merge] = [(bytes(left), bytes(right)) for left, right in merges]
        self.pattern = Pattern.of(pattern)
        if vocab is None:
            vocab = dict(enumerate([bytes([byte]) for byte in range(256)] + [a + b for a, b in self.merges]))
        if not isinstance(special_tokens, Mapping):
            check_names(special_tokens)
            special_tokens = {token: len(vocab) + index for index, token in enumerate(special_tokens)}
        self.special_tokens: dict[str, int] = dict(special_tokens)
        self._ids = _checked_ids(vocab, self.special_tokens)
        self._ranks, self._made = _merge_table(self.merges, self._ids)
        self._byte_ids = [self._ids[bytes([byte])] for byte in range(256)]
        tokens = {**vocab, **{id: token.encode() for token, id in self.special_tokens.items()}}
        self.vocab: dict[int, bytes] = dict(sorted(tokens.items()))
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)
        self._pretokens = _Cache(self._encode_pretoken)
        self._pieces = _Cache(self._encode_piece)
        self._table = PieceTable(self.dtype)
        self._batches: BatchEncoder | None = None

    @property
    def vocab_size(self) -> int:
        """The greatest id plus one: the number of rows an embedding needs."""
        return next(reversed(self.vocab)) + 1

    def __repr__(self) -> str:
        special = ", ".join(self.special_tokens) or "none"
        name = self.pattern.name or "own"
        return f"Tokenizer({self.vocab_size} ids, pattern {name}, special tokens: {special})"

    def __reduce__(self) -> tuple:
        """Workers get the tokenizer without its cache."""
        ordinary = {id: token for token, id in self._ids.items()}
        make = functools.partial(Tokenizer, vocab=ordinary)
        return make, (self.merges, self.special_tokens, self.pattern)

    # Encoding

    def encode(self, text: str, allowed_special: AllowedSpecial = ()) -> list[int]:
        """The ids of `text`. Special tokens are ordinary text unless allowed, by name or with "all".

        A surrogate pair is read as its character, a lone surrogate as U+FFFD. Raises a ValueError for an allowed
        special token that this tokenizer does not have.
        """
        return self.encode_to_numpy(text, allowed_special).tolist()

    def encode_to_numpy(self, text: str, allowed_special: AllowedSpecial = ()) -> np.ndarray:
        """The ids of `text` as an array (n,) of uint16 where the vocabulary fits, else uint32."""
        special_tokens = self._allowed(allowed_special)
        packed = bytearray()
        for block in blocks([text], special_tokens, BLOCK) if self.pattern.name else [text]:
            packed += self._encode_block(block, special_tokens)
        return np.frombuffer(packed, self.dtype)

    def encode_iterable(self, chunks: Iterable[str], allowed_special: AllowedSpecial = ()) -> Iterator[int]:
        """The ids of the joined chunks, as they come, in constant memory.

        Text is held back until a place where no token can cross: a space, or a single line break. With a
        pattern of one's own no such place is known, and the text is held to its end.
        """
        special_tokens = self._allowed(allowed_special)
        held = blocks(chunks, special_tokens, BLOCK) if self.pattern.name else ["".join(chunks)]
        for block in held:
            yield from np.frombuffer(self._encode_block(block, special_tokens), self.dtype).tolist()

    def encode_batch(
        self, texts: Iterable[str], num_workers: int | None = None, allowed_special: AllowedSpecial = ()
    ) -> list[list[int]]:
        """`encode` of each text, in order; over several processes where there is enough text."""
        return [ids.tolist() for ids in self.encode_batch_to_numpy(texts, num_workers, allowed_special)]

    def encode_batch_to_numpy(
        self, texts: Iterable[str], num_workers: int | None = None, allowed_special: AllowedSpecial = ()
    ) -> Iterator[np.ndarray]:
        """`encode_to_numpy` of each text, in order; the texts are drawn as they are needed.

        Worker processes stay ready for the next call as long as this tokenizer is there.
        """
        special_tokens = self._allowed(allowed_special)
        size = sum(map(len, texts)) if isinstance(texts, Sequence) else None
        workers = sensible_workers(num_workers, size, WORTH_A_WORKER)
        if workers == 1:
            yield from (self.encode_to_numpy(text, special_tokens) for text in texts)
            return
        batches = self._batches
        if not batches or (batches.num_workers, batches.pool.owner) != (workers, os.getpid()):
            batches = self._batches = BatchEncoder(self, workers)
        yield from batches.encode(self, texts, special_tokens)

    def _allowed(self, allowed_special: AllowedSpecial) -> tuple[str, ...]:
        if allowed_special == "all":
            return tuple(self.special_tokens)
        if isinstance(allowed_special, str):
            allowed_special = (allowed_special,)
        if unknown := [token for token in allowed_special if token not in self.special_tokens]:
            known = ", ".join(map(repr, self.special_tokens)) or "none"
            raise ValueError(f"{unknown[0]!r} is no special token of this tokenizer, which has {known}")
        return tuple(allowed_special)

    def _encode_block(self, text: str, special_tokens: Sequence[str]) -> bytes:
        """Packed ids of a block of text."""
        present = tuple(token for token in special_tokens if token in text)
        if present and self.pattern.name and len(text) >= WORTH_ARRAYS:
            with contextlib.suppress(UnicodeEncodeError):
                return self._encode_long(text, present)
        packed = bytearray()
        for index, part in enumerate(split_special(text, present)):
            if index % 2:
                packed += self._pack([self.special_tokens[part]])
                continue
            try:
                packed += self._encode_ordinary(part)
            except UnicodeEncodeError:
                packed += self._encode_ordinary(repair_surrogates(part))
        return bytes(packed)

    def _encode_ordinary(self, text: str) -> bytes:
        """Packed ids of a text without special tokens."""
        if self.pattern.name is None:
            return self._join(self.pattern.split(text))
        return self._encode_short(text) if len(text) < WORTH_ARRAYS else self._encode_long(text)

    def _encode_short(self, text: str) -> bytes:
        """One look-up in a dictionary per piece."""
        first, *rest = self.pattern.pieces(text)
        if not rest:
            return self._join(self.pattern.split(first))
        last = rest.pop()
        head = self._join(self.pattern.split_inner(first))
        tail = self._join(self.pattern.split(" " + last))
        return b"".join((head, *map(self._pieces.__getitem__, rest), tail))

    def _encode_long(self, text: str, special_tokens: Sequence[str] = ()) -> bytes:
        """All pieces at once, from the table; `special_tokens` are those that are there."""
        encoded = text.encode()
        data = np.frombuffer(encoded + PADDING, np.uint8)
        cuts, encode, special = find_cuts(data), self._pieces.__getitem__, np.array([], np.int64)
        if special_tokens:
            cuts, special = spare_special(encoded, cuts, special_tokens)
            encode = functools.partial(self._encode_special_piece, special_tokens)
        if not cuts.size:
            return self._encode_uncut(text, special_tokens, self.pattern.split)
        head = encoded[: cuts[0]].decode()
        tail = encoded[cuts[-1] :].decode()
        inner = special[(special >= 0) & (special < len(cuts) - 1)]
        return (
            self._encode_uncut(head, special_tokens, self.pattern.split_inner)
            + self._table.encode_pieces(encoded, data, cuts, encode, inner)
            + self._encode_uncut(tail, special_tokens, self.pattern.split)
        )

    def _encode_uncut(
        self, text: str, special_tokens: Sequence[str], split: Callable[[str], list[str]]
    ) -> bytes:
        """A text between two cuts. It ends at each special token; `split` is for what follows the last one."""
        *before, last = split_special(text, special_tokens)
        parts: list[bytes] = []
        for ordinary, special in zip(before[::2], before[1::2], strict=True):
            parts.append(self._join(self.pattern.split(ordinary)))
            parts.append(self._pack([self.special_tokens[special]]))
        return b"".join((*parts, self._join(split(last))))

    def _encode_special_piece(self, special_tokens: Sequence[str], piece: str) -> bytes:
        """As `_encode_piece`, for a piece that may hold special tokens."""
        if any(token in piece for token in special_tokens):
            return self._encode_uncut(" " + piece, special_tokens, self.pattern.split_inner)
        return self._pieces[piece]

    def _encode_piece(self, piece: str) -> bytes:
        """A piece from the middle of a text, which has lost its leading space."""
        return self._join(self.pattern.split_inner(" " + piece))

    def _join(self, pretokens: Iterable[str]) -> bytes:
        return b"".join(map(self._pretokens.__getitem__, pretokens))

    def _encode_pretoken(self, pretoken: str) -> bytes:
        ids = [self._byte_ids[byte] for byte in pretoken.encode()]
        return self._pack(merge(ids, self._ranks, self._made))

    def _pack(self, ids: Sequence[int]) -> bytes:
        return array.array("H" if self.dtype == np.uint16 else "I", ids).tobytes()

    # Decoding

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for. An id that is not in the vocabulary is a ValueError."""
        ids = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        try:
            return b"".join(map(self.vocab.__getitem__, ids))
        except KeyError as error:
            place = ids.index(error.args[0])
            raise ValueError(
                f"id {error.args[0]!r} at position {place} is not in the vocabulary "
                f"(ids 0..{self.vocab_size - 1})"
            ) from None

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text that the ids stand for; `errors` as in bytes.decode, for bytes that are no UTF-8."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_stream(self, ids: Iterable[int], errors: str = "replace") -> Iterator[str]:
        """The text piece by piece as the ids come; a character is given out when its last byte is there."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors)
        for id in ids:
            if text := decoder.decode(self.decode_bytes([id])):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    # Files: see formats.py

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes Hugging Face's tokenizer.json."""
        from bpe import formats

        formats.save_json(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Reads Hugging Face's tokenizer.json of a byte-level BPE; a ValueError names what cannot be done alike."""
        from bpe import formats

        return formats.load_json(Path(path))

    @classmethod
    def gpt2(cls, directory: str | os.PathLike[str] | None = None) -> "Tokenizer":
        """GPT-2's own tokenizer, from `directory` or from where gpt2.py finds it; else a FileNotFoundError."""
        from bpe.gpt2 import find

        vocab_json, merges_txt = find(directory)
        return cls.from_gpt2(vocab_json, merges_txt)

    @classmethod
    def from_gpt2(cls, vocab_json: str | os.PathLike[str], merges_txt: str | os.PathLike[str]) -> "Tokenizer":
        """Reads GPT-2's two files, vocab.json (encoder.json) and merges.txt (vocab.bpe)."""
        from bpe import formats

        return formats.load_gpt2(Path(vocab_json), Path(merges_txt))

    def save_gpt2(self, directory: str | os.PathLike[str]) -> None:
        """Writes vocab.json and merges.txt into `directory`."""
        from bpe import formats

        formats.save_gpt2(self, Path(directory))

    @classmethod
    def from_tiktoken(
        cls,
        path: str | os.PathLike[str],
        pattern: str | Pattern = "gpt2",
        special_tokens: Mapping[str, int] | Sequence[str] = (),
    ) -> "Tokenizer":
        """Reads a tiktoken rank file, which holds neither the pattern nor the special tokens."""
        from bpe import formats

        return formats.load_tiktoken(Path(path), pattern, special_tokens)

    def save_tiktoken(self, path: str | os.PathLike[str]) -> None:
        """Writes a tiktoken rank file; the pattern and the special tokens have no place in it."""
        from bpe import formats

        formats.save_tiktoken(self, Path(path))


class _Cache(dict[str, bytes]):
    """Remembers what `encode` gave, in two generations: memory is bounded and what is in use stays."""

    def __init__(self, encode) -> None:
        self.encode = encode
        self.older: dict[str, bytes] = {}

    def __missing__(self, key: str) -> bytes:
        value = self.older.get(key)
        if value is None:
            value = self.encode(key)
        if len(key) <= LONGEST_CACHED:
            if len(self) >= CACHED_PIECES:
                self.older = dict(self)
                self.clear()
            self[key] = value
        return value


def check_names(special_tokens: Sequence[str]) -> None:
    """Refuses what is no list of different names."""
    if isinstance(special_tokens, str):
        raise ValueError(f"special_tokens is the string {special_tokens!r}: give a list or a tuple of names")
    if len(set(special_tokens)) < len(special_tokens):
        raise ValueError(f"special_tokens holds a name twice: {list(special_tokens)}")


def _checked_ids(vocab: Mapping[int, bytes], special_tokens: Mapping[str, int]) -> dict[bytes, int]:
    """bytes -> id of the ordinary tokens, after all that can be wrong with ids was looked for."""
    ids = {token: id for id, token in vocab.items()}
    if len(ids) < len(vocab):
        twice = next(token for id, token in vocab.items() if ids[token] != id)
        raise ValueError(f"the token {twice!r} has two ids in the vocabulary")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ids]:
        raise ValueError(
            f"the vocabulary has no token for the byte 0x{missing[0]:02x} ({len(missing)} of 256 lack one), "
            "but a byte-level BPE needs all of them"
        )
    seen = set(vocab)
    for token, id in special_tokens.items():
        if not token:
            raise ValueError("a special token is the empty string: give it a name")
        if id in seen:
            raise ValueError(f"the special token {token!r} has the id {id}, which another token has too")
        seen.add(id)
    if min(seen) < 0 or max(seen) >= 1 << 32:
        raise ValueError(f"ids run from {min(seen)} to {max(seen)}: they must lie in 0..2**32-1")
    if gaps := set(range(max(vocab))) - seen:
        raise ValueError(f"no token has the id {min(gaps)}: the vocabulary has a gap")
    return ids


def _merge_table(merges: Sequence[Merge], ids: Mapping[bytes, int]) -> tuple[dict[Pair, int], list[int]]:
    """(left id, right id) -> rank, and rank -> id of what the merge makes."""
    ranks: dict[Pair, int] = {}
    made: list[int] = []
    for rank, (left, right) in enumerate(merges):
        for part in (left, right, left + right):
            if part not in ids:
                raise ValueError(
                    f"merge {rank} ({left!r} + {right!r}) needs the token {part!r}, which does not exist"
                )
        ranks[ids[left], ids[right]] = rank
        made.append(ids[left + right])
    if len(ranks) < len(merges):
        raise ValueError(f"{len(merges) - len(ranks)} of the {len(merges)} merges stand there twice")
    if orphans := {id for token, id in ids.items() if len(token) > 1}.difference(made):
        orphan = next(token for token, id in ids.items() if id in orphans)
        raise ValueError(f"no merge makes the token {orphan!r} (id {ids[orphan]})")
    return ranks, made
