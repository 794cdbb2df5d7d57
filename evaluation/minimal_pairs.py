"""Does a model know grammar and meaning? Pairs of texts that differ in one spot, of which only one is right.

A model passes a pair if it finds the right text likelier (BLiMP, Warstadt et al. 2020). The texts are beginnings
of built-in stories that no training run reads; the wrong one ends in a sentence that was broken in one of seven ways:

    agreement    Lily were sad.                        one person, or several
    article      Lily had an kite.                     what begins with a vowel
    tense        Lily feels sad.                       the stories are told in the past
    pronoun      (Lily …) He felt sad.                 if the story checker finds the contradiction
    reference    (Lily …) Mia looked under the bed.    and no Mia was introduced
    word order   Lily looked bed under the.            an article or a preposition after its noun
    selection    Lily ate a rusty nail. She felt pink. what cannot be eaten, or felt
"""

import dataclasses
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from data.stories import check, story, words
from inference.scoring import log_probabilities
from inference.text import TextModel

SEED = 1 << 30  # of the stories: far from any that a corpus begins with
PAST = {
    "was": "is", "had": "has", "felt": "feels", "loved": "loves", "liked": "likes", "looked": "looks",
    "went": "goes", "said": "says", "wanted": "wants", "learned": "learns", "knew": "knows", "took": "takes",
    "ran": "runs", "made": "makes", "thought": "thinks", "came": "comes", "lived": "lives", "smiled": "smiles",
}  # fmt: skip
NUMBER = {"was": "were", "were": "was"}
ARTICLES = {"a": "an", "an": "a", "A": "An", "An": "A"}
PRONOUNS = {"he": "she", "she": "he", "his": "her", "her": "his", "himself": "herself", "herself": "himself"}
PRONOUNS |= {word.capitalize(): other.capitalize() for word, other in PRONOUNS.items()}
LEADING = "a|an|the|his|her|of|in|on|at|to|with|under|behind"
CONTRADICTIONS = {
    "pronoun": "is called '",
    "reference": "appears from nowhere",
}  # what the checker says of them
INEDIBLE = tuple(thing for thing in words.JUNK if "crumbs" not in thing)
UNFELT = tuple(color for color in words.COLORS if color != "blue")  # one can feel blue


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two texts of which `good` should be likelier; `kind` is the rule that `bad` breaks."""

    kind: str
    good: str
    bad: str


def make(count: int, seed: int = SEED) -> list[Pair]:
    """Return `count` pairs of each kind, the same at every call."""
    rng = random.Random(seed)
    found: dict[str, list[Pair]] = {kind: [] for kind in BREAKS}
    index = 0
    while any(len(pairs) < count for pairs in found.values()):
        text = story(seed, index)
        index += 1
        for kind, pairs in found.items():
            if len(pairs) < count and (pair := _break_one(kind, text, rng)):
                pairs.append(pair)
    return [pair for pairs in found.values() for pair in pairs]


def _break_one(kind: str, text: str, rng: random.Random) -> Pair | None:
    """Return the story up to one of its narrated sentences, and the same with that sentence broken."""
    choices = [
        Pair(kind, text[:end], text[:start] + bad)
        for start, end in _narrated(text)
        for bad in BREAKS[kind](text[start:end], rng)
        if kind not in CONTRADICTIONS or _contradicts(kind, text[:start] + bad + text[end:])
    ]
    return rng.choice(choices) if choices else None


def _contradicts(kind: str, text: str) -> bool:
    """True if the story checker finds the contradiction: the sentence may be right about somebody else."""
    return any(CONTRADICTIONS[kind] in fault for fault in check(text))


def _narrated(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each sentence outside of quotes, without the first, which introduces the hero."""
    for match in list(re.finditer(r"[^.!?\s][^.!?]*[.!?]+", text))[1:]:
        paragraph = text.rfind("\n\n", 0, match.start()) + 1
        if '"' not in match[0] and text.count('"', paragraph, match.start()) % 2 == 0:
            yield match.span()


def _replace(table: dict[str, str]) -> Callable[[str, random.Random], Iterator[str]]:
    """Return what breaks a sentence at each word of the table, one at a time."""
    pattern = re.compile(rf"\b({'|'.join(table)})\b")

    def broken(sentence: str, rng: random.Random) -> Iterator[str]:
        for match in pattern.finditer(sentence):
            yield sentence[: match.start()] + table[match[0]] + sentence[match.end() :]

    return broken


def _tense(sentence: str, rng: random.Random) -> Iterator[str]:
    """Put a verb into the present, if its subject may be one person."""
    if not re.search(r"\b([Tt]hey|and)\b", sentence):
        yield from _replace(PAST)(sentence, rng)


def _reference(sentence: str, rng: random.Random) -> Iterator[str]:
    """Put another child's, or animal's, name."""
    for names in (words.GIRLS, words.BOYS, words.SHE_ANIMALS, words.HE_ANIMALS):
        for match in re.finditer(rf"\b({'|'.join(names)})\b", sentence):
            other = rng.choice([name for name in names if name != match[0]])
            yield sentence[: match.start()] + other + sentence[match.end() :]


def _word_order(sentence: str, rng: random.Random) -> Iterator[str]:
    """Put an article or a preposition after its noun."""
    for match in re.finditer(rf"\b({LEADING}) ([a-z]+)\b", sentence):
        yield f"{sentence[: match.start()]}{match[2]} {match[1]}{sentence[match.end() :]}"


def _selection(sentence: str, rng: random.Random) -> Iterator[str]:
    """Replace food by something inedible; a feeling, or a way of speaking, by a colour."""
    for treat in words.TREATS:
        if re.search(rf"\b(had|ate|enjoyed) {treat}\b", sentence):
            yield sentence.replace(treat, rng.choice(INEDIBLE))
    for feeling in re.findall(rf"\b(?:{'|'.join(words.SAD + words.GLAD + words.SOFTLY)})\b", sentence):
        yield re.sub(rf"\b{feeling}\b", rng.choice(UNFELT), sentence, count=1)


BREAKS: dict[str, Callable[[str, random.Random], Iterator[str]]] = {
    "agreement": _replace(NUMBER),
    "article": _replace(ARTICLES),
    "tense": _tense,
    "pronoun": _replace(PRONOUNS),
    "reference": _reference,
    "word order": _word_order,
    "selection": _selection,
}


def read(path: Path) -> list[Pair]:
    """Read pairs from a file with a line `kind<TAB>good<TAB>bad` for each."""
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split("\t")
        if len(fields) != 3 or not all(fields) or fields[1] == fields[2]:
            raise ValueError(
                f"{path}, line {number}: write kind, good and another bad text, with tabs between"
            )
        pairs.append(Pair(*fields))
    if not pairs:
        raise ValueError(
            f"{path} holds no pairs: write kind, good and bad text in each line, with tabs between"
        )
    return pairs


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The log-probabilities of a pair's texts."""

    pair: Pair
    good: float
    bad: float

    @property
    def passed(self) -> bool:
        """True if the right text is the likelier one; a tie is not enough."""
        return self.good > self.bad


def judge(text_model: TextModel, pairs: Sequence[Pair]) -> list[Verdict]:
    """Return a verdict on each pair."""
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    rows = [text_model.encode(text) for text in texts]
    scores = [log_p.sum().item() for log_p in log_probabilities(text_model.model, rows)]
    return [Verdict(*fields) for fields in zip(pairs, scores[::2], scores[1::2], strict=True)]


def accuracy(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Return the fraction of pairs passed, by kind and over all ("all"); nothing without pairs."""
    if not verdicts:
        return {}
    kinds = {verdict.pair.kind: None for verdict in verdicts}
    groups = {kind: [v.passed for v in verdicts if v.pair.kind == kind] for kind in kinds}
    groups["all"] = [verdict.passed for verdict in verdicts]
    return {kind: sum(passed) / len(passed) for kind, passed in groups.items()}
