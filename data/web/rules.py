"""Quality rules: each measures one number of a text and says which values are kept; a text outside is dropped with
the rule's name.

    gopher       is this prose? Length, word length, symbols, bullets, stop words
    repetition   does it repeat itself? Lines, paragraphs, n-grams
    c4           is this a page of sentences? Placeholders, code, too few sentences
    fineweb      what removed the most from Common Crawl that hurt: lists, short lines, repeated lines

RULES is the table of all of them with the papers' thresholds and where each comes from. `c4_lines` is C4's other
half: it drops single lines.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping

import regex

from data.web.text import Text, repeated, repeated_ngram_characters, top_ngram_characters

GOPHER_PAPER = "Rae et al. 2021, arXiv:2112.11446, A1.1"
REPETITION_PAPER = "Rae et al. 2021, arXiv:2112.11446, table A1"
C4_PAPER = "Raffel et al. 2020, JMLR 21(140), section 2.2"
FINEWEB_PAPER = "Penedo et al. 2024, arXiv:2406.17557, section 3.6"

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
BULLETS = ("•", "-", "*", "●", "‣")
ELLIPSES = ("...", "…")
SHORT_LINE = 30  # characters
SENTENCE_END = regex.compile(r"\p{STerm}$")
SENTENCES = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)")
CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
END_OF_LINE = (".", "?", "!", '"', "'", "”", "’")
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
LONGEST_WORD = 1000  # characters
FEWEST_WORDS = 3  # of a line


@dataclasses.dataclass(frozen=True)
class Rule:
    """A measure and the values that are kept, low <= value <= high; `top` is where a histogram of it ends."""

    family: str
    name: str
    measure: Callable[[Text], float]
    source: str
    low: float | None = None
    high: float | None = None
    top: float = 1.0

    @property
    def key(self) -> str:
        """Return the name by which reports and settings know the rule."""
        return f"{self.family}.{self.name}"

    def keeps(self, value: float) -> bool:
        """True if a text with this value is kept."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def margin(self, value: float) -> float:
        """Return the distance of a value from the nearest bound, relative to that bound."""
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        return min(abs(value - bound) / (bound or 1.0) for bound in bounds)


def ratio(part: float, whole: float) -> float:
    """Return part / whole, 0 for an empty whole."""
    return part / whole if whole else 0.0


def num_words(text: Text) -> float:
    """Count the words, punctuation not being one."""
    return len(text.words)


def mean_word_length(text: Text) -> float:
    """Return the mean number of characters of a word."""
    return ratio(sum(map(len, text.words)), len(text.words))


def hashes_per_word(text: Text) -> float:
    """Return the number of # for each word or punctuation mark."""
    return ratio(text.text.count("#"), len(text.tokens))


def ellipses_per_word(text: Text) -> float:
    """Return the number of ellipses for each word or punctuation mark."""
    return ratio(sum(map(text.text.count, ELLIPSES)), len(text.tokens))


def bullet_lines(text: Text) -> float:
    """Return the fraction of lines that begin with a bullet."""
    return ratio(sum(line.lstrip().startswith(BULLETS) for line in text.lines), len(text.lines))


def ellipsis_lines(text: Text) -> float:
    """Return the fraction of lines that end with an ellipsis."""
    return ratio(sum(line.rstrip().endswith(ELLIPSES) for line in text.lines), len(text.lines))


def alphabetic_words(text: Text) -> float:
    """Return the fraction of words that hold a letter."""
    return ratio(sum(word.isalpha() or any(map(str.isalpha, word)) for word in text.words), len(text.words))


def stop_words(text: Text) -> float:
    """Count which of eight frequent English words occur, in any case."""
    return len(STOP_WORDS.intersection(map(str.lower, text.words)))


def repeated_line_fraction(text: Text) -> float:
    """Return the fraction of lines that occurred before."""
    return text.repeated_lines[0]


def repeated_line_characters(text: Text) -> float:
    """Return the fraction of characters in lines that occurred before."""
    return ratio(text.repeated_lines[1], len(text.text))


def repeated_paragraph_fraction(text: Text) -> float:
    """Return the fraction of paragraphs that occurred before."""
    return text.repeated_paragraphs[0]


def repeated_paragraph_characters(text: Text) -> float:
    """Return the fraction of characters in paragraphs that occurred before."""
    return ratio(text.repeated_paragraphs[1], len(text.text))


def top_ngram(text: Text, n: int) -> float:
    """Return the fraction of characters covered by the most frequent n-gram."""
    return ratio(top_ngram_characters(text.tokens, n), len(text.text))


def repeated_ngrams(text: Text, n: int) -> float:
    """Return the fraction of characters in n-grams that occurred before."""
    if n >= text.distinct_from:  # a longer n-gram that occurs twice begins with a shorter one that does
        return 0.0
    characters = repeated_ngram_characters(text.tokens, n)
    if not characters:
        text.distinct_from = n
    return ratio(characters, len(text.text))


def curly_braces(text: Text) -> float:
    """Count the braces that open: a page with one is likely code."""
    return text.text.count("{")


def placeholders(text: Text) -> float:
    """Count the occurrences of "lorem ipsum"."""
    return text.text.lower().count("lorem ipsum")


def sentences(text: Text) -> float:
    """Count the sentences by the marks that end them."""
    return len(SENTENCES.findall(text.text))


def punctuated_lines(text: Text) -> float:
    """Return the fraction of lines that end as a sentence does."""
    return ratio(sum(bool(SENTENCE_END.search(line)) for line in text.lines), len(text.lines))


def short_lines(text: Text) -> float:
    """Return the fraction of lines of at most 30 characters."""
    return ratio(sum(len(line) <= SHORT_LINE for line in text.lines), len(text.lines))


def duplicate_line_characters(text: Text) -> float:
    """Return the fraction of characters, line breaks left out, in lines that occurred before."""
    return ratio(repeated(text.lines)[1], len(text.text) - text.text.count("\n"))


def line_breaks_per_word(text: Text) -> float:
    """Return the number of line breaks for each word or punctuation mark."""
    return ratio(text.text.count("\n"), len(text.tokens))


def _gopher(name: str, measure: Callable[[Text], float], **bounds: float) -> Rule:
    return Rule("gopher", name, measure, GOPHER_PAPER, **bounds)


def _repetition(name: str, measure: Callable[[Text], float], high: float) -> Rule:
    return Rule("repetition", name, measure, REPETITION_PAPER, high=high)


TOP_NGRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
REPEATED_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}

RULES = (
    _gopher("words", num_words, low=50, high=100_000, top=1000),
    _gopher("mean_word_length", mean_word_length, low=3, high=10, top=20),
    _gopher("hashes", hashes_per_word, high=0.1),
    _gopher("ellipses", ellipses_per_word, high=0.1),
    _gopher("bullet_lines", bullet_lines, high=0.9),
    _gopher("ellipsis_lines", ellipsis_lines, high=0.3),
    _gopher("alphabetic_words", alphabetic_words, low=0.8),
    _gopher("stop_words", stop_words, low=2, top=10),
    _repetition("lines", repeated_line_fraction, 0.30),
    _repetition("line_characters", repeated_line_characters, 0.20),
    _repetition("paragraphs", repeated_paragraph_fraction, 0.30),
    _repetition("paragraph_characters", repeated_paragraph_characters, 0.20),
    *(
        _repetition(f"top_{n}_gram", functools.partial(top_ngram, n=n), high)
        for n, high in TOP_NGRAMS.items()
    ),
    *(
        _repetition(f"repeated_{n}_grams", functools.partial(repeated_ngrams, n=n), high)
        for n, high in REPEATED_NGRAMS.items()
    ),
    Rule("c4", "lorem_ipsum", placeholders, C4_PAPER, high=0, top=10),
    Rule("c4", "curly_braces", curly_braces, C4_PAPER, high=0, top=100),
    Rule("c4", "sentences", sentences, C4_PAPER, low=5, top=100),
    Rule("fineweb", "punctuated_lines", punctuated_lines, FINEWEB_PAPER, low=0.12),
    Rule("fineweb", "short_lines", short_lines, FINEWEB_PAPER, high=0.67),
    # The paper says 0.1; the code that made the published data says 0.01.
    Rule(
        "fineweb",
        "duplicate_line_characters",
        duplicate_line_characters,
        f"{FINEWEB_PAPER}; its code",
        high=0.01,
    ),
    Rule("fineweb", "line_breaks", line_breaks_per_word, f"{FINEWEB_PAPER}; its code", high=0.3),
)
FAMILIES = tuple(dict.fromkeys(rule.family for rule in RULES))


def choose(
    families: Iterable[str], bounds: Mapping[str, Mapping[str, float]] | None = None
) -> tuple[Rule, ...]:
    """Return the rules of these families, or single ones by their key, with other bounds where `bounds` names them.

    >>> [rule.low for rule in choose(["gopher.words"], {"gopher.words": {"low": 20}})]
    [20]
    """
    wanted = list(families)
    known = {rule.key: rule for rule in RULES}
    for name in [*wanted, *(bounds or {})]:
        if name not in known and name not in FAMILIES:
            raise ValueError(f"no rule {name!r}: use {', '.join(FAMILIES)} or one of {', '.join(known)}")
    chosen = [rule for rule in RULES if rule.family in wanted or rule.key in wanted]
    for name, values in (bounds or {}).items():
        if name not in known or not set(values) <= {"low", "high"}:
            raise ValueError(
                f"bounds of {name!r}: name one rule, such as {RULES[0].key}, and its low or high"
            )
    return tuple(dataclasses.replace(rule, **(bounds or {}).get(rule.key, {})) for rule in chosen)


def judge(text: str, rules: Iterable[Rule]) -> str | None:
    """Return None if every rule keeps a text, else the name of the first that does not.

    >>> judge("Too short.", choose(["gopher"]))
    'gopher.words'
    """
    seen = Text(text)
    return next((rule.key for rule in rules if not rule.keeps(rule.measure(seen))), None)


def c4_lines(text: str) -> str:
    """Return the lines that C4 keeps: of three words or more, ended as a sentence, neither about scripts nor about
    cookies.

    Marks of citations are taken out.

    >>> c4_lines("Home | About\\nThe owl hunts at night.[2]\\nThis site uses cookies to serve you.")
    'The owl hunts at night.'
    """
    kept = (CITATION.sub("", line.strip()) for line in text.split("\n"))
    return "\n".join(line for line in kept if _c4_keeps(line)).strip()


def _c4_keeps(line: str) -> bool:
    words, lower = line.split(), line.lower()
    if not words:
        return True  # what separates paragraphs
    return (
        len(words) >= FEWEST_WORDS
        and line.endswith(END_OF_LINE)
        and not line.endswith(ELLIPSES)
        and "javascript" not in lower
        and not any(phrase in lower for phrase in POLICY)
        and max(map(len, words)) <= LONGEST_WORD
    )
