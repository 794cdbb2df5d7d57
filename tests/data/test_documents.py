"""Packed and padded documents against a naive reading of the same array."""

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data import batches
from data.batches import IGNORED, Documents, TokenFile, document_ids, first_fit

END, B, T = 0, 4, 16


def corpus(seed=0, count=300, longest=40):
    """Documents without END of 0 … longest-1 tokens."""
    random = np.random.default_rng(seed)
    return [random.integers(1, 900, random.integers(longest)).tolist() for _ in range(count)]


def flat(texts):
    return np.array([token for text in texts for token in [*text, END]])


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr(batches, "GROUP", 64)  # several groups to an epoch


@pytest.fixture
def file(tmp_path, write_tokens):
    return TokenFile.open(write_tokens(tmp_path, flat(corpus())), "train")


def pairs_by_row(x, y):
    """Return the (input, target) pairs of each row that count."""
    return [
        [(i, t) for i, t in zip(*rows, strict=True) if t != IGNORED]
        for rows in zip(x.tolist(), y.tolist(), strict=True)
    ]


@pytest.mark.parametrize("mode", ["pack", "pad"])
def test_an_epoch_holds_every_pair_of_every_document_once_and_no_other(file, mode):
    expected = Counter(pair for text in corpus() for pair in zip([END, *text], [*text, END], strict=True))
    sampler = Documents(file, B, T, seed=2, mode=mode, epochs=1)
    assert Counter(pair for x, y in sampler for row in pairs_by_row(x, y) for pair in row) == expected


def test_documents_that_fit_a_row_are_never_cut(tmp_path, write_tokens):
    texts = corpus(longest=T)
    file = TokenFile.open(write_tokens(tmp_path, flat(texts)), "train")
    told = []
    for x, y in Documents(file, B, T, seed=2, mode="pack", epochs=1):
        ids = document_ids(y, END)
        for row in range(len(x)):
            for document in range(int(ids[row].max()) + 1):
                mine = (ids[row] == document) & (y[row] != IGNORED)
                if mine.any():
                    assert x[row][mine][0] == END and y[row][mine][-1] == END
                    told.append(y[row][mine][:-1].tolist())
    assert sorted(told) == sorted(texts)


def test_padding_comes_last_and_is_ignored_by_cross_entropy(file):
    x, y = next(Documents(file, 32, T, seed=0, mode="pad"))
    counts = (y != IGNORED).sum(1)
    assert counts.min() < T  # some rows are padded
    for row, count in enumerate(counts):
        assert (y[row, :count] != IGNORED).all() and (x[row, count:] == END).all()
    logits = torch.randn(32, T, 1000)
    kept = y != IGNORED
    assert torch.allclose(
        torch.nn.functional.cross_entropy(logits.view(-1, 1000), y.view(-1)),
        torch.nn.functional.cross_entropy(logits[kept], y[kept]),
    )


def test_packing_wastes_little_and_padding_much(file):
    def share_used(mode):
        return np.mean(
            [float((y != IGNORED).float().mean()) for _, y in Documents(file, B, T, mode=mode, epochs=1)]
        )

    assert share_used("pack") > 0.9 > 0.8 > share_used("pad")


@pytest.mark.parametrize("mode", ["pack", "pad"])
def test_resumes_at_the_very_next_batch(file, mode):
    sampler = Documents(file, B, T, seed=5, mode=mode)
    for _ in range(150):  # several groups, beyond the first epoch
        next(sampler)
    state = json.loads(json.dumps(sampler.state_dict()))
    assert state["epoch"] >= 1
    fresh = Documents(file, B, T, seed=0, mode=mode)
    fresh.load_state_dict(state)
    for _ in range(30):
        for ours, theirs in zip(next(sampler), next(fresh), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("mode", ["pack", "pad"])
def test_ranks_together_see_what_one_process_sees(file, mode):
    ranks = [Documents(file, B, T, rank=rank, world_size=3, mode=mode) for rank in range(3)]
    for x, y in islice(Documents(file, 3 * B, T, mode=mode), 50):
        parts = [next(rank) for rank in ranks]
        assert torch.equal(torch.cat([part[0] for part in parts]), x)
        assert torch.equal(torch.cat([part[1] for part in parts]), y)


def test_epochs_come_in_different_orders(file):
    sampler = Documents(file, 1, T, mode="pad")
    first, second = ([next(sampler)[1].tolist() for _ in range(len(sampler))] for _ in range(2))
    assert sorted(first) == sorted(second) and first != second


def test_a_pad_token_of_the_vocabulary_is_used(file):
    file.meta.special_tokens["<|pad|>"] = 999
    x, y = next(Documents(file, 32, T, mode="pad"))
    assert ((x == 999) == (y == IGNORED)).all()


def test_an_unknown_mode_is_refused(file):
    with pytest.raises(ValueError, match="pack or pad"):
        Documents(file, B, T, mode="wrap")


@given(st.lists(st.integers(1, T), max_size=60))
def test_first_fit_against_a_loop(lengths):
    rows = []
    for index, length in enumerate(lengths):
        fitting = (row for row in rows if sum(lengths[i] for i in row) + length <= T)
        row = next(fitting, None)
        if row is None:
            rows.append(row := [])
        row.append(index)
    assert first_fit(np.array(lengths, int), T) == rows
