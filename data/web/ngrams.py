"""How surprised a model of good text is by another text: an interpolated trigram model of words, its perplexity as a
score.

CCNet (Wenzek et al., 2019) keeps the third of the web that a model of Wikipedia predicts best; very low values are
boilerplate. With absolute discounting (Ney, Essen and Kneser, 1994) each n-gram gives up D = 0.75 of its count, and
what a context u has given up is spread as the shorter context would:

    p(w | u v) = max(c(u v w) - D, 0) / c(u v) + D N(u v) / c(u v) · p(w | v)        N(u v): different words after u v

down to p(w) = 1 / (V + 1) for each of the V words and one for all others. An n-gram is stored as a 64-bit hash in a
sorted array, so a text is scored by binary searches over whole arrays, without a loop over its words.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from data.web import minhash
from data.web.text import Text

ORDER = 3
DISCOUNT = 0.75
BATCH = 1 << 20  # characters that are hashed at a time


class NgramModel:
    """Counts of all n-grams up to `ORDER` words: for each order the hashes of n-grams and contexts, sorted, and their
    counts.
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    @classmethod
    def train(cls, texts: Iterable[str]) -> "NgramModel":
        """Count the n-grams of these texts; ValueError if they hold no word."""
        parts: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(ORDER)]
        batch, size = [], 0
        for text in texts:
            batch.append(text)
            size += len(text)
            if size >= BATCH:
                _add(parts, batch)
                batch, size = [], 0
        _add(parts, batch)
        arrays: dict[str, np.ndarray] = {}
        for order, found in enumerate(parts, start=1):
            grams, contexts = (np.concatenate(each) for each in zip(*found, strict=True))
            keys, first, counts = np.unique(grams, return_index=True, return_counts=True)
            arrays[f"keys{order}"], arrays[f"counts{order}"] = keys, counts
            context_keys, types = np.unique(contexts[first], return_counts=True)
            arrays[f"contexts{order}"], arrays[f"types{order}"] = context_keys, types
            arrays[f"totals{order}"] = np.unique(contexts, return_counts=True)[1]
        if not len(arrays["keys1"]):
            raise ValueError("the reference text holds no word: give files of good text")
        return cls(arrays)

    def save(self, path: str | Path) -> None:
        """Write the model as safetensors."""
        save_file(self.arrays, path)

    @classmethod
    def load(cls, path: str | Path) -> "NgramModel":
        """Read what `save` wrote."""
        return cls(load_file(path))

    def log_probabilities(self, text: str) -> np.ndarray:
        """Return (W,) float64: the natural logarithm of the probability of each word."""
        probability: np.ndarray | float = 1 / (len(self.arrays["keys1"]) + 1)
        for order, (grams, contexts) in enumerate(ngrams([text]), start=1):
            count = _look_up(self.arrays[f"keys{order}"], self.arrays[f"counts{order}"], grams)
            total = _look_up(self.arrays[f"contexts{order}"], self.arrays[f"totals{order}"], contexts)
            types = _look_up(self.arrays[f"contexts{order}"], self.arrays[f"types{order}"], contexts)
            known = np.maximum(total, 1)
            longer = (np.maximum(count - DISCOUNT, 0) + DISCOUNT * types * probability) / known
            probability = np.where(total > 0, longer, probability)
        return np.log(probability)

    def perplexity_of(self, text: Text) -> float:
        """Return exp of the mean surprise of a word; that of an unknown word for a text without words."""
        logs = self.log_probabilities(text.text)
        return float(np.exp(-logs.mean())) if len(logs) else len(self.arrays["keys1"]) + 1.0


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the value of each wanted key, 0 for those that are not there."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0).astype(np.float64)


def _add(parts: list[list[tuple[np.ndarray, np.ndarray]]], texts: Sequence[str]) -> None:
    for found, pair in zip(parts, ngrams(texts), strict=True):
        found.append(pair)


def ngrams(texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each order (W,) hashes of the n-gram that ends in each word, and of its context, the same without
    the word.

    Before the first word of a text there are words that occur nowhere else.
    """
    words, counts = minhash.word_hashes(texts)
    place = np.arange(len(words)) - np.repeat(np.cumsum(counts) - counts, counts)
    pairs = []
    context = np.zeros(len(words), np.uint64)
    with np.errstate(over="ignore"):
        for order in range(1, ORDER + 1):
            pairs.append((minhash.mixed(context + minhash.mixed(words)), context))
            before = np.where(place >= order, np.roll(words, order), np.uint64(0))
            context = minhash.mixed(context * np.uint64(3) + before + np.uint64(order))
    return pairs
