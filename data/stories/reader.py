"""Splits a story into sentences and words, and knows which of them are spoken aloud. Judges nothing."""

import dataclasses
import itertools
import re

TOKEN = re.compile(r"[A-Za-z]+(?:[-'][A-Za-z]+)*|[.!?]+|\S")


@dataclasses.dataclass(frozen=True)
class Word:
    """One word: as written, whether it stands inside quotes, and whether a sentence may begin with it."""

    text: str
    quoted: bool
    begins: bool


@dataclasses.dataclass(frozen=True)
class Sentence:
    """Sentence `number` (from 1): its words, and whether it is closed by a full stop, `!` or `?`."""

    number: int
    words: tuple[Word, ...]
    closed: bool


def read(story: str) -> list[Sentence]:
    """The sentences of a story. What somebody says belongs to the sentence that tells who said it.

    >>> [len(sentence.words) for sentence in read('"Oh no! It broke," said Tom. He ran.')]
    [6, 2]
    """
    sentences: list[Sentence] = []
    for paragraph in story.split("\n\n"):
        for words, closed in _split(TOKEN.findall(paragraph)):
            sentences.append(Sentence(len(sentences) + 1, words, closed))
    return sentences


def _split(tokens: list[str]) -> list[tuple[tuple[Word, ...], bool]]:
    """The words of each sentence of a paragraph and whether the sentence is closed."""
    sentences, words, quoted, before = [], [], False, "."
    for token, after in itertools.pairwise([*tokens, '"']):
        if token[0].isalpha():
            words.append(Word(token, quoted, begins=before[0] in '.!?"'))
        stops = token[0] in ".!?" and not quoted
        if token == '"':
            stops = quoted and before[0] in ".!?" and not after[0].islower()
            quoted = not quoted
        if stops and words:
            sentences.append((tuple(words), True))
            words = []
        before = token
    return [*sentences, (tuple(words), False)] if words else sentences


def plain(sentences: list[Sentence]) -> str:
    """The words of the sentences in lower case with single blanks, each sentence between two full stops.

    >>> plain(read("It is Tom's. Is it?"))
    ". it is tom's . is it ."
    """
    said = (" ".join(word.text.lower() for word in sentence.words) for sentence in sentences)
    return f". {' . '.join(said)} ." if sentences else ""
