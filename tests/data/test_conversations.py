"""Packed conversations: every answer once, nothing else learned, and no cut conversation."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from bpe import Tokenizer
from data.batches import IGNORED
from data.conversations import Conversations
from data.tokenfile import Meta, TokenFile, open_mask, sha256

END = 256  # <|endoftext|>
# (ids, mask) of conversations, without the end
TALKS = [
    ([1, 2, 3, 4], [0, 0, 1, 1]),
    ([5, 6], [0, 1]),
    ([7, 8, 9, 10, 11, 12], [0, 1, 1, 0, 1, 1]),
    ([13], [1]),
    ([14, 15, 16], [0, 0, 0]),
    ([*range(20, 40)], [0] * 18 + [1] * 2),
]


def write(directory, talks, mask=None):
    tokenizer = Tokenizer([], ["<|endoftext|>"])
    tokenizer.save(directory / "tokenizer.json")
    ids = [id for talk, _ in talks for id in [*talk, END]]
    flags = [flag for _, learned in talks for flag in [*learned, 0]] if mask is None else mask
    np.array(ids, np.uint16).tofile(directory / "train.bin")
    np.array(flags, np.uint8).tofile(directory / "train.mask")
    meta = Meta(
        dtype="uint16",
        vocab_size=257,
        tokens={"train": len(ids)},
        documents={"train": len(talks)},
        bytes={"train": 1},
        special_tokens={"<|endoftext|>": END},
        tokenizer_sha256=sha256(directory / "tokenizer.json"),
        source=["a test"],
    )
    (directory / "meta.json").write_text(json.dumps(dataclasses.asdict(meta)))
    return TokenFile.open(directory, "train")


def sampler(directory, size=12, talks=TALKS, **options):
    return Conversations(write(directory, talks), batch_size=2, block_size=size, epochs=1, **options)


def learned(batches):
    """Return the sequences of learned tokens, each with the token before it."""
    found = []
    for batch in batches:
        for x, y in zip(batch.x.tolist(), batch.y.tolist(), strict=True):
            place = 0
            while place < len(y):
                if y[place] == IGNORED:
                    place += 1
                    continue
                run = list(itertools.takewhile(lambda id: id != IGNORED, y[place:]))
                found.append([x[place], *run])
                place += len(run)
    return sorted(found)


@pytest.mark.parametrize("mode", ["pack", "pad"])
def test_every_answer_is_learned_once(tmp_path, mode):
    found = learned(sampler(tmp_path, mode=mode))
    assert found == [[2, 3, 4], [5, 6], [7, 8, 9], [10, 11, 12], [END, 13]]


def test_conversations_are_told_apart(tmp_path):
    for batch in sampler(tmp_path):
        for x, documents in zip(batch.x.tolist(), batch.documents.tolist(), strict=True):
            for id, number in zip(x, documents, strict=True):
                mine = {other for other, its in zip(x, documents, strict=True) if its == number} - {END}
                assert id == END or any(mine <= set(talk) for talk, _ in TALKS)


def test_rows_are_packed(tmp_path):
    rows = torch.cat([batch.documents for batch in sampler(tmp_path)])
    assert len(rows) == 2 and rows.max() >= 2


def test_conversations_that_are_too_long_or_teach_nothing_are_counted(tmp_path):
    found = sampler(tmp_path)
    assert (found.too_long, found.unlearned, len(found)) == (1, 1, 4)


def test_truncating_keeps_the_beginning(tmp_path):
    found = sampler(tmp_path, truncate=True)  # of the long one nothing is learned then
    assert (found.too_long, found.unlearned) == (1, 2)
    longer = sampler(tmp_path, size=19, truncate=True)
    assert longer.unlearned == 1 and [37, 38] in learned(longer)


def test_a_mask_of_zeros_is_refused(tmp_path):
    silent = [(ids, [0] * len(ids)) for ids, _ in TALKS]
    with pytest.raises(ValueError, match="no conversation with a learned token"):
        sampler(tmp_path, talks=silent)


WRONG_MASKS = {"too short": [1], "not 0 and 1": [2] * 42}


@pytest.mark.parametrize("mask", WRONG_MASKS)
def test_a_wrong_mask_is_refused(tmp_path, mask):
    with pytest.raises(ValueError, match=r"train\.mask holds"):
        open_mask(write(tmp_path, TALKS, WRONG_MASKS[mask]))


def test_a_missing_mask_is_refused(tmp_path):
    file = write(tmp_path, TALKS)
    (tmp_path / "train.mask").unlink()
    with pytest.raises(FileNotFoundError, match="python -m alignment data"):
        open_mask(file)


def test_the_position_can_be_restored(tmp_path):
    endless = Conversations(write(tmp_path, TALKS), 1, 12)
    before = [next(endless) for _ in range(3)][2]
    again = Conversations(endless.file, 1, 12)
    next(again), next(again)
    state = again.state_dict()
    other = Conversations(endless.file, 1, 12)
    other.load_state_dict(state)
    assert torch.equal(next(other).y, before.y)
