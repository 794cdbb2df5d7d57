"""Check the people of a story: each is introduced once, keeps a name, and is called he or she consistently."""

from collections.abc import Iterator, Sequence

from data.stories import words
from data.stories.reader import Sentence, Word

NAMES = dict.fromkeys([*words.GIRLS, *words.SHE_ANIMALS], "she")
NAMES |= dict.fromkeys([*words.BOYS, *words.HE_ANIMALS], "he")
KINDS = {"girl": "she", "boy": "he"} | dict.fromkeys(words.ANIMALS, "")  # "" if the name decides
KINDS |= dict.fromkeys(words.FRIENDS, "it")  # friends are called by their kind
PRONOUNS = dict.fromkeys(["he", "him", "his", "himself"], "he") | dict.fromkeys(
    ["she", "her", "herself"], "she"
)


def people(sentences: Sequence[Sentence]) -> Iterator[str]:
    """Yield what is wrong with the people of a story."""
    cast = _Cast()
    for sentence in sentences:
        yield from cast.listen(sentence)
    if not cast.members:
        yield "the story is about nobody: no one is named"
    elif not cast.kinds:
        yield f"the story never says who '{next(iter(cast.members))}' is"


class _Cast:
    """The people introduced so far, and those the last sentence mentioned."""

    def __init__(self) -> None:
        self.members: dict[str, str] = {}  # name or relation ("mom") -> "he" or "she"
        self.kinds: dict[str, str] = {}  # "girl", "rabbit" -> "he" or "she"; "owl" -> "it"
        self.topic = ""  # the subject of the sentence before
        self.near: set[str] = set()  # pronouns of everyone in the sentence before

    def listen(self, sentence: Sentence) -> Iterator[str]:
        """Process one sentence; yield its faults."""
        self.subject, self.here, self.number = "", set(), sentence.number
        texts = [word.text for word in sentence.words]
        for place, word in enumerate(sentence.words):
            before, after = texts[:place], texts[place + 1 :]
            if word.text in NAMES:
                yield from self.meet(word.text, before)
            elif word.text.lower() in words.FAMILY:
                yield from self.meet_family(word.text.lower(), before)
            elif word.text in words.FRIENDS:
                yield from self.meet_friend(word.text, before)
            elif word.text in KINDS:
                yield from self.meet_kind(word.text, before, after)
            elif word.text.lower() in PRONOUNS and not word.quoted:
                yield from self.refer(word.text.lower())
            self.speak_of(word)
        self.topic, self.near = self.subject or self.topic, self.here or self.near

    def speak_of(self, word: Word) -> None:
        """Record who is mentioned by name, relation or kind outside of quotes."""
        who = word.text if word.text in NAMES else word.text.lower()
        he = self.members.get(who) or self.kinds.get(who)
        if he and not word.quoted:
            self.subject = self.subject or who
            self.here.add(he)

    def meet(self, name: str, before: list[str]) -> Iterator[str]:
        """Process a name: it is new at the start of the story and after `named` or `friend`, and nowhere else."""
        introduced = bool(before) and before[-1] in ("named", "friend")
        if introduced and name in self.members:
            yield f"'{name}' is introduced a second time in sentence {self.number}"
        if not introduced and self.members and name not in self.members:
            yield f"'{name}' appears from nowhere in sentence {self.number}"
        self.members[name] = NAMES[name]
        if before[-1:] == ["named"] and before[-2:-1] and before[-2] in KINDS:
            yield from self.bind(before[-2], name)

    def meet_family(self, relation: str, before: list[str]) -> Iterator[str]:
        """Process a relation: `her mom` comes first, `Mom` later."""
        if relation not in self.members and (not before or before[-1].lower() not in ("his", "her", "my")):
            yield f"'{relation}' appears from nowhere in sentence {self.number}"
        self.members[relation] = words.FAMILY[relation]

    def meet_kind(self, kind: str, before: list[str], after: list[str]) -> Iterator[str]:
        """Process a kind: `a girl` describes the last name, or the one that is `named` next; `the girl` is later."""
        if {"a", "an", "A", "An"} & set(before[-3:]):
            if after[:1] != ["named"] and self.members:
                yield from self.bind(kind, list(self.members)[-1])
        elif kind not in self.kinds:
            yield f"the {kind} appears from nowhere in sentence {self.number}"

    def meet_friend(self, friend: str, before: list[str]) -> Iterator[str]:
        """Process a friend: `an owl`, `a wise owl` or `his friend the owl` comes first, `the owl` later."""
        introduced = {"a", "an", "A", "An"} & set(before[-2:]) or before[-2:] == ["friend", "the"]
        if not introduced and friend not in self.kinds:
            yield f"the {friend} appears from nowhere in sentence {self.number}"
        if introduced and friend in self.kinds:
            yield f"the {friend} is introduced a second time in sentence {self.number}"
        self.kinds[friend] = "it"

    def bind(self, kind: str, name: str) -> Iterator[str]:
        """Record that `the girl` is a she from now on."""
        if KINDS[kind] and KINDS[kind] != self.members[name]:
            yield f"'{name}' is called a {kind} in sentence {self.number}"
        self.kinds.setdefault(kind, self.members[name])

    def refer(self, pronoun: str) -> Iterator[str]:
        """Process a pronoun: a subject pronoun continues the sentence before; any other may mean anybody near."""
        he = PRONOUNS[pronoun]
        topic = self.members.get(self.topic) or self.kinds.get(self.topic, "")
        known = {topic} if pronoun in ("he", "she") and not self.here else {topic} | self.near | self.here
        if he not in known:
            who = self.subject or self.topic or "nobody"
            yield f"'{who}' is called '{pronoun}' in sentence {self.number}"
            return
        if pronoun in ("he", "she") and not self.here:
            self.subject = self.topic
        self.here.add(he)
