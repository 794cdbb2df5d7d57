"""basics/ngram.py against counts by hand and the axioms of probability."""

import itertools
import math
import runpy

import pytest

from basics import ngram

WORDS = ["the", "cat", "sat", ".", "the", "dog", "sat", ".", "the", "cat", "ran", "."]


def test_counts_by_hand():
    model = ngram.NGram(2, WORDS)
    assert model.counted("cat", ["the"]) == pytest.approx(2 / 3)
    assert model.counted("ran", ["a", "cat"]) == 1 / 2  # the last word is all it looks at
    assert model.counted("cat", ["dog"]) == 0 == model.counted("cat", ["elephant"])
    assert ngram.NGram(1, WORDS).counted("the", []) == 3 / 12


def test_smoothing_by_hand():
    model = ngram.NGram(2, WORDS)
    uniform = 1 / 7  # the . cat dog sat ran, and any other word
    one = (2 + 6 * uniform) / (12 + 6)  # cat: 2 of 12 words, 6 different ones
    assert model.smoothed("cat", []) == pytest.approx(one)
    assert model.smoothed("cat", ["the"]) == pytest.approx((2 + 2 * one) / (3 + 2))
    assert model.smoothed("cat", ["elephant"]) == pytest.approx(one)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("context", [[], ["the"], ["the", "cat"], ["sat", ".", "the"], ["a", "b", "c"]])
def test_smoothed_probabilities_sum_to_one(n, context):
    model = ngram.NGram(n, WORDS)
    probabilities = [model.smoothed(word, context) for word in [*model.vocabulary, "elephant"]]
    assert sum(probabilities) == pytest.approx(1) and min(probabilities) > 0


def test_kneser_ney_by_hand():
    """Different pairs: the cat, cat sat, sat ., . the, the dog, dog sat, cat ran, ran . : 8; ending in cat: 1."""
    model, d = ngram.NGram(2, WORDS), 0.75
    one = (1 - d + d * 6 / 7) / 8  # of 6 words; cat follows one word, whatever its count
    assert model.kneser_ney("cat", []) == pytest.approx(one)
    assert model.kneser_ney("sat", []) == pytest.approx((2 - d + d * 6 / 7) / 8)  # after cat and dog
    assert model.kneser_ney("cat", ["the"]) == pytest.approx((2 - d + d * 2 * one) / 3)
    assert model.kneser_ney("cat", ["elephant"]) == pytest.approx(one)


@pytest.mark.parametrize("n", [2, 3])
def test_kneser_ney_is_that_of_nltk(n):
    """But for the words alone, which ours mixes with the uniform distribution, so that none has probability 0."""
    lm = pytest.importorskip("nltk.lm")
    from nltk.util import everygrams

    theirs = lm.KneserNeyInterpolated(n, discount=0.75)
    theirs.fit([list(everygrams(WORDS, max_len=n))], vocabulary_text=WORDS)
    ours, context = ngram.NGram(n, WORDS), ["sat", ".", "the"][-(n - 1) :]
    for word in ours.vocabulary:
        weight = 1.0  # of the words alone in the whole
        for size in range(n - 1, 0, -1):
            short = tuple(context[-size:])
            table, totals = (
                (ours.followers, ours.totals) if size == n - 1 else (ours.variety, ours.variety_totals)
            )
            weight *= 0.75 * len(table[short]) / totals[short]
        expected = theirs.score(word, context) - weight * theirs.score(word)
        assert ours.kneser_ney(word, context) - weight * ours.kneser_ney(word, []) == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_kneser_ney_sums_to_one(n):
    model = ngram.NGram(n, WORDS)
    for context in ([], ["the"], ["sat", ".", "the"], ["a", "b", "c"]):
        probabilities = [model.kneser_ney(word, context) for word in [*model.vocabulary, "elephant"]]
        assert sum(probabilities) == pytest.approx(1) and min(probabilities) > 0


def test_one_word_that_was_never_seen_makes_a_text_impossible_without_smoothing():
    model = ngram.NGram(2, WORDS)
    assert model.perplexity(["the", "dog", "ran"], model.counted) == math.inf
    assert math.isfinite(model.perplexity(["the", "dog", "ran"]))
    text = ["the", "cat", "sat"]
    product = (3 / 12) * (2 / 3) * (1 / 2)
    assert model.perplexity(text, model.counted) == pytest.approx(product ** (-1 / 3))


def test_sparsity_and_storage_grow_with_n():
    models = [ngram.NGram(n, WORDS) for n in (1, 2, 3)]
    assert [model.stored() for model in models] == [
        len({*zip(*(WORDS[i:] for i in range(n)), strict=False)}) for n in (1, 2, 3)
    ]
    assert [model.unseen(["the", "dog", "ran", "."]) for model in models] == [0, 1 / 3, 1]


def test_it_writes_only_what_it_has_read():
    pairs = set(itertools.pairwise(WORDS))
    text = ngram.NGram(2, WORDS).write(50, seed=1)
    ends = {pair for pair in itertools.pairwise(text) if pair not in pairs}
    assert len(text) == 50 and ends <= {
        (WORDS[-1], word) for word in WORDS
    }  # after its last word it begins again


def test_it_runs_by_itself(tmp_path, monkeypatch, capsys):
    (tmp_path / "my.txt").write_text(" ".join(WORDS * 20))
    monkeypatch.setattr("sys.argv", ["ngram.py", str(tmp_path / "my.txt")])
    runpy.run_path(ngram.__file__, run_name="__main__")
    assert "n = 3 writes: " in capsys.readouterr().out
