"""Split a story into sentences and words, and mark direct speech; people.py and checker.py judge them."""

import functools
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

TOKEN = re.compile(r"[A-Za-z]+(?:[-'][A-Za-z]+)*|[.!?]+|\S")
END_OF_SENTENCE = re.compile(r"[^A-Za-z]*?[.!?]+\"?(?= |$)")


class Word(NamedTuple):
    """One word: as written; `quoted` inside quotes; `begins` if a sentence may begin with it."""

    text: str
    quoted: bool
    begins: bool


class Sentence(NamedTuple):
    """Sentence `number` (from 1); `closed` if it ends with a full stop, `!` or `?`."""

    number: int
    words: tuple[Word, ...]
    closed: bool


@functools.lru_cache(maxsize=256)  # the checks of one answer all read it
def read(story: str) -> tuple[Sentence, ...]:
    """Return the sentences of a story. Direct speech belongs to the sentence that names the speaker.

    >>> [len(sentence.words) for sentence in read('"Oh no! It broke," said Tom. He ran.')]
    [6, 2]
    """
    sentences: list[Sentence] = []
    for paragraph in story.split("\n\n"):
        for words, closed in _split(TOKEN.findall(paragraph)):
            sentences.append(Sentence(len(sentences) + 1, words, closed))
    return tuple(sentences)


def _split(tokens: list[str]) -> list[tuple[tuple[Word, ...], bool]]:
    """Return the words of each sentence of a paragraph, and True if the sentence is closed."""
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


def plain(sentences: Sequence[Sentence]) -> str:
    """Return the words in lower case with single spaces, each sentence between two full stops.

    >>> plain(read("It is Tom's. Is it?"))
    ". it is tom's . is it ."
    """
    lines = (" ".join(word.text.lower() for word in sentence.words) for sentence in sentences)
    return f". {' . '.join(lines)} ." if sentences else ""


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a story as they are written, without paragraphs.

    >>> split_sentences('It rained. "Oh no! My hat," said Tom. He ran.')
    ['It rained.', '"Oh no! My hat," said Tom.', 'He ran.']
    """
    flat, start, found = text.replace("\n\n", " "), 0, []
    for sentence in read(text):
        place = start
        for word in sentence.words:
            place = flat.index(word.text, place) + len(word.text)
        while not (
            end := END_OF_SENTENCE.match(flat, place)
        ):  # the letters of the last word were part of another
            place = flat.index(word.text, place) + len(word.text)
        found.append(flat[start : end.end()].strip())
        start = end.end()
    return found
