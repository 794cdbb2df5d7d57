"""The built-in corpus: an endless book of short children's stories, written by a seeded grammar.

Story `i` of seed `s` depends only on (s, i), so any slice of the book can be made anywhere, and it is
the same on every machine. The texts are in words.py (the lexicon), beats.py (beats that all plots share),
plots.py and journeys.py (the plots). checker.py reads a story and lists what is wrong with it.

    >>> from data.stories import check, story
    >>> check(story(seed=0, index=0))
    []
"""

import dataclasses
import itertools
import random
import re
from collections.abc import Iterable, Iterator

from data.stories import beats, words
from data.stories.beats import Plot
from data.stories.checker import PLOTS, check

__all__ = ["Tale", "check", "coherence", "corpus", "stories", "story", "tale", "with_article"]

PRONOUNS = {"he": ("he", "him", "his", "himself"), "she": ("she", "her", "her", "herself")}


@dataclasses.dataclass(frozen=True)
class Tale:
    """A story and the choices of its writer, by the name of what was chosen; not all of them show in the text."""

    text: str
    choices: dict[str, str]
    """plot, name, kind, nature, home, hobby, helper, thing, color, and the names of the slots (he, his, pal …)."""
    free: frozenset[str]
    """The free choices: days, places, feelings …"""
    parts: tuple[str, ...]
    """Who and what the story is about, what goes wrong, how it is solved, and the end; joined they are the text."""


def tale(seed: int, index: int) -> Tale:
    """Return story number `index` (from 0) of the endless book of `seed` (from 0), with what its writer chose."""
    if seed < 0 or index < 0:
        raise ValueError(f"seed {seed} and index {index} must not be negative: count both from 0")
    return _Writer(random.Random(seed << 64 | index)).tale()


def story(seed: int, index: int) -> str:
    """Return the text of story number `index` (from 0) of the endless book of `seed` (from 0)."""
    return tale(seed, index).text


def stories(seed: int = 0, start: int = 0) -> Iterator[str]:
    """Yield the stories of `seed` from number `start` on, without end."""
    return (story(seed, index) for index in itertools.count(start))


def corpus(num_bytes: int, seed: int = 0) -> Iterator[str]:
    """Yield whole stories of `seed` from the first on, until they hold `num_bytes` bytes of UTF-8 or more.

    >>> sum(len(document.encode()) for document in corpus(1000)) >= 1000
    True
    """
    written = 0
    for document in stories(seed):
        if written >= num_bytes:
            return
        written += len(document.encode())
        yield document


def coherence(stories: Iterable[str]) -> float:
    """Return the fraction of `stories` in which `check` finds nothing wrong; 0 for no stories."""
    verdicts = [not check(document) for document in stories]
    return sum(verdicts) / len(verdicts) if verdicts else 0.0


class _Writer:
    """Writes one story: picks a plot and its people, then a line for each beat, and fills in the lines."""

    def __init__(self, rng: random.Random):
        self.random = rng.random
        self.used: set[str] = set()  # free choices that the story has made already
        self.slots: dict[str, str] = {}
        self.chosen: dict[str, str] = {}  # what the slots were made of

    def pick(self, choices):
        """Return one of `choices`, by random() alone, which Python promises to keep the same in all versions."""
        return choices[int(self.random() * len(choices))]

    def tale(self) -> Tale:
        plot = self.pick(PLOTS)
        self.cast(plot)
        self.name_thing(plot)
        parts = [self.begin(plot), self.trouble(plot), self.mend(plot), self.end(plot)]
        parts[1:] = [self.gap(part) + part for part in parts[1:]]
        choices = {**self.slots, **self.chosen, "plot": plot.name}
        return Tale("".join(parts), choices, frozenset(self.used), tuple(parts))

    def gap(self, part: str) -> str:
        """Return what precedes a part: a new paragraph or a space.

        No paragraph begins with a name: to a tokenizer a name without a space before it is another word.
        """
        opens = not part.startswith((self.slots["name"], self.slots["pal"]))
        return "\n\n" if opens and self.random() < 0.6 else " "

    def begin(self, plot: Plot) -> str:
        """Return who the hero is, what he or she likes to do, and the situation."""
        habit = [self.line(beats.HABIT)] if self.random() < 0.85 else []
        return " ".join([self.opening, *habit, self.line(plot.setup)])

    def trouble(self, plot: Plot) -> str:
        """Return what goes wrong, how it feels, and what the hero tries alone."""
        lines = [self.line(plot.problem)]
        if plot.feels and self.random() < 0.75:
            lines.append(self.line(beats.FEELING))
        return " ".join([*lines, self.line(plot.attempt)])

    def mend(self, plot: Plot) -> str:
        """Return who helps, and how the problem is solved."""
        reply = [self.line(plot.reply)] if plot.reply and self.random() < 0.6 else []
        return " ".join([self.line(plot.help), *reply, self.line(plot.resolution)])

    def end(self, plot: Plot) -> str:
        """Return the joy, what was learned, and a last line."""
        lines = []
        if plot.joy and self.random() < 0.9:
            lines.append(self.line(plot.joy))
        self.slots["moral"] = self.line(plot.moral)
        lines.append(self.line(beats.LESSON))
        if plot.joy and self.random() < 0.4:
            lines.append(self.line(beats.CLOSING))
        return " ".join(lines)

    def cast(self, plot: Plot) -> None:
        """Choose hero and helper, fill their slots and write the opening."""
        he = "she" if self.random() < 0.5 else "he"
        self.slots = dict(zip(PRONOUNS["he"], PRONOUNS[he], strict=True))
        if self.random() < 0.6:
            kind, names = ("girl", words.GIRLS) if he == "she" else ("boy", words.BOYS)
            lives, hobbies = words.HOMES, words.CHILD_HOBBIES
        else:
            kind, names = self.pick(words.ANIMALS), words.SHE_ANIMALS if he == "she" else words.HE_ANIMALS
            lives, hobbies = words.DENS, words.ANIMAL_HOBBIES
        self.slots |= {"name": self.pick(names), "lives": self.pick(lives), "hobby": self.pick(hobbies)}
        nature = self.pick(words.NATURES)
        self.slots["a_nature_kind"] = with_article(f"{nature} {kind}")
        self.chosen |= {"nature": nature, "kind": kind, "home": self.slots["lives"]}
        self.meet(plot)
        self.opening = self.line(beats.OPENING)

    def meet(self, plot: Plot) -> None:
        """Choose the helper: one of the hero's family, or an animal."""
        his = self.slots["his"]
        if plot.helpers == "family" or (plot.helpers == "any" and self.random() < 0.6):
            relation = self.chosen["helper"] = self.pick(tuple(words.FAMILY))
            self.slots |= {"pal": relation.capitalize(), "helper": f"{his} {relation}"}
            return
        friend = self.chosen["helper"] = self.pick(words.FRIENDS)
        if plot.helpers == "stranger":
            met = with_article(f"{self.pick(words.NATURES)} {friend}")
            self.slots |= {"pal": f"the {friend}", "helper": met}
        else:
            self.slots |= {"pal": f"{his} friend", "helper": f"{his} friend the {friend}"}

    def name_thing(self, plot: Plot) -> None:
        """Choose what the story is about, and its colour."""
        thing, color = self.pick(plot.things), self.pick(words.COLORS)
        self.chosen |= {"thing": thing}
        self.slots |= {"x": thing, "color": color, "color_x": f"{color} {thing}"}
        self.slots |= {"a_x": with_article(thing), "a_color_x": with_article(f"{color} {thing}")}

    def line(self, choices: tuple[str, ...]) -> str:
        """Return one of the lines, filled in."""
        return "".join(map(self.fill, _compiled(self.pick(choices))))

    def fill(self, part: "str | tuple") -> str:
        """Return the text of one part of a compiled line."""
        if isinstance(part, str):
            return part
        tag, value = part
        if tag == "choice":
            return "".join(map(self.fill, self.pick(value)))
        slot = value[0].lower() + value[1:]
        text = self.slots[slot] if slot in self.slots else self.fresh(words.SLOTS[slot])
        return text if slot == value else text[0].upper() + text[1:]

    def fresh(self, choices) -> str:
        """Return one of `choices` that the story has not used yet."""
        text = self.pick(choices)
        while text in self.used:
            text = self.pick(choices)
        self.used.add(text)
        return text


def with_article(noun: str) -> str:
    """Return the noun with its article.

    >>> with_article("orange kite")
    'an orange kite'
    """
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


_LINES: dict[str, tuple] = {}


def _compiled(line: str) -> tuple:
    """Return the parts of a line: plain text, ("slot", name) and ("choice", compiled alternatives).

    >>> _compiled("{name} [was] <so |>sad.")
    (('slot', 'name'), ' was ', ('choice', (('so ',), ())), 'sad.')
    """
    if line not in _LINES:
        parts = re.split(r"(\{\w+\}|<[^>]*>)", line.replace("[", "").replace("]", ""))
        _LINES[line] = tuple(map(_part, filter(None, parts)))
    return _LINES[line]


def _part(text: str) -> "str | tuple":
    if text[0] == "{":
        return "slot", text[1:-1]
    if text[0] == "<":
        return "choice", tuple(_compiled(choice) for choice in text[1:-1].split("|"))
    return text
