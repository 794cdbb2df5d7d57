"""How varied a model's texts are, and how much of them is copied from its training data."""

from collections.abc import Iterable, Sequence


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return all sequences of n consecutive words.

    >>> ngrams(["a", "b", "c"], 2)
    [('a', 'b'), ('b', 'c')]
    """
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct(texts: Sequence[str], n: int) -> float:
    """Return the different n-grams over all n-grams of all texts (distinct-n, Li et al. 2016); 0 if there are none.

    >>> distinct(["the cat the cat"], 1)
    0.5
    """
    found = [gram for text in texts for gram in ngrams(text.split(), n)]
    return len(set(found)) / len(found) if found else 0.0


def repetition(texts: Sequence[str], n: int = 4) -> float:
    """Return the mean fraction of a text's n-grams that it repeats (seq-rep-n, Welleck et al. 2019).

    >>> repetition(["a b a b a b"], n=2)
    0.6
    """
    grams = [found for text in texts if (found := ngrams(text.split(), n))]
    return sum(1 - len(set(found)) / len(found) for found in grams) / len(grams) if grams else 0.0


class Substrings:
    """A suffix automaton: the smallest machine that accepts the substrings of a sequence (Blumer et al. 1985).

    A state represents all substrings that end at the same places; `link` leads to the longest suffix that ends at
    more of them. It has less than two states per token, and reads any other text in time linear in its length.
    """

    def __init__(self) -> None:
        self.edges: list[dict[int, int]] = [{}]
        self.link = [-1]
        self.length = [0]  # of the longest substring of each state
        self.last = 0  # the state of the whole sequence

    def append(self, token: int) -> None:
        """Append a token to the sequence."""
        new = self._state({}, 0, self.length[self.last] + 1)
        at, self.last = self.last, new
        while at >= 0 and token not in self.edges[at]:
            self.edges[at][token] = new
            at = self.link[at]
        if at < 0:
            return
        old = self.edges[at][token]
        self.link[new] = old if self.length[old] == self.length[at] + 1 else self._split(at, token, old)

    def _split(self, at: int, token: int, old: int) -> int:
        """Move the substrings of `old` that now end in a second place into a new state."""
        copy = self._state(dict(self.edges[old]), self.link[old], self.length[at] + 1)
        while at >= 0 and self.edges[at].get(token) == old:
            self.edges[at][token] = copy
            at = self.link[at]
        self.link[old] = copy
        return copy

    def _state(self, edges: dict[int, int], link: int, length: int) -> int:
        self.edges.append(edges)
        self.link.append(link)
        self.length.append(length)
        return len(self.edges) - 1

    def matches(self, tokens: Iterable[int]) -> list[int]:
        """Return for each state the length of its longest substring that `tokens` contains; 0 for none."""
        edges, link, length = self.edges, self.link, self.length
        best = [0] * len(edges)
        state = size = 0
        for token in tokens:
            while state and token not in edges[state]:
                state = link[state]
                size = length[state]
            if token in edges[state]:
                state = edges[state][token]
                size += 1
            if size > best[state]:
                best[state] = size
        for state in sorted(range(1, len(edges)), key=length.__getitem__, reverse=True):
            if best[state] and link[state] > 0:  # what ends here also ends with all its suffixes
                best[link[state]] = length[link[state]]
        return best


def longest_copies(texts: Sequence[Sequence[int]], training: Iterable[int]) -> list[int]:
    """Return for each text of ids the length of its longest subsequence of consecutive ids that `training` contains.

    >>> longest_copies([[1, 2, 3, 4], [9, 9]], [7, 2, 3, 4, 1, 2, 5])
    [3, 0]
    """
    automaton = Substrings()
    for number, ids in enumerate(texts, 1):
        for token in [*ids, -number]:  # no training data holds a negative id: runs end with their text
            automaton.append(token)
    best = automaton.matches(training)
    return [_longest(automaton, best, ids) for ids in texts]


def _longest(automaton: Substrings, best: Sequence[int], ids: Sequence[int]) -> int:
    """Return the longest match of any suffix of any prefix of ids, a text of the automaton."""
    state, longest = 0, 0
    for size, token in enumerate(ids, 1):
        state = automaton.edges[state][token]
        at = state
        while at > 0 and not best[at]:
            at = automaton.link[at]
        longest = max(longest, min(best[at], size) if at > 0 else 0)
    return longest
