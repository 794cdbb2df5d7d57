"""Prefetching changes when a batch is made, never which batch or which position."""

import threading
import time

import numpy as np
import pytest
import torch

from data.batches import EpochWindows, RandomWindows, TokenFile, prefetch


@pytest.fixture
def file(tmp_path, write_tokens):
    return TokenFile.open(write_tokens(tmp_path, np.arange(997)), "train")


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_same_batches_in_the_same_order(file):
    plain = RandomWindows(file, 4, 8, seed=1)
    with prefetch(RandomWindows(file, 4, 8, seed=1), "cpu") as fetched:
        for _ in range(20):
            for ours, theirs in zip(next(fetched), next(plain), strict=True):
                assert torch.equal(ours, theirs)


def test_the_position_is_that_of_the_batches_handed_out(file):
    sampler, plain = RandomWindows(file, 4, 8, seed=1), RandomWindows(file, 4, 8, seed=1)
    with prefetch(sampler, "cpu", depth=3) as fetched:
        assert fetched.state_dict() == plain.state_dict()
        for _ in range(5):
            next(fetched), next(plain)
        while sampler.batch < 8:  # wait until batches were made ahead
            time.sleep(0.001)
        assert fetched.state_dict() == plain.state_dict()
    assert torch.equal(next(sampler)[0], next(plain)[0])  # closed: the sampler is there, too


def test_a_sampler_that_ends_ends_the_prefetcher(file):
    expected = [x for x, _ in EpochWindows(file, 100, 8, epochs=1)]
    got = [x for x, _ in prefetch(EpochWindows(file, 100, 8, epochs=1), "cpu")]
    assert len(got) == len(expected) and all(map(torch.equal, got, expected))
    assert not threads()


def test_close_ends_the_thread_and_the_iterator(file):
    fetched = prefetch(RandomWindows(file, 4, 8), "cpu")
    next(fetched)
    fetched.close()
    fetched.close()  # twice is once
    assert not threads()
    with pytest.raises(StopIteration):
        next(fetched)


def test_an_error_of_the_sampler_reaches_the_caller(file, monkeypatch):
    def broken(self):
        raise OSError("the disk is gone")

    monkeypatch.setattr(RandomWindows, "__next__", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        next(prefetch(RandomWindows(file, 4, 8), "cpu"))
    assert not threads()
