"""Text to token ids and back, by the merges of a trained byte-level BPE.

`encode` and `decode` of basics/bpe.py, made exact for special tokens, long texts and streams, and fast: a dictionary
maps a piece of text (a word with its leading space and what follows it up to the next one) to its ids, so that
common text costs one look-up per piece; in a long text all pieces are looked up at once (piecetable.py). Training is
in trainer.py, files are in formats.py.
"""

import array
import codecs
import functools
import itertools
import operator
import os
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from bpe import formats, gpt2
from bpe.merging import MANY, SHORT, BatchMerger, merge
from bpe.piecetable import Pieces, PieceTable, Spans
from bpe.pretokenize import Pattern, blocks, cut_pieces, repair_surrogates, split_special
from bpe.vocabulary import Vocabulary

BLOCK = 1 << 17  # characters that are encoded at once: few enough to stay in the processor's cache
WORTH_ARRAYS = 1 << 10  # characters from which the table of pieces is faster than a dictionary
WORTH_SHARED_INTS = 1 << 10  # ids from which a list takes its integers from a table
FEW_UNKNOWN = 0.03  # share of the pieces that are rather looked up one by one than put into the table
CACHED_PIECES = 1 << 16  # pieces in one generation of the cache; there are two
LONGEST_CACHED = 128  # characters
WORTH_A_WORKER = 64_000_000  # characters: one process encodes them before another has warmed up
AllowedSpecial = Collection[str]  # "all", or the special tokens that are to be recognised


class Tokenizer(Vocabulary):
    """A byte-level BPE tokenizer. Vocabulary describes the arguments.

    >>> tokenizer = Tokenizer([(b"h", b"i"), (b" ", b"hi")], special_tokens=["<end>"])
    >>> tokenizer.encode("hi hi<end>"), tokenizer.encode("hi hi<end>", allowed_special="all")
    ([256, 257, 60, 101, 110, 100, 62], [256, 257, 258])
    >>> tokenizer.decode([256, 257, 258])
    'hi hi<end>'
    """

    @functools.wraps(Vocabulary.__init__)
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._byte_ids = [self._ids.get(bytes([byte]), -1) for byte in range(256)]
        self._merger = BatchMerger(self._ranks, self._made, self._byte_ids, self.dtype)
        self._pretokens, self._pieces = _Cache(), _Cache()
        self._table, self._words = PieceTable(self.dtype), PieceTable(self.dtype)
        self._learn_whole_tokens()
        self._batches = None

    # Encoding

    def encode(self, text: str, allowed_special: AllowedSpecial = ()) -> list[int]:
        """Return the ids of `text`. Special tokens are ordinary text unless allowed, by name or with "all".

        A surrogate pair is read as its character, a lone surrogate as U+FFFD. Raises a ValueError for an allowed
        special token that this tokenizer does not have.
        """
        return self._list(self.encode_to_numpy(text, allowed_special))

    def encode_to_numpy(self, text: str, allowed_special: AllowedSpecial = ()) -> np.ndarray:
        """Return the ids of `text` as an array (n,) of uint16 if the vocabulary fits, else uint32."""
        packed = bytearray()
        for block, tokens in self._blocks([text], self._matched(self._allowed(allowed_special))):
            packed += self._encode_block(block, tokens)
        return np.frombuffer(packed, self.dtype)

    def encode_iterable(self, chunks: Iterable[str], allowed_special: AllowedSpecial = ()) -> Iterator[int]:
        """Yield the ids of the joined chunks, as they come, in constant memory.

        Text is held back until a place that no token can cross: a space, or a single line break. With a
        regular expression of your own no such place is known, and the text is held to its end.
        """
        for block, tokens in self._blocks(chunks, self._matched(self._allowed(allowed_special))):
            yield from np.frombuffer(self._encode_block(block, tokens), self.dtype).tolist()

    def encode_batch(
        self, texts: Iterable[str], num_workers: int | None = None, allowed_special: AllowedSpecial = ()
    ) -> list[list[int]]:
        """Return `encode` of each text, in order; over several processes if there is enough text."""
        return [self._list(ids) for ids in self.encode_batch_to_numpy(texts, num_workers, allowed_special)]

    def encode_batch_to_numpy(
        self, texts: Iterable[str], num_workers: int | None = None, allowed_special: AllowedSpecial = ()
    ) -> Iterator[np.ndarray]:
        """Yield `encode_to_numpy` of each text, in order; the texts are drawn as they are needed.

        Worker processes stay ready for the next call until this tokenizer is deleted.
        """
        from bpe.batches import BatchEncoder
        from common.workers import sensible_workers

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
            raise ValueError(f"{unknown[0]!r} is not a special token of this tokenizer: it has {known}")
        return tuple(allowed_special)

    def _blocks(
        self, texts: Iterable[str], tokens: Mapping[str, int]
    ) -> Iterator[tuple[str, Mapping[str, int]]]:
        """Yield blocks of the joined texts that can be encoded apart, each with the tokens to look for in it."""
        found = blocks(texts, tuple(tokens), BLOCK) if self.pattern.name else ["".join(texts)]
        if not (self.nfc or self.normalized):
            yield from ((block, tokens) for block in found)
            return
        late = {unicodedata.normalize("NFC", name) if self.nfc else name for name in self.normalized}
        first = {name: id for name, id in tokens.items() if name not in late}
        second = {name: id for name, id in tokens.items() if name in late}
        for block in map(repair_surrogates, found):
            for index, part in enumerate(split_special(block, first)):
                if index % 2:
                    yield part, first
                else:
                    yield unicodedata.normalize("NFC", part) if self.nfc else part, second

    def _encode_block(self, text: str, tokens: Mapping[str, int]) -> bytes:
        """Return the packed ids of a block of text, in which `tokens` are recognised."""
        present = {token: id for token, id in tokens.items() if token in text}
        try:
            if self.pattern.name and len(text) >= WORTH_ARRAYS:
                return self._encode_long(text, present)
            if not present:
                return self._encode_short(text)
            parts = enumerate(split_special(text, present))
            return b"".join([self._pack([present[p]]) if i % 2 else self._encode_short(p) for i, p in parts])
        except UnicodeEncodeError:
            return self._encode_block(repair_surrogates(text), tokens)

    def _encode_short(self, text: str) -> bytes:
        """Return the packed ids of a text without special tokens, by one look-up in a dictionary per piece."""
        first, *inner = cut_pieces(text) if self.pattern.name else [text]
        if not inner:
            return b"".join(self._encode_pretokens(self.pattern.split(text)))
        last = inner.pop()
        head = self._encode_pretokens(self.pattern.split_inner(first))
        values = list(map(self._pieces.get, inner))
        for place, piece in enumerate(inner):
            if values[place] is None:
                pretokens = self.pattern.split_inner(" " + piece)
                values[place] = self._pieces.older.get(piece) or b"".join(self._encode_pretokens(pretokens))
                self._pieces.remember({piece: values[place]})
        return b"".join((*head, *values, *self._encode_pretokens(self.pattern.split(" " + last))))

    def _encode_long(self, text: str, tokens: Mapping[str, int]) -> bytes:
        """Return the packed ids of a text, all pieces at once; `tokens` are those that are in it."""
        pieces = Pieces(text.encode(), tuple(tokens))
        if not pieces.cuts.size:
            return self._encode_uncut(text, tokens, self._encode_whole)
        unknown = self._table.look_up(pieces)
        if len(unknown) > FEW_UNKNOWN * len(pieces.cuts):
            self._learn(pieces, *pieces.worth_learning(unknown))
            unknown = self._table.look_up(pieces, unknown)
        ids, places = pieces.packed(unknown)
        names = pieces.names(unknown)
        values = [
            None if i in pieces.special else self._pieces.get(name)
            for i, name in zip(unknown.tolist(), names, strict=True)
        ]
        for index, name in enumerate(names):
            if values[index] is None:
                values[index] = self._encode_uncut(" " + name, tokens, self._encode_inner)
        head = self._encode_uncut(pieces.head, tokens, self._encode_inner)
        tail = self._encode_uncut(pieces.tail, tokens, self._encode_whole)
        return b"".join((head, *_interleaved(ids, places, values), tail))

    def _learn_whole_tokens(self) -> None:
        """Put the tokens that need no merging as pre-tokens into the table of pre-tokens."""
        ids = np.array([*self._ids.values()]) if self.ignore_merges else self._merger.whole_tokens()
        tokens = [self.vocab[id] for id in ids.tolist()]
        spans = Spans.adjacent(b"".join(tokens), map(len, tokens))
        first = spans.distinct(np.arange(len(ids)))
        self._words.store(
            spans, first, ids[first].astype(self.dtype).tobytes(), np.ones(len(first), np.int64)
        )

    def _learn(self, pieces: Pieces, new: np.ndarray, n_ascii: int) -> None:
        """Put the pieces `new` into the table; the first `n_ascii` of them are ASCII."""
        text, ends = pieces.joined(new)
        border = ends[n_ascii - 1] if n_ascii else 0
        ascii_pretokens = self.pattern.split_inner(text[:border].decode())
        others = map(str.encode, self.pattern.split_inner(text[border:].decode()))
        pretokens = Spans.adjacent(text, map(len, itertools.chain(ascii_pretokens, others)))
        unknown = self._words.look_up(pretokens)
        if unknown.size:
            first = pretokens.distinct(unknown)
            self._words.store(pretokens, first, *self._joined(self._encode_pretokens(pretokens.names(first))))
            unknown = self._words.look_up(pretokens, unknown)
        values = self._encode_pretokens(pretokens.names(unknown))
        packed = b"".join(_interleaved(*pretokens.packed(unknown), values))
        counts = pretokens.counts.astype(np.int64)
        _, counts[unknown] = self._joined(values)
        counts = np.diff(np.cumsum(counts)[np.searchsorted(pretokens.ends, ends)], prepend=0)  # of each piece
        self._pieces.remember(self._table.store(pieces, new, packed, counts))

    def _joined(self, values: Sequence[bytes]) -> tuple[bytes, np.ndarray]:
        """Return packed ids one after another, and how many each value has (n,)."""
        return b"".join(values), np.fromiter(map(len, values), np.int64, len(values)) // self.dtype.itemsize

    def _encode_uncut(self, text: str, tokens: Mapping[str, int], encode: Callable[[str], bytes]) -> bytes:
        """Return the packed ids of a text that ends at each of the `tokens`; `encode` is for the rest of it."""
        if not any(token in text for token in tokens):
            return encode(text)
        *before, last = split_special(text, tokens)
        packed = bytearray()
        for ordinary, token in zip(before[::2], before[1::2], strict=True):
            packed += self._encode_whole(ordinary) + self._pack([tokens[token]])
        return bytes(packed) + encode(last)

    def _encode_whole(self, text: str) -> bytes:
        """Return the packed ids of a text with its end, without looking for pieces."""
        return b"".join(self._encode_pretokens(self.pattern.split(text)))

    def _encode_inner(self, piece: str) -> bytes:
        """Return the packed ids of one piece from before the last cut, with its space if it has one."""
        key = piece[1:] if piece.startswith(" ") else None
        value = self._pieces.get(key) or self._pieces.older.get(key)
        if value is None:
            value = b"".join(self._encode_pretokens(self.pattern.split_inner(piece)))
            if key is not None:
                self._pieces.remember({key: value})
        return value

    def _encode_pretokens(self, pretokens: Sequence[str]) -> list[bytes]:
        """Return the packed ids of each pre-token; new ones are merged, many of them at once."""
        values = list(map(self._pretokens.get, pretokens))
        if all(values):
            return values
        # From the values, as another thread may change the cache at any time.
        new = list(dict.fromkeys(itertools.compress(pretokens, map(operator.not_, values))))
        found: dict[str, bytes] = {}
        if self._pretokens.older or self.ignore_merges:
            found = {pretoken: known for pretoken in new if (known := self._known(pretoken))}
            new = [pretoken for pretoken in new if pretoken not in found]
        data = [pretoken.encode() for pretoken in new]
        if len(new) >= MANY and max(map(len, data)) <= SHORT:
            found.update(zip(new, self._merger.merge(data), strict=True))
        else:
            for pretoken, byte_string in zip(new, data, strict=True):
                ids = [self._byte_ids[byte] for byte in byte_string]
                found[pretoken] = self._pack(merge(ids, self._ranks, self._made))
        self._pretokens.remember(found)
        return list(map(found.get, pretokens, values))

    def _known(self, pretoken: str) -> bytes | None:
        """Return the packed ids of a pre-token that needs no merging."""
        if self.ignore_merges and (id := self._ids.get(pretoken.encode())) is not None:
            return self._pack([id])
        return self._pretokens.older.get(pretoken)

    def _pack(self, ids: Sequence[int]) -> bytes:
        return array.array("H" if self.dtype == np.uint16 else "I", ids).tobytes()

    def _list(self, ids: np.ndarray) -> list[int]:
        """Return the ids as a list; in a long one equal ids are one object, which is faster to make and smaller."""
        if len(ids) < WORTH_SHARED_INTS or self.vocab_size > 1 << 20:
            return ids.tolist()
        return self._integers.take(ids).tolist()

    @functools.cached_property
    def _integers(self) -> np.ndarray:
        """Return the integers (vocab_size,) as Python objects."""
        return np.arange(self.vocab_size).astype(object)

    # Decoding

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of the ids, given as integers, an array or a tensor (n,).

        An id that is not in the vocabulary is a ValueError.
        """
        ids = _listed(ids)
        try:
            return b"".join(map(self.vocab.__getitem__, ids))
        except KeyError as error:
            place = ids.index(error.args[0])
            raise ValueError(
                f"id {error.args[0]!r} at position {place} is not in the vocabulary "
                f"(ids 0..{self.vocab_size - 1})"
            ) from None

    def decode(
        self, ids: Iterable[int], errors: str = "replace", *, skip_special_tokens: bool = False
    ) -> str:
        """Return the text of the ids; `errors` as in bytes.decode, for bytes that are not UTF-8."""
        if skip_special_tokens:
            special = set(self.special_tokens.values())
            ids = [id for id in _listed(ids) if id not in special]
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_stream(self, ids: Iterable[int], errors: str = "replace") -> Iterator[str]:
        """Yield the text piece by piece as the ids come; a character is yielded when its last byte is there."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors)
        for id in _listed(ids) if hasattr(ids, "tolist") else ids:
            if text := decoder.decode(self.decode_bytes([id])):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    # Files: see formats.py

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write Hugging Face's tokenizer.json."""
        formats.save_json(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Read Hugging Face's tokenizer.json of a byte-level BPE, or that of a folder.

        A ValueError names what this tokenizer cannot do in the same way.
        """
        return formats.load_json(cls, formats.json_path(path))

    @classmethod
    def gpt2(cls, directory: str | os.PathLike[str] | None = None) -> "Tokenizer":
        """Return GPT-2's own tokenizer, from `directory` or from where gpt2.py finds it."""
        return cls.from_gpt2(*gpt2.find(directory))

    @classmethod
    def from_gpt2(
        cls,
        vocab_json: str | os.PathLike[str],
        merges_txt: str | os.PathLike[str],
        pattern: str | Pattern | None = None,
        special_tokens: Sequence[str] = (),
    ) -> "Tokenizer":
        """Read the two files of GPT-2, vocab.json (encoder.json) and merges.txt (vocab.bpe).

        The pattern is the one that `save_gpt2` noted in merges.txt, else GPT-2's. A token that no merge makes is a
        special token if it looks like one (<…> or […]) or is named in `special_tokens`; else it is a ValueError.
        """
        return formats.load_gpt2(cls, Path(vocab_json), Path(merges_txt), pattern, special_tokens)

    def save_gpt2(self, directory: str | os.PathLike[str]) -> None:
        """Write vocab.json and merges.txt into `directory`; `from_gpt2` finds a pattern other than GPT-2's again."""
        formats.save_gpt2(self, Path(directory))

    @classmethod
    def from_tiktoken(
        cls,
        path: str | os.PathLike[str],
        pattern: str | Pattern = "gpt2",
        special_tokens: Mapping[str, int] | Sequence[str] = (),
    ) -> "Tokenizer":
        """Read a tiktoken rank file, which holds neither the pattern nor the special tokens."""
        return formats.load_tiktoken(cls, Path(path), pattern, special_tokens)

    def save_tiktoken(self, path: str | os.PathLike[str]) -> None:
        """Write a tiktoken rank file; the pattern and the special tokens have no place in it."""
        formats.save_tiktoken(self, Path(path))


class _Cache(dict[str, bytes]):
    """Packed ids by text, in two generations: memory is bounded and what is in use stays."""

    def __init__(self) -> None:
        self.older: dict[str, bytes] = {}

    def remember(self, values: Mapping[str, bytes]) -> None:
        """Keep the values of texts that are not long; a full generation becomes the older one."""
        if len(self) + len(values) > CACHED_PIECES:
            self.older = dict(self)
            self.clear()
        if max(map(len, values), default=0) > LONGEST_CACHED or len(values) > CACHED_PIECES:
            short = ((key, value) for key, value in values.items() if len(key) <= LONGEST_CACHED)
            values = dict(itertools.islice(short, CACHED_PIECES))
        self.update(values)


def _listed(ids: Iterable[int]) -> list[int]:
    """Return the ids of any iterable, array or tensor (n,) as a list."""
    ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    if not isinstance(ids, list) or (ids and isinstance(ids[0], list)):
        raise ValueError("ids must have one dimension: decode the rows of a batch one by one")
    return ids


def _interleaved(packed: bytes, places: np.ndarray, values: Sequence[bytes]) -> Iterator[bytes]:
    """Yield `packed` with each value put in at its place."""
    start = 0
    for place, value in zip(places.tolist(), values, strict=True):
        yield packed[start:place]
        yield value
        start = place
    yield packed[start:]
