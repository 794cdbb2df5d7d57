"""Distinct-n, repetition and the longest copied run, by hand and against naive search."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation import originality

TEXTS = st.lists(st.lists(st.integers(0, 2), max_size=12), max_size=3)


def longest_by_search(ids, training):
    runs = [ids[i:j] for i in range(len(ids)) for j in range(i + 1, len(ids) + 1)]
    held = {tuple(training[i : i + len(run)]) for run in runs for i in range(len(training))}
    return max((len(run) for run in runs if tuple(run) in held), default=0)


@given(TEXTS, st.lists(st.integers(0, 2), max_size=30))
def test_the_longest_copy_is_the_longest_run_that_stands_in_both(texts, training):
    found = originality.longest_copies(texts, training)
    assert found == [longest_by_search(ids, training) for ids in texts]


def test_a_text_copied_whole_is_found_and_a_new_one_is_not():
    training = list(range(1000))
    assert originality.longest_copies([training[300:450], [5, 3, 1]], training) == [150, 1]


def test_distinct_and_repetition_by_hand():
    texts = ["a b a b a b", "c c c c c"]
    assert originality.distinct(texts, 1) == 3 / 11
    assert originality.distinct(texts, 2) == 3 / 9
    assert originality.repetition(texts, 4) == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert originality.distinct(["a"], 2) == originality.repetition([], 4) == 0.0
