"""Split a stream of text into documents.

    separator   at a marker, <|endoftext|> by default
    line        at every line break
    break       at a single line break; blank lines separate the paragraphs of one document
    whole       a file is one document
    auto        separator if the marker occurs, else break if single line breaks occur and are 300 bytes or more
                apart on average, else whole: decided on the first megabyte

Works on UTF-8 bytes, block by block, so that a file may be larger than memory.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from bpe import END_OF_TEXT

MODES = ("auto", "separator", "line", "break", "whole")
LONGEST = 1 << 20  # bytes; a longer document is encoded in segments, to bound the memory of a worker
PASSAGE = 1 << 14  # bytes; passages of a whole file, each of which goes to one split
SHORT = 300  # bytes; single line breaks closer than this, on average, are not the ends of documents
LONE_BREAK = re.compile(rb"(?<=[^\n])\n(?=[^\n])")


class Segment(NamedTuple):
    """A document, or a part of a long one: the last part `ends` it; `key` decides the split."""

    text: bytes  # UTF-8
    key: int | None = None  # None: the hash of the text itself
    ends: bool = True
    first: bool = True
    validation: bool = False  # it comes from the source of validation documents
    fault: str = ""  # why the document cannot be used


def text_hash(text: bytes) -> int:
    """Return 64 bits of BLAKE2b, which decide the split of a document and identify duplicates."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def choose(sample: bytes, separator: str) -> str:
    """Return the mode that auto selects, given the first megabyte of a text.

    >>> choose(b"One.<|endoftext|>Two.", "<|endoftext|>"), choose(b"First Citizen:\\nSpeak, speak.\\n", "")
    ('separator', 'whole')
    """
    if separator and separator.encode() in sample:
        return "separator"
    breaks = len(LONE_BREAK.findall(sample))
    return "break" if breaks and len(sample) / (breaks + 1) >= SHORT else "whole"


@dataclasses.dataclass(frozen=True)
class Splitter:
    """Splits the blocks of one text into documents; blank ones are dropped."""

    mode: str
    separator: str = END_OF_TEXT

    def __post_init__(self) -> None:
        if self.mode not in MODES[1:]:
            raise ValueError(f"documents end at {', '.join(MODES[1:])}, not {self.mode!r}")
        if self.mode == "separator" and not self.separator:
            raise ValueError(
                "--separator is empty: give the text between documents, or --split-documents line"
            )

    def _cut(self, text: bytes) -> list[bytes]:
        """Return the finished documents in `text` and, last, the unfinished one."""
        if self.mode == "whole":
            return [text]
        if self.mode == "break":
            return LONE_BREAK.split(text)
        return text.split(b"\n" if self.mode == "line" else self.separator.encode())

    def documents(self, blocks: Iterable[bytes]) -> Iterator[Segment]:
        """Yield the documents of one text that arrives in blocks of any size.

        >>> [segment.text for segment in Splitter("line").documents([b"One.\\nTwo.\\n", b"Three."])]
        [b'One.', b'Two.', b'Three.']
        """
        rest, key, first = b"", None, True
        for block in blocks:
            *finished, rest = self._cut(rest + block)
            for text in finished:
                yield from self._segments(text.rstrip(), key, first)
                key, first = None, True
            if len(rest) > 2 * self._limit:
                body = self._certain(rest)
                if not body and first:
                    rest = rest.lstrip()
                if body:
                    *early, last = self._segments(body, key, first)
                    yield from early
                    rest, key, first = last.text + rest[len(body) :], last.key, last.first
        yield from self._segments(rest.rstrip(), key, first)

    def _certain(self, text: bytes) -> bytes:
        """Return the start of an unfinished document without what may yet be dropped: final space, half a separator."""
        if self.mode == "separator":
            text = text[: len(text) + 1 - len(self.separator.encode())]
        return text.rstrip()

    @property
    def _limit(self) -> int:
        return PASSAGE if self.mode == "whole" else LONGEST

    def _segments(self, text: bytes, key: int | None, first: bool) -> list[Segment]:
        if first and not (text := text.lstrip()):
            return []
        return split_long(text, self._limit, key, first, same_split=self.mode != "whole")


class SeparatorCount:
    """Counts how often a separator occurs in blocks that pass through."""

    def __init__(self, separator: str) -> None:
        self.found = 0
        self._separator = separator.encode()

    def of(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the blocks.

        >>> count = SeparatorCount("<->")
        >>> list(count.of([b"a<->b<", b"->c"])), count.found
        ([b'a<->b<', b'->c'], 2)
        """
        tail = b""
        for block in blocks:
            text = tail + block
            self.found += text.count(self._separator) if self._separator else 0
            tail = text[len(text) + 1 - len(self._separator) :] if len(self._separator) > 1 else b""
            yield block


def split_long(
    text: bytes, limit: int = LONGEST, key: int | None = None, first: bool = True, same_split: bool = True
) -> list[Segment]:
    """Return a document in segments of at most `limit` bytes.

    They are cut before white space, where GPT-2's pattern splits too: encoded separately they give the same ids.
    The patterns cl100k and o200k keep line breaks with the punctuation before them: there a cut costs an id or two.
    """
    if len(text) <= limit:
        return [Segment(text, key, True, first)]
    texts, start = [], 0
    while len(text) - start > limit:
        end = _cut_before(text, start, start + limit)
        texts.append(text[start:end])
        start = end
    texts.append(text[start:])
    if same_split and key is None:
        key = text_hash(texts[0])
    last = len(texts) - 1
    return [Segment(text, key, i == last, first and i == 0) for i, text in enumerate(texts)]


def _cut_before(text: bytes, start: int, end: int) -> int:
    """Return the last place in (start, end] before a line break, else before a space, else between characters."""
    window = text[start:end].decode(errors="surrogateescape")  # its last character may be incomplete
    for mark in "\n ":
        if before := window.rpartition(mark)[0].rstrip():
            return start + len(before.encode(errors="surrogateescape"))
    while end > start + 1 and text[end] & 0xC0 == 0x80:  # a UTF-8 continuation byte
        end -= 1
    return end
