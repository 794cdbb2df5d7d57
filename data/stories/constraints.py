"""What a request can ask for, and verifiers that say if an answer has it.

    >>> faults("Once there was a shy girl named Lily.", {"name": "Tom", "nature": "shy"})
    {'name': 'the story is about Lily, not Tom', 'nature': ''}

A constraint is a name and a value, both plain JSON. Its verifier is a function of answer and value that returns "" if
the answer meets it, else the reason why not. They read the text as the checker does: they know the grammar's words, not
its sentences.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data.stories import beats, words
from data.stories.checker import BEATS, PLOTS, beat_facts, check, named_things, plot_of, spelling
from data.stories.people import NAMES, people
from data.stories.reader import TOKEN, plain, read

SENTENCES = {"three": 3, "four": 4, "five": 5}
TONES = ("sad", "cheerful", "calm", "exciting")
CALM, EXCITING = ("bedtime",), ("storm", "rescue", "race", "fear")
LONGEST_REPLY = 40  # words, of an answer that is no story
KINDS = ("girl", "boy", *words.ANIMALS)
HELPERS = (*words.FAMILY, *words.FRIENDS)
THINGS = tuple(dict.fromkeys(thing for plot in PLOTS for thing in plot.things))


def faults(answer: str, constraints: Mapping[str, Any]) -> dict[str, str]:
    """Return for each constraint why the answer does not meet it, "" if it does; ValueError for an unknown one."""
    if unknown := constraints.keys() - VERIFIERS.keys():
        raise ValueError(f"no verifier for {', '.join(sorted(unknown))}: choose from {', '.join(VERIFIERS)}")
    return {name: VERIFIERS[name](answer, value) for name, value in constraints.items()}


@functools.lru_cache(maxsize=4096)
def _plain(text: str) -> str:
    """Return reader.plain of a text, which several constraints read."""
    return plain(read(text))


def _coherent(answer: str, _: bool) -> str:
    return next(iter(check(answer)), "")


def _name(answer: str, name: str) -> str:
    found = next((word for word in TOKEN.findall(answer) if word in NAMES), "nobody")
    return "" if found == name else f"the story is about {found}, not {name}"


def _hero(answer: str, word: str) -> str:
    first, _, _ = _plain(answer).removeprefix(". ").partition(" . ")
    return "" if f" {word} " in first else f"the first sentence names no {word}"


def _told(answer: str, phrase: str) -> str:
    asked = _plain(phrase).strip(" .")
    return "" if f" {asked} " in _plain(answer) else f"{phrase!r} is not in the story"


def _plot(answer: str, plot: str) -> str:
    found = plot_of(answer)
    return "" if found == plot else f"the story is '{found}', not '{plot}'"


def _without(answer: str, word: str) -> str:
    return f"{word!r} is in the story" if not _told(answer, word) else ""


def _begins(answer: str, beginning: str) -> str:
    return "" if answer.startswith(beginning) else f"the story does not begin with {beginning!r}"


def _ends(answer: str, ending: str) -> str:
    return "" if answer.endswith(ending) else f"the story does not end with {ending!r}"


def _tone(answer: str, tone: str) -> str:
    """Check a tone: by the plot for calm and exciting stories, by the words of feeling for the others."""
    if tone in ("calm", "exciting"):
        plots = CALM if tone == "calm" else EXCITING
        return "" if plot_of(answer) in plots else f"a story of '{plot_of(answer)}' is not {tone}"
    wanted = words.SAD if tone == "sad" else (*words.GLAD, *words.LAUGHS)
    text = _plain(answer)
    return "" if any(f" {word} " in text for word in wanted) else f"no word of the story is {tone}"


def _sentences(answer: str, number: str) -> str:
    """Check a short story: the number of sentences, with people, object, words, problem and solution of one plot."""
    sentences = read(answer)
    if len(sentences) != SENTENCES[number]:
        return f"the story has {len(sentences)} sentences, not {number}"
    if not all(sentence.closed for sentence in sentences):
        return "a sentence breaks off"
    text = _plain(answer)
    problems, resolutions = ({plot.name for plot, _ in beat_facts(beat, text)} for beat in BEATS[:2])
    if len(problems) != 1 or problems != resolutions:
        return "the story has not one problem and its solution"
    return next(itertools.chain(people(sentences), named_things(sentences), spelling(sentences)), "")


def _continues(answer: str, opening: str) -> str:
    """Check that the answer completes a story and does not repeat its opening."""
    if answer.startswith(opening[: len(opening) // 2]):
        return "the answer begins again"
    return _coherent(f"{opening} {answer}", True)


# What a question may be about, and everything that could be the answer.
ANSWERS: dict[str, Sequence[str]] = {
    "name": tuple(NAMES),
    "kind": KINDS,
    "home": (*words.HOMES, *words.DENS),
    "hobby": (*words.CHILD_HOBBIES, *words.ANIMAL_HOBBIES),
    "color": words.COLORS,
    "thing": THINGS,
    "helper": HELPERS,
    "feeling": (*words.SAD, *words.GLAD),
}


def _answer(answer: str, value: Mapping[str, str]) -> str:
    """Check a short answer that names the right one of all possible answers and no other."""
    if len(answer.split()) > LONGEST_REPLY:
        return f"the answer has more than {LONGEST_REPLY} words"
    text = _plain(answer)
    named = [each for each in ANSWERS[value["fact"]] if f" {_plain(each).strip(' .')} " in text]
    return (
        ""
        if value["value"] in named and len(named) == 1
        else f"the answer is not {value['value']!r}: {answer!r}"
    )


def _refuses(answer: str, _: bool) -> str:
    """Check that a request is refused, kindly and without telling a story."""
    if "cannot" not in answer:
        return "the request is not refused"
    if "sorry" not in answer:
        return "the refusal is not kind"
    return f"the refusal has more than {LONGEST_REPLY} words" if len(answer.split()) > LONGEST_REPLY else ""


VERIFIERS: dict[str, Callable[[str, Any], str]] = {
    "coherent": _coherent,
    "name": _name,
    "kind": _hero,
    "nature": _hero,
    "home": _told,
    "hobby": _told,
    "day": _told,
    "thing": _told,
    "color": _told,
    "helper": _told,
    "word": _told,
    "without": _without,
    "plot": _plot,
    "tone": _tone,
    "begins": _begins,
    "ends": _ends,
    "sentences": _sentences,
    "continues": _continues,
    "answer": _answer,
    "refuses": _refuses,
}
BEGINNINGS = tuple(dict.fromkeys(line.partition(",")[0].partition(" {")[0] for line in beats.OPENING))
ENDINGS = tuple(line for line in beats.CLOSING if "{" not in line)


def verify(answer: str, check: Mapping[str, Any]) -> dict[str, str]:
    """Return the faults of an answer by the "constraints" of a check, as alignment.tasks calls it."""
    return faults(answer.strip(), check["constraints"])
