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


def test_one_word_that_was_never_seen_makes_a_text_impossible_without_smoothing():
    model = ngram.NGram(2, WORDS)
    assert model.perplexity(["the", "dog", "ran"], smooth=False) == math.inf
    assert math.isfinite(model.perplexity(["the", "dog", "ran"]))
    text = ["the", "cat", "sat"]
    product = (3 / 12) * (2 / 3) * (1 / 2)
    assert model.perplexity(text, smooth=False) == pytest.approx(product ** (-1 / 3))


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
