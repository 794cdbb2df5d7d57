"""The language model before neural ones: count which word follows which. python basics/ngram.py my.txt

An n-gram model guesses the next word from the n - 1 words before it, by how often each followed them. It learns in one
pass and cannot grow, for two reasons that this program measures:

sparsity   the longer the context, the fewer of the n-grams in a new text have ever been counted; each of those has
           probability 0, and a text with a single one of them is impossible. Smoothing helps, but only by falling
           back to shorter contexts
storage    the table grows with the text, towards V^n entries, and similar words share nothing: what it learned about
           "the cat sat" says nothing about "the dog sat"

A neural model (basics/gpt.py) keeps a fixed number of weights instead, and words that are used alike become alike.
"""

import math
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

Probability = Callable[[str, Sequence[str]], float]
DISCOUNT = 0.75  # what each count gives up: about the excess of counts in one text over those in another


class NGram:
    """Counts of the n-grams of a list of words."""

    def __init__(self, n: int, words: Sequence[str]):
        self.n, self.vocabulary = n, sorted(set(words))
        # For contexts of 0 … n - 1 words: context -> how often each word followed it.
        self.followers: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for i, word in enumerate(words):
            for size in range(min(n, i + 1)):
                self.followers[tuple(words[i - size : i])][word] += 1
        self.totals = {context: counts.total() for context, counts in self.followers.items()}
        # For contexts of 0 … n - 2 words: context -> after how many different words each word followed it.
        self.variety: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for context, counts in self.followers.items():
            if context:
                self.variety[context[1:]].update(counts.keys())
        self.variety_totals = {context: counts.total() for context, counts in self.variety.items()}

    def counted(self, word: str, context: Sequence[str]) -> float:
        """Return count(context word) / count(context): the likeliest model of the training text; 0 if never seen."""
        context = self._last(context)
        return self.followers[context][word] / self.totals[context] if context in self.totals else 0.0

    def smoothed(self, word: str, context: Sequence[str]) -> float:
        """Return a probability that is never 0 (Witten and Bell 1991).

        A context that was followed by many different words will meet another new one: as often as it met new ones, it
        asks the context that is one word shorter. The shortest asks the uniform distribution.
        """
        context = self._last(context)
        shorter = (
            self.smoothed(word, context[1:]) if context else 1 / (len(self.vocabulary) + 1)
        )  # + 1: any other word
        if context not in self.totals:
            return shorter
        seen, different = self.followers[context][word], len(self.followers[context])
        return (seen + different * shorter) / (self.totals[context] + different)

    def kneser_ney(self, word: str, context: Sequence[str]) -> float:
        """Return a probability that is never 0 and better than `smoothed` (Kneser and Ney 1995, interpolated).

        Every count gives up DISCOUNT to the context that is one word shorter. There it is not counted how often a word
        followed, but after how many different words: "Francisco" is frequent, yet follows "San" alone, so it is an
        unlikely guess after a word that was never seen before it.
        """
        context = self._last(context)
        shorter = self.kneser_ney(word, context[1:]) if context else 1 / (len(self.vocabulary) + 1)
        longest = len(context) == self.n - 1
        counts, totals = (self.followers, self.totals) if longest else (self.variety, self.variety_totals)
        if context not in totals:
            return shorter
        kept = max(counts[context][word] - DISCOUNT, 0)
        return (kept + DISCOUNT * len(counts[context]) * shorter) / totals[context]

    def _last(self, context: Sequence[str]) -> tuple[str, ...]:
        return tuple(context[len(context) - min(self.n - 1, len(context)) :])

    def perplexity(self, words: Sequence[str], probability: Probability | None = None) -> float:
        """Return exp of the mean -ln P(word): among how many equally likely words the model seems to choose.

        `probability` is one of this model's three (None: kneser_ney).
        """
        probability = probability or self.kneser_ney
        found = [probability(word, words[max(0, i - self.n + 1) : i]) for i, word in enumerate(words)]
        return math.inf if 0.0 in found else math.exp(-sum(map(math.log, found)) / len(found))

    def unseen(self, words: Sequence[str]) -> float:
        """Return the share of the n-grams of `words` that were never counted."""
        ends = range(self.n - 1, len(words))
        return sum(self.counted(words[i], words[i - self.n + 1 : i]) == 0 for i in ends) / len(ends)

    def stored(self) -> int:
        """Return the number of counts kept for contexts of n - 1 words."""
        return sum(len(counts) for context, counts in self.followers.items() if len(context) == self.n - 1)

    def write(self, count: int, seed: int = 0) -> list[str]:
        """Return words, each drawn from what followed the words before it; an unseen context is shortened."""
        rng, words = random.Random(seed), []
        for _ in range(count):
            context = self._last(words)
            while context not in self.totals:
                context = context[1:]
            followers = self.followers[context]
            words += rng.choices(list(followers), list(followers.values()))
        return words


def main() -> None:
    """Count the first nine tenths of a text; judge by the rest, for n from 1 to 5."""
    if len(sys.argv) < 2:
        sys.exit("usage: python basics/ngram.py my.txt")
    words = Path(sys.argv[1]).read_text(encoding="utf-8").split()
    if len(words) < 100:
        sys.exit(f"{sys.argv[1]} has {len(words)} words: give a text of at least 100")
    train, test = words[: len(words) * 9 // 10], words[len(words) * 9 // 10 :]
    print(
        f"{len(train):,} words to count, V = {len(set(train)):,} different ones; {len(test):,} to judge by\n"
    )
    print("n     possible     stored   unseen   perplexity smoothed Kneser-Ney")
    for n in range(1, 6):
        model = NGram(n, train)
        figures = [model.perplexity(test, each) for each in (model.counted, model.smoothed, model.kneser_ney)]
        judged = "{:12.1f} {:8.1f} {:10.1f}".format(*figures)
        print(
            f"{n} {len(model.vocabulary) ** n:12.1e} {model.stored():10,} {model.unseen(test):8.1%} {judged}"
        )
    print(f"\nn = 3 writes: {' '.join(NGram(3, train).write(40))}")


if __name__ == "__main__":
    main()
