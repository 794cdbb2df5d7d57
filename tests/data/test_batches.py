"""Samplers against the plain slices of the array that they read."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.batches import DocumentStarts, EpochWindows, RandomWindows, StridedWindows, TokenFile
from data.sampler import permute

B, T = 4, 8


@pytest.fixture
def file(tmp_path, write_tokens):
    return TokenFile.open(write_tokens(tmp_path, np.arange(1, 998)), "train")  # token i is i + 1


def make(kind, file, **share):
    if kind == "random":
        return RandomWindows(file, B, T, seed=3, **share)
    if kind == "starts":
        return DocumentStarts(file, B, T, seed=3, **share)
    if kind == "epoch":
        return EpochWindows(file, B, T, seed=3, **share)
    return StridedWindows(file, B, T, stride=3, seed=3, **share)


KINDS = ("random", "starts", "epoch", "strided")


@pytest.mark.parametrize("kind", KINDS)
def test_y_is_x_one_token_later(file, kind):
    for x, y in islice(make(kind, file), 100):
        assert x.dtype == y.dtype == torch.int64 and x.shape == y.shape == (B, T)
        assert x.is_contiguous() and y.is_contiguous()
        starts = x[:, 0].numpy() - 1
        for row, start in enumerate(starts):
            assert x[row].tolist() == file.tokens[start : start + T].tolist()
            assert y[row].tolist() == file.tokens[start + 1 : start + T + 1].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_resumes_at_the_very_next_batch(file, kind):
    sampler = make(kind, file)
    for _ in range(70):  # beyond the first epoch
        next(sampler)
    state = json.loads(json.dumps(sampler.state_dict()))
    rest = [next(sampler) for _ in range(5)]
    fresh = make(kind, file)
    fresh.load_state_dict(state)
    for (x, y), (fresh_x, fresh_y) in zip(rest, islice(fresh, 5), strict=True):
        assert torch.equal(x, fresh_x) and torch.equal(y, fresh_y)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_together_see_what_one_process_sees(file, kind):
    ranks = [make(kind, file, rank=rank, world_size=3) for rank in range(3)]
    one = make(kind, file)
    one.batch_size = 3 * B
    for _ in range(60):
        assert torch.equal(torch.cat([next(rank)[0] for rank in ranks]), next(one)[0])


def test_random_starts_are_uniform(file):
    sampler = RandomWindows(file, 1000, T, seed=0)
    starts = np.concatenate([next(sampler)[0][:, 0].numpy() - 1 for _ in range(100)])
    counts = np.bincount(starts, minlength=len(file) - T)
    assert len(counts) == len(file) - T and counts.min() > 0  # the last start still has its next token
    expected = len(starts) / len(counts)
    degrees = len(counts) - 1
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_squared - degrees) < 5 * np.sqrt(2 * degrees)  # 5 standard deviations


def test_an_epoch_holds_every_window_once(file):
    sampler = EpochWindows(file, B, T, seed=1, epochs=2)
    windows = [int(start) // T for x, _ in sampler for start in x[:, 0] - 1]
    n = (len(file) - 1) // T
    assert len(sampler) == n and len(windows) == 2 * n
    first, second = windows[:n], windows[n:]
    assert sorted(first) == sorted(second) == list(range(n))
    assert first != second and first != sorted(first)


@pytest.mark.parametrize("stride", [1, 3, T, 11])
def test_strided_windows_against_a_loop(file, stride):
    expected = [list(file.tokens[i : i + T]) for i in range(0, len(file) - T, stride)]
    sampler = StridedWindows(file, B, T, stride=stride, epochs=1)
    assert [row.tolist() for x, _ in sampler for row in x] == expected
    assert len(sampler) == len(expected)


def test_a_file_of_one_block_and_one_token_is_enough_and_less_is_refused(tmp_path, write_tokens):
    file = TokenFile.open(write_tokens(tmp_path, np.arange(T + 1)), "train")
    x, y = next(RandomWindows(file, 1, T, seed=0))
    assert x.tolist() == [list(range(T))] and y.tolist() == [list(range(1, T + 1))]
    with pytest.raises(ValueError, match=f"holds {T + 1} tokens, too few for a block of {T + 1} and"):
        RandomWindows(file, 1, T + 1, seed=0)


@pytest.mark.parametrize(
    ("share", "reason"),
    [({"rank": 2, "world_size": 2}, "rank must be"), ({"batch_size": 0}, "at least 1")],
)
def test_impossible_shares_are_refused(file, share, reason):
    with pytest.raises(ValueError, match=reason):
        RandomWindows(file, **{"batch_size": B, "block_size": T, **share})


def test_the_position_of_another_kind_is_refused(file):
    with pytest.raises(ValueError, match="position is one of RandomWindows"):
        make("epoch", file).load_state_dict(make("random", file).state_dict())


@given(st.integers(1, 3000), st.integers(0, 2**63))
def test_permute_is_a_permutation(n, seed):
    assert np.array_equal(np.sort(permute(np.arange(n), n, (seed, 0))), np.arange(n))


def test_permute_sends_every_place_everywhere():
    n, keys = 7, 7000
    images = np.stack([permute(np.arange(n), n, (0, key)) for key in range(keys)])  # (keys, n)
    for place in range(n):
        counts = np.bincount(images[:, place], minlength=n)
        assert abs(counts - keys / n).max() < 5 * np.sqrt(keys / n)


def test_windows_start_where_documents_do_or_a_whole_block_later(tmp_path, write_tokens):
    end = 0  # documents of 3, 20 and 5 tokens and a last one too near the end of the file
    ids = np.concatenate([[7] * 2, [end], np.arange(10, 29), [end], [8] * 4, [end], [9] * 6, [end]])
    file = TokenFile.open(write_tokens(tmp_path, ids), "train")
    seen = {tuple(row.tolist()) for x, _ in islice(DocumentStarts(file, B, T, seed=1), 200) for row in x}
    expected = {0, 2, 2 + T, 2 + 2 * T, 22}  # the last document and its block would pass the end
    assert seen == {tuple(ids[start : start + T].tolist()) for start in expected}
