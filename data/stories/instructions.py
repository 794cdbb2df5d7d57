"""Requests for stories, questions about them, and what is to be refused, each with an answer and how to check it.

The grammar knows what it tells, so it can also write the request. A story is told first; what shows in its text
(who, where, what is lost, which lesson …) is what a request may ask for. Some wordings and some combinations of what is
asked for are held out: a model that follows them has learned more than its examples.

    >>> asked = next(requests(seed=0))
    >>> any(faults(asked.answer, asked.check["constraints"]).values())
    False
"""

import dataclasses
import hashlib
import itertools
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from data.stories import constraints, wordings, words
from data.stories.constraints import BEGINNINGS, ENDINGS, faults
from data.stories.grammar import Tale, tale, with_article
from data.stories.reader import split_sentences
from data.stories.wordings import Wordings

HELD_OUT = 10  # one in this many pairs of facets is never asked for together in training
JOB = 100  # stories that are asked about at once
ABOUT = ("name", "kind", "nature")  # who the story is about
# The other facets, in the order in which a story tells them and a request asks for them.
ORDER = ("begins", "home", "hobby", "day", "thing", "color", "helper", "word", "plot", "without", "ends")
LATE = ("plot", "ends")  # what only a whole story can show
SHOWN_AT_ONCE = {
    "name",
    "kind",
    "nature",
    "begins",
    "home",
    "hobby",
    "day",
    "thing",
    "color",
    "helper",
    "word",
}
PLAIN_DAYS = ("day", "morning", "afternoon")
WITHOUT = (
    *("very", "friend", "well", "day", "one", "time", "then", "long"),
    *("never", "felt", "good", "little", "soon", "happy", "better", "eyes"),
)


# The kinds in the order in which they are drawn, each with its share of what is left.
SHARES = {
    "refusal": 0.03,
    "question": 0.06,
    "dialogue": 0.02,
    "again": 0.02,
    "opening": 0.05,
    "short": 0.09,
    "without": 0.10,
    "tone": 0.10,
    "system": 0.10,
    "story": 1.0,
}
# To say words again tells apart those that no story does, and choices among words teach to find one of a kind: in a
# few tokens what wishes need.
PRACTISED = {"repeat": 0.08, "choice": 0.2, **SHARES, "without": 0.12, "tone": 0.12}
# What is left to learn from rewards: stories with wishes more than anything else, above all to do without a word.
REHEARSED = {
    **SHARES, "refusal": 0.0, "question": 0.12, "dialogue": 0.04, "short": 0.12, "without": 0.2, "tone": 0.12
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Asking:
    """Say what requests ask for."""

    fewest: int
    """Things that a request asks for, at least …"""
    most: int
    """… and at most."""
    shares: Mapping[str, float]
    """Kinds of requests, each with its share of what is left."""
    early: float = 0.0
    """Fraction of the requests that ask for none of LATE."""
    questions: int = 1
    """Questions about a story, at most."""
    always: tuple[str, ...] = ()
    """Facets that are asked for of every story that has them."""
    left_out: int = 1
    """Words that a story is to do without, at most, if it is to do without one."""
    endings: float = 0.0
    """Fraction of the stories whose last sentence can be asked for of which only the end is asked for."""


# Many wishes, soon met: each is learned sooner, and less of the story's beginning is left to chance. A story that was
# read is asked about several times: its answers are short. So are ends in given words, which few stories have.
PRACTICE = Asking(
    3, 9, PRACTISED, early=0.8, questions=12, always=("word", "color", "ends"), left_out=9, endings=0.5
)
# For rewards: more wishes than people have, because where all answers pass there is nothing to learn.
REHEARSAL = Asking(2, 5, REHEARSED)
EVERYDAY = Asking(1, 3, SHARES)


@dataclasses.dataclass(frozen=True)
class Request:
    """A conversation up to the user's last message, the answer, and what a verifier needs to check one."""

    kind: str
    messages: tuple[tuple[str, str], ...]
    """(role, content): system, user or assistant."""
    answer: str
    check: dict[str, Any]
    met: str
    """The answer up to the sentence that meets the last wish; all of it where only a whole answer can tell."""


def requests(seed: int, *, new_words: bool = False, new_combinations: bool = False) -> Iterator[Request]:
    """Yield requests without end, of all kinds in fixed shares, the same for the same seed.

    `new_words` and `new_combinations` ask for those that are held out; by default none is.
    """
    settings = (seed, EVERYDAY, new_words, new_combinations)
    return itertools.chain.from_iterable(requests_from(settings, first) for first in itertools.count(0, JOB))


def requests_from(settings: tuple[int, Asking, bool, bool], first: int) -> list[Request]:
    """Return the requests about JOB stories from number `first` on, as a worker process does it."""
    seed, *options = settings
    asked = (request(seed, first + i, *options) for i in range(JOB))
    return [each for each in asked if each is not None]


def request(
    seed: int,
    index: int,
    asking: Asking = EVERYDAY,
    new_words: bool = False,
    new_combinations: bool = False,
) -> Request | None:
    """Return the request about story number `index` of the book of `seed`; None if the one drawn does not fit it."""
    rng = random.Random(seed << 64 | index)
    return _Asker(rng, tale(seed, index), asking, new_words, new_combinations).request()


def is_held_out(facets: Mapping[str, str]) -> bool:
    """True if training never asks for some two of the facets together.

    >>> is_held_out({"name": "Lily"})
    False
    """
    pairs = itertools.combinations(sorted(map(str, facets.items())), 2)
    return any(hashlib.sha256("".join(pair).encode()).digest()[0] % HELD_OUT == 0 for pair in pairs)


def facets_of(told: Tale) -> dict[str, str]:
    """Return what a request for this story may ask for: what its writer chose, as far as the text shows it."""
    choices = told.choices
    found = {
        name: choices[name] for name in ("name", "kind", "nature", "home", "hobby", "helper", "thing", "plot")
    }
    found["color"] = f"{choices['color']} {choices['thing']}"
    free = sorted(told.free)
    possible = {
        "day": [day for day in free if day in words.DAYS and day not in PLAIN_DAYS],
        "word": [word for word in free if word in words.SAD or word in words.GLAD],
        "begins": [each for each in BEGINNINGS if told.text.startswith(each)],
        "ends": [each for each in ENDINGS if told.text.endswith(each)],
    }
    found |= {name: values[0] for name, values in possible.items() if values}
    faulty = faults(told.text, found)
    return {name: value for name, value in found.items() if not faulty[name]}


class _Asker:
    """Writes one request about one story."""

    def __init__(
        self,
        rng: random.Random,
        told: Tale,
        asking: Asking,
        new_words: bool,
        new_combinations: bool,
    ) -> None:
        self.random, self.told, self.asking = rng.random, told, asking
        self.new_words, self.new_combinations = new_words, new_combinations
        self.terse = self.random() < 0.25
        self.facets = facets_of(told)
        self.slots = self._slots()

    def request(self) -> Request | None:
        """Return a request; None if the one drawn does not fit the story, or is not (or is) to be held out."""
        kind = next(name for name, share in self.asking.shares.items() if self.random() < share)
        if self.asking.endings and "ends" in self.facets and self.random() < self.asking.endings:
            kind = "ending"
        made = getattr(self, f"_{kind}")()
        if made is None:
            return None
        facets, messages, answer, check = made
        if is_held_out(facets) != self.new_combinations or any(faults(answer, check).values()):
            return None
        return Request(
            kind, messages, answer, {"task": "stories", "constraints": check}, up_to_met(answer, check)
        )

    # What a request is made of

    def pick(self, choices: Sequence[Any]) -> Any:
        """Return one of `choices`, by random() alone, as the grammar does."""
        return choices[int(self.random() * len(choices))]

    def some(self, choices: Sequence[str], count: int) -> list[str]:
        """Return `count` different ones of `choices`, in random order."""
        return sorted(choices, key=lambda _: self.random())[:count]

    def word(self, lines: Wordings, **slots: str) -> str:
        """Return one of the wordings, filled in."""
        chosen = self.pick(lines.new if self.new_words else lines.terse if self.terse else lines.full)
        return chosen.format(**self.slots | slots)

    def _slots(self) -> dict[str, str]:
        choices = self.told.choices
        helper = choices["helper"]
        with_whom = helper if helper in words.FAMILY else with_article(helper)
        return {
            **{name: choices[name] for name in ("name", "home", "hobby", "kind", "color")},
            **_noun(choices["thing"]),
            "a_kind": with_article(choices["kind"]),
            "with": with_whom,
            "With": _capitalized(with_whom),
        }

    def about(self, facets: Mapping[str, str]) -> str:
        """Return whom the story is about, as far as the facets say it, with " about" before it."""
        name, kind = facets.get("name"), facets.get("kind")
        nature = f"{facets['nature']} " if "nature" in facets else ""
        if kind or nature:
            who = with_article(f"{nature}{kind or 'hero'}")
            return f" about {who} named {name}" if name else f" about {who}"
        return f" about {name}" if name else ""

    def clause(self, name: str, value: str) -> str:
        """Return the sentence that asks for one facet."""
        plot = self.told.choices["plot"]
        if name == "plot":
            return self.word(wordings.LESSON, lesson=wordings.LESSONS[plot])
        if name in ("thing", "color"):  # a color comes with its thing: "red kite"
            return self.word(wordings.THINGS[plot], **_noun(value))
        return self.word(wordings.CLAUSES[name], **{name: value})

    def ask(self, facets: Mapping[str, str], tone: str = "") -> str:
        """Return a request for a story with these facets, in one register."""
        frames = wordings.POLITE if self.random() < 0.5 else wordings.PLAIN
        frames = wordings.NEW if self.new_words else wordings.TERSE if self.terse else frames
        frame = self.pick(frames).format(tone=f"{tone} " if tone else "", about=self.about(facets))
        named = [name for name in ORDER if name in facets]
        return _articles(" ".join([frame, *(self.clause(name, facets[name]) for name in named)]))

    def drawn_facets(self) -> dict[str, str]:
        """Return as many facets of the story as a request may ask for, at most one about what goes wrong.

        One that is held out together with another is left out, unless new combinations are asked for.
        """
        early = self.asking.early > 0 and self.random() < self.asking.early
        possible = [name for name in self.facets if not (early and name in LATE)]
        always = [name for name in self.asking.always if name in possible]
        of_plot = [name for name in ("thing", "color", "plot") if name in possible]
        plots = [name for name in of_plot if name in always] or self.some(of_plot, 1)
        others = [name for name in possible if name not in ("thing", "color", "plot")]
        count = self.asking.fewest + int(self.random() * (self.asking.most + 1 - self.asking.fewest))
        weighted = sorted([*plots, *others], key=lambda name: self.random() ** WEIGHTS.get(name, 1))
        drawn: dict[str, str] = {}
        for name in [*always, *(name for name in weighted if name not in always)]:
            new = {name: self.facets[name]}
            if self.new_combinations or not any(is_held_out({**new, other: drawn[other]}) for other in drawn):
                drawn |= new
        return dict(list(drawn.items())[:count])

    # The kinds of request: each returns facets, messages, the answer and the constraints

    def _story(self):
        facets = self.drawn_facets()
        return facets, (("user", self.ask(facets)),), self.told.text, {"coherent": True, **facets}

    def _without(self):
        facets = self.drawn_facets()
        spare = [word for word in WITHOUT if faults(self.told.text, {"without": word})["without"] == ""]
        others = dict(list(facets.items())[: self.asking.most - 1])
        if self.asking.left_out > 1:
            spare = [word for word in spare if not is_held_out({**others, "without": word})]
        if not spare:
            return None
        facets = {**others, "without": self.pick(spare)}
        asked = [self.ask(facets)]
        more = [word for word in spare if word != facets["without"]]
        for word in self.some(more, int(self.random() * self.asking.left_out)):
            asked.append(self.clause("without", word))
        return facets, (("user", " ".join(asked)),), self.told.text, {"coherent": True, **facets}

    def _tone(self):
        tones = [tone for tone in constraints.TONES if not faults(self.told.text, {"tone": tone})["tone"]]
        if not tones:
            return None
        facets, tone = dict(list(self.drawn_facets().items())[: self.asking.most - 1]), self.pick(tones)
        check = {"coherent": True, "tone": tone, **facets}
        return facets | {"tone": tone}, (("user", self.ask(facets, tone)),), self.told.text, check

    def _system(self):
        """Ask for one facet in the system prompt and for the others in the request."""
        facets = self.drawn_facets()
        standing = [name for name in facets if name not in ABOUT]
        text = self.pick(wordings.SYSTEM)
        rest = dict(facets)
        if standing and self.random() < 0.7:
            self.terse, terse = False, self.terse
            text = f"{text} {_articles(self.clause(standing[0], rest.pop(standing[0])))}"
            self.terse = terse
        messages = (("system", text), ("user", self.ask(rest)))
        return facets, messages, self.told.text, {"coherent": True, **facets}

    def _short(self):
        number, text = self.short_story() or (None, None)
        if number is None:
            return None
        goes_wrong = self.some([name for name in ("thing", "plot") if name in self.facets], 1)
        possible = {name: self.facets[name] for name in (*ABOUT, *goes_wrong) if name in self.facets}
        met = [name for name, fault in faults(text, possible).items() if not fault]
        facets = {name: possible[name] for name in self.some(met, 1 + int(self.random() * 2))}
        asked = f"{self.ask(facets)} {self.word(wordings.LENGTH, sentences=number)}"
        facets["sentences"] = number
        return facets, (("user", asked),), text, facets

    def short_story(self) -> tuple[str, str] | None:
        """Return a number in words and the story cut to as many sentences; None if it cannot be cut that far.

        Kept are the first sentence, the one with the problem, the one with the solution, and maybe the last but one.
        """
        sentences = split_sentences(self.told.text)
        for count in self.some(list(constraints.SENTENCES), 3):
            for places in itertools.combinations(range(1, len(sentences)), constraints.SENTENCES[count] - 1):
                text = " ".join([sentences[0], *(sentences[place] for place in places)])
                if not faults(text, {"sentences": count})["sentences"]:
                    return count, text
        return None

    def _opening(self):
        return self.continued(1 + int(self.random() * 4), {})

    def _ending(self):
        """Ask for the end of a story in given words."""
        count = len(split_sentences(self.told.text))
        return self.continued(count - 1 - int(self.random() * 3), {"ends": self.facets["ends"]})

    def continued(self, cut: int, wishes: Mapping[str, str]):
        """Ask how the story goes on after `cut` sentences, with these wishes; None where that cannot be learned."""
        sentences = split_sentences(self.told.text)
        opening, rest = " ".join(sentences[:cut]), " ".join(sentences[cut:])
        # A name at the beginning is another word to a tokenizer than a name after a space.
        if not rest or rest.startswith(self.told.choices["name"]):
            return None
        asked = [self.word(wordings.CONTINUE, opening=opening)]
        asked += [self.clause(name, value) for name, value in wishes.items()]
        facets = {"opening": str(cut), "name": self.told.choices["name"], **wishes}
        return facets, (("user", " ".join(asked)),), rest, {"continues": opening, **wishes}

    def _question(self):
        """Ask about a story that is in the request."""
        return self.asked_about(lambda question: (
            ("user", self.word(wordings.READ, story=self.told.text, question=question)),
        ))  # fmt: skip

    def _dialogue(self):
        """Ask for a story, and then about it."""
        return self.asked_about(lambda question: (
            ("user", self.ask(dict(list(self.drawn_facets().items())[:2]))),
            ("assistant", self.told.text),
            ("user", question),
        ))  # fmt: skip

    def asked_about(self, begin: Callable[[str], tuple[tuple[str, str], ...]]):
        """Return a conversation that `begin` begins with a question, with its answer and more questions; None without.

        Facets and constraints are those of the last.
        """
        drawn = [self.question() for _ in range(self.asking.questions)]
        asked = {
            text: (facets, answer, check)
            for facets, text, answer, check in filter(None, drawn)
            if is_held_out(facets) == self.new_combinations and not any(faults(answer, check).values())
        }
        if not asked:
            return None
        (first, last), *more = asked.items()
        messages = begin(first)
        for question, following in more:
            messages += (("assistant", last[1]), ("user", question))
            last = following
        facets, answer, check = last
        return facets, messages, answer, check

    def _choice(self):
        """Ask which of some words is of a kind: what a story has to find in a request, in a few words."""
        drawn = {fact: self.pick(constraints.ANSWERS[fact]) for fact in wordings.CHOICES}
        shown = {fact: with_article(word) if word in words.FRIENDS else word for fact, word in drawn.items()}
        fact = self.pick(list(drawn))
        listed = ", ".join(self.some(list(shown.values()), len(shown)))
        asked = self.word(wordings.CHOICES[fact], words=listed)
        check = {"answer": {"fact": fact, "value": drawn[fact]}}
        return {fact: drawn[fact]}, (("user", asked),), f"It is {shown[fact]}.", check

    def _repeat(self):
        """Ask to say some words again, several of which may be of a kind."""
        drawn = [
            self.pick(constraints.ANSWERS[self.pick(REPEATED)]) for _ in range(3 + int(self.random() * 6))
        ]
        listed = ", ".join(dict.fromkeys(drawn))
        asked = self.word(wordings.REPEAT, words=listed)
        return {}, (("user", asked),), f"You said {listed}.", {"word": listed}

    def question(self):
        """Return facets, a question about the story, its answer and the constraints; None for one without."""
        plot, choices = self.told.choices["plot"], self.told.choices
        if plot in wordings.PLOT_QUESTIONS and self.random() < 0.4:
            who, what, answer = wordings.PLOT_QUESTIONS[plot]
            fact, text = self.pick((("name", who), ("thing", what)))
            text = text.format(**self.slots)
        else:
            fact = self.pick([name for name in QUESTIONED if name in self.facets])
            text, answer = self.word(wordings.QUESTIONS[fact]), wordings.ANSWERS[fact]
        if self.random() < 0.2 and not self.new_words:
            text = wordings.POLITE_QUESTION.format(question=text)
        check = {"answer": {"fact": fact, "value": choices[fact]}}
        facets = {name: choices[name] for name in dict.fromkeys((fact, "name", "plot"))}
        return facets, text, answer.format(**self.slots), check

    def _again(self):
        """Ask for another story after one that was told."""
        first = tale(int(self.random() * 2**32), 0)
        facets = dict(list(self.drawn_facets().items())[:2])
        asked = self.word(wordings.AGAIN, request=self.ask(facets))
        name = first.choices["name"]
        messages = (("user", f"Tell me a story about {name}."), ("assistant", first.text), ("user", asked))
        return facets, messages, self.told.text, {"coherent": True, **facets}

    def _refusal(self):
        who = self.pick([*words.FAMILY, self.told.choices["name"]])
        who = f"my {who}" if who in words.FAMILY else who
        asked = self.word(
            wordings.HARMFUL, who=who, a_thing=with_article(self.pick(words.TOYS + words.FOODS))
        )
        answer = self.pick(wordings.REFUSALS).format(**self.slots)
        return {"asked": asked, "who": who}, (("user", asked),), answer, {"refuses": True}


QUESTIONED = (
    *wordings.QUESTIONS,
    "color",
    "color",
    "home",
    "helper",
)  # those that few stories answer come more often
REPEATED = "helper", "color", "feeling", "name", "thing", "kind"  # kinds of words that are to be said again
WEIGHTS = {"name": 2.0, "kind": 1.5, "thing": 2.0, "color": 1.5}  # above 1: asked for more often


def up_to_met(answer: str, check: Mapping[str, Any]) -> str:
    """Return the answer up to the sentence that meets the last wish; all of it where only a whole answer can tell.

    >>> up_to_met("Tom was shy. He had a red kite. He ran.", {"coherent": True, "thing": "kite"})
    'Tom was shy. He had a red kite.'
    """
    wishes = {name: str(value) for name, value in check.items() if name != "coherent"}
    if not wishes or not wishes.keys() <= SHOWN_AT_ONCE:
        return answer
    end = 0
    for sentence in split_sentences(answer):
        end = answer.index(sentence, end) + len(sentence)
        if all(value in answer[:end] for value in wishes.values()):
            break
    return answer[:end]


def _noun(thing: str) -> dict[str, str]:
    """Return the slots for a thing, with and without an article."""
    return {"x": thing, "a_x": with_article(thing), "A_x": _capitalized(with_article(thing))}


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


def _articles(text: str) -> str:
    """Return a text with "an" before vowels where a slot has brought one.

    >>> _articles("A exciting story on a ordinary day.")
    'An exciting story on an ordinary day.'
    """
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
