"""The n-gram model: probabilities that sum to one, those of its formula, and a score that tells prose from noise."""

import collections
import itertools

import numpy as np
import pytest

from data.stories import stories
from data.web.ngrams import DISCOUNT, NgramModel
from data.web.text import Text

TEXTS = ["the owl sleeps", "the owl hunts at night", "at night the cat sleeps", "the cat hunts the owl"]


def by_formula(texts, sentence):
    """Return the logarithms of p(w | u v) by dictionaries."""
    counts = collections.Counter()
    for text in texts:
        padded = ["<2>", "<1>", *text.split()]
        for end, order in itertools.product(range(2, len(padded)), range(1, 4)):
            counts[tuple(padded[end - order + 1 : end + 1])] += 1
    vocabulary = {gram[0] for gram in counts if len(gram) == 1}
    padded, logs = ["<2>", "<1>", *sentence.split()], []
    for end in range(2, len(padded)):
        p = 1 / (len(vocabulary) + 1)
        for order in range(1, 4):
            context = tuple(padded[end - order + 1 : end])
            after = {gram[-1]: n for gram, n in counts.items() if len(gram) == order and gram[:-1] == context}
            if after:
                total = sum(after.values())
                p = (max(after.get(padded[end], 0) - DISCOUNT, 0) + DISCOUNT * len(after) * p) / total
        logs.append(np.log(p))
    return logs


@pytest.mark.parametrize("sentence", ["the owl sleeps", "the cat hunts at noon", "a zebra", "owl owl owl"])
def test_probabilities_are_those_of_the_formula(sentence):
    assert NgramModel.train(TEXTS).log_probabilities(sentence) == pytest.approx(by_formula(TEXTS, sentence))


@pytest.mark.parametrize("context", ["", "the", "the owl", "never seen"])
def test_probabilities_sum_to_one(context):
    model, vocabulary = NgramModel.train(TEXTS), {word for text in TEXTS for word in text.split()}
    last = [np.exp(model.log_probabilities(f"{context} {word}")[-1]) for word in [*vocabulary, "unknown"]]
    assert sum(last) == pytest.approx(1)


def test_prose_is_less_surprising_than_noise(tmp_path):
    model = NgramModel.train(itertools.islice(stories(1), 300))
    model.save(tmp_path / "model.safetensors")
    loaded = NgramModel.load(tmp_path / "model.safetensors")
    prose = Text(next(stories(2)))
    noise = Text(" ".join(np.random.default_rng(0).permutation(prose.text.split())))
    assert loaded.perplexity_of(prose) == model.perplexity_of(prose)
    assert 5 * model.perplexity_of(prose) < model.perplexity_of(noise)
    assert model.perplexity_of(Text("...")) == len(model.arrays["keys1"]) + 1


def test_empty_reference_is_refused():
    with pytest.raises(ValueError, match="holds no word"):
        NgramModel.train(["", "!"])
