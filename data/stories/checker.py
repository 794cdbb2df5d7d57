"""Check a story: its form, its words, its people, its object, its plot.

The checker knows the facts of the grammar, not its sentences: the words, the pronoun of each person, the names of
things, and the short phrases (in brackets in the plots) that mean that something goes wrong, is solved, or is
learned. Sentences that combine these in a new way pass if the facts agree.
"""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from data.stories import beats, words
from data.stories.beats import Plot
from data.stories.journeys import JOURNEY_PLOTS
from data.stories.people import KINDS, NAMES, PRONOUNS, people
from data.stories.plots import OBJECT_PLOTS
from data.stories.reader import TOKEN, Sentence, plain, read

PLOTS: tuple[Plot, ...] = OBJECT_PLOTS + JOURNEY_PLOTS
BEATS = ("problem", "resolution", "moral")
FEWEST_WORDS, MOST_WORDS = 50, 150
CALENDAR = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday June July August"
PROPER = frozenset(["I", *map(str.capitalize, words.FAMILY), *CALENDAR.split(), *NAMES])


def check(story: str) -> list[str]:
    """Return what is wrong with `story`, one readable sentence per fault; empty for a coherent story.

    >>> check("Once there was a little girl named Lily. He sat.")[0]
    "'Lily' is called 'he' in sentence 2"
    """
    if not story.strip():
        return ["the story is empty"]
    sentences = read(story)
    return [
        *people(sentences),
        *named_things(sentences),
        *_plot(sentences),
        *spelling(sentences),
        *_form(story, sentences),
    ]


def _form(story: str, sentences: Sequence[Sentence]) -> Iterator[str]:
    """Check length, quotes, full stops, capital letters, odd characters, repetition."""
    count = sum(len(sentence.words) for sentence in sentences)
    if not FEWEST_WORDS <= count <= MOST_WORDS:
        yield f"the story has {count} words, not {FEWEST_WORDS} to {MOST_WORDS}"
    for odd in sorted(set(re.findall(r"[^A-Za-z .,:!?\"'\n-]", story))):
        yield f"the character {odd!r} does not belong in a story"
    for number, paragraph in enumerate(story.split("\n\n"), 1):
        if paragraph.count('"') % 2:
            yield f"a quote in paragraph {number} is not closed"
    for sentence in sentences:
        if not sentence.closed:
            yield f"sentence {sentence.number} breaks off"
        if sentence.words and sentence.words[0].text[0].islower():
            yield f"sentence {sentence.number} does not begin with a capital letter"
    for word in re.findall(r"\b(\w+) \1\b", story):
        yield f"'{word}' comes twice in a row"
    told = Counter(re.split(r"[.!?\"]+\s*", story))
    for text, times in told.items():
        if times > 1 and len(text.split()) > 3:
            yield f"'{text}' is told {times} times"


def spelling(sentences: Sequence[Sentence]) -> Iterator[str]:
    """Check for unknown words, capitals inside a sentence, a or an."""
    for sentence in sentences:
        for word in sentence.words:
            if word.text not in PROPER and word.text.lower() not in vocabulary():
                yield f"'{word.text}' in sentence {sentence.number} is no word of this book"
            elif word.text not in PROPER and word.text[0].isupper() and not word.begins:
                yield f"'{word.text}' in sentence {sentence.number} should not have a capital letter"
        texts = [word.text.lower() for word in sentence.words]
        for first, second in itertools.pairwise(texts):
            if first in ("a", "an") and (first == "an") != STARTS_WITH_VOWEL.get(
                second, second[0] in "aeiou"
            ):
                yield f"'{first} {second}' in sentence {sentence.number} takes the other article"


STARTS_WITH_VOWEL = {"hour": True, "honest": True, "one": False}  # exceptions to the first letter


@functools.cache
def vocabulary() -> frozenset[str]:
    """Return all words that stories are made of, in lower case, except names and other proper nouns."""
    choices = [beats.OPENING, beats.HABIT, beats.FEELING, beats.LESSON, beats.CLOSING, *words.SLOTS.values()]
    choices += [value for plot in PLOTS for value in vars(plot).values() if isinstance(value, tuple)]
    choices += [words.NATURES, words.COLORS, tuple(words.FAMILY), tuple(KINDS), tuple(PRONOUNS)]
    lines = [*itertools.chain.from_iterable(choices), "a an friend"]
    lines = [re.sub(r"\{\w+\}", " ", line) for line in lines]
    tokens = {token for line in lines for token in TOKEN.findall(line) if token[0].isalpha()}
    return frozenset(token.lower() for token in tokens - PROPER)


OBJECTS = frozenset(thing for plot in PLOTS if plot.is_object for thing in plot.things)


def named_things(sentences: Sequence[Sentence]) -> Iterator[str]:
    """Check that the story names at most one object, in one colour."""
    seen: dict[str, str] = {}  # "object" and "color" -> what it was called so far
    for sentence in sentences:
        texts = ["", *(word.text.lower() for word in sentence.words)]
        for before, word in itertools.pairwise(texts):
            if word in OBJECTS:
                yield from _keep(seen, "object", word, sentence.number)
            if word in OBJECTS and before in words.COLORS:
                yield from _keep(seen, "color", before, sentence.number)


def _keep(seen: dict[str, str], what: str, value: str, number: int) -> Iterator[str]:
    """Check that the value is what it was before."""
    if seen.setdefault(what, value) != value:
        yield f"the {what} was {seen[what]}, but it is {value} in sentence {number}"


def _plot(sentences: Sequence[Sentence]) -> Iterator[str]:
    """Check for a problem, then its own resolution, then its own lesson at the end, about the same thing."""
    text = plain(sentences)
    found = {beat: beat_facts(beat, text) for beat in BEATS}
    if not found["problem"]:
        yield "there is no problem"
    plots = {plot for facts in found.values() for plot, _ in facts}
    told = found["problem"][0][0] if found["problem"] else None
    for beat in BEATS:
        for plot, _ in found[beat]:
            if told and plot is not told:
                yield f"the {beat} belongs to '{plot.name}', but the story is '{told.name}'"
    if not found["resolution"]:
        yield "the problem is never solved"
    elif told and found["resolution"][0][1] < found["problem"][0][1]:
        yield f"the problem of '{told.name}' is solved before it is there"
    yield from _ending(sentences)
    if len(plots) == 1:
        yield from _topic(plots.pop(), text)


def plot_of(story: str) -> str | None:
    """Return the name of the plot whose problem the story tells first, or None."""
    found = beat_facts("problem", plain(read(story)))
    return found[0][0].name if found else None


def _ending(sentences: Sequence[Sentence]) -> Iterator[str]:
    """Check that one of the last two sentences says what was learned."""
    text = plain(sentences[-2:])
    if not beat_facts("moral", text):
        yield "the story has no ending: nothing is learned in its last two sentences"
    if not _phrases(tuple(beats.LESSON)).search(text):
        yield "the story has no ending: nobody learns anything in its last two sentences"


def _topic(plot: Plot, text: str) -> Iterator[str]:
    """Check that the story names exactly one of the plot's things."""
    named = {thing for thing in plot.things if f" {thing} " in text}
    if not named:
        yield f"the story never says what '{plot.name}' is about"
    if len(named) > 1 and not plot.is_object:
        yield f"the story is about {' and about '.join(sorted(named))}"


def beat_facts(beat: str, text: str) -> list[tuple[Plot, int]]:
    """Return the plots whose `beat` occurs in the text, each with its position, in the order of the text."""
    found = []
    for plot in PLOTS:
        match = _phrases(getattr(plot, beat)).search(text)
        if match:
            found.append((plot, match.start()))
    return sorted(found, key=lambda fact: fact[1])


@functools.cache
def _phrases(lines: tuple[str, ...]) -> re.Pattern[str]:
    """Return the regular expression for the bracketed phrases of the lines in plain text.

    >>> _phrases(("He [ran to {his} mom], and then",)).pattern
    ' (?:ran to (?:his|her) mom) '
    """
    phrases = [phrase for line in lines for phrase in re.findall(r"\[([^]]+)\]", line)]
    patterns = [" ".join(re.findall(r"[\w'{}-]+", phrase)).lower() for phrase in phrases]
    either = "|".join(sorted(patterns, key=len, reverse=True))
    for slot, forms in (("he", "he|she"), ("him", "him|her"), ("his", "his|her")):
        either = either.replace(f"{{{slot}}}", f"(?:{forms})")
    return re.compile(f" (?:{either}) ")
