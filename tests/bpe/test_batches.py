"""Batches over processes give what one process gives, by every way there and back, and leave nothing behind."""

import gc
import multiprocessing
import shutil
from multiprocessing.connection import wait
from multiprocessing.shared_memory import SharedMemory

import pytest

from bpe import Tokenizer, batches, train
from data.stories import corpus

STORIES = list(corpus(60_000))
TEXTS = ["", "one", *STORIES, " ".join(STORIES), "half \ud83d\ude00 \ud83d 日本語<s>", "", "no cut" * 3000]


def make_tokenizer() -> Tokenizer:
    return train(STORIES, 400, special_tokens=["<s>"], progress=False)


@pytest.mark.parametrize("pattern", ["gpt2", r"\w+"])
@pytest.mark.parametrize(("batch", "largest"), [(1 << 20, 1 << 23), (2000, 1 << 23), (5000, 10_000)])
def test_every_way_gives_the_same(monkeypatch, pattern, batch, largest):
    """Small batches, long texts in parts, and texts too large for a block of shared memory."""
    monkeypatch.setattr(batches, "BATCH", batch)
    monkeypatch.setattr(batches, "LARGEST", largest)
    tokenizer = Tokenizer(make_tokenizer().merges, ["<s>"], pattern)
    expected = [tokenizer.encode(text, "all") for text in TEXTS]
    assert tokenizer.encode_batch(TEXTS, num_workers=3, allowed_special="all") == expected


def test_the_workers_stay_until_the_tokenizer_goes():
    tokenizer = make_tokenizer()
    before = set(multiprocessing.active_children())
    tokenizer.encode_batch(TEXTS, num_workers=2)
    workers = set(multiprocessing.active_children()) - before
    tokenizer.encode_batch(TEXTS, num_workers=2)
    assert set(multiprocessing.active_children()) - before == workers
    ends = [worker.sentinel for worker in workers]
    del tokenizer
    gc.collect()
    # Not by join: the executor's own thread may have asked for the exit code first, and only one is told it.
    assert len(wait(ends, timeout=30)) == len(ends) == 1


@pytest.fixture
def names(monkeypatch) -> list[str]:
    """Return the names of the blocks of shared memory that are made."""
    names = []

    def remember(*args, **kwargs):
        block = SharedMemory(*args, **kwargs)
        names.append(block.name)
        return block

    monkeypatch.setattr(batches, "SharedMemory", remember)
    return names


@pytest.mark.parametrize("room", [0, 1])
def test_no_more_shared_memory_is_used_than_there_is(monkeypatch, tmp_path, names, room):
    free = shutil.disk_usage(tmp_path)._replace(free=room * batches.LARGEST + 4096)
    monkeypatch.setattr(batches, "SHARED", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    monkeypatch.setattr(batches, "BATCH", 2000)
    tokenizer = make_tokenizer()
    expected = [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer.encode_batch(TEXTS, num_workers=2) == expected
    assert len(names) == room


def test_two_batches_at_once_and_one_that_is_left(monkeypatch, names):
    tokenizer = make_tokenizer()
    monkeypatch.setattr(batches, "BATCH", 2000)
    first = tokenizer.encode_batch_to_numpy(TEXTS, num_workers=2)
    second = tokenizer.encode_batch_to_numpy(TEXTS[::-1], num_workers=2)
    for text, other in list(zip(TEXTS, TEXTS[::-1], strict=True))[:20]:
        assert next(first).tolist() == tokenizer.encode(text)
        assert next(second).tolist() == tokenizer.encode(other)
    first.close()
    second.close()
    assert names
    for name in names:
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)
