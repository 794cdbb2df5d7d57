"""Conversations to ids with a mask of what is learned, by worker processes, which read nothing of torch."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from common.workers import ordered_map, sensible_workers
from inference.chat import ChatTemplate, Message

WORTH_A_WORKER = 2_000  # conversations; for fewer, starting a process takes longer than it saves
JOB = 500  # conversations that a worker gets at once


class Conversation(NamedTuple):
    """An answered conversation, and whether its last answer ends where it ends."""

    messages: Sequence[Message]
    finished: bool = True


class Encoded(NamedTuple):
    """A conversation of T tokens, up to and including the one that ends a text."""

    ids: np.ndarray
    """(T,) of the tokenizer's dtype."""
    mask: np.ndarray
    """(T,) uint8: 1 for each token that is learned."""
    num_bytes: int
    """Bytes of the messages."""


def encode_all(
    template: ChatTemplate, conversations: Sequence[Conversation], num_workers: int | None = None
) -> Iterator[Encoded]:
    """Yield the conversations as ids, in their order; ValueError for one that cannot be encoded."""
    workers = sensible_workers(num_workers, len(conversations), WORTH_A_WORKER)
    starts = range(0, len(conversations), JOB)
    jobs = (conversations[start : start + JOB] for start in starts)
    return itertools.chain.from_iterable(ordered_map(_encode_job, template, jobs, workers))


def _encode_job(template: ChatTemplate, conversations: Sequence[Conversation]) -> list[Encoded]:
    return [_encode(template, *each) for each in conversations]


def _encode(template: ChatTemplate, messages: Sequence[Message], finished: bool) -> Encoded:
    ids, mask = template.encode(messages)
    if not finished:  # the end of the turn is not learned, nor what the template puts after it
        mask[len(mask) - 1 - mask[::-1].index(1)] = 0
    # The end of the text before is the beginning of this one.
    opening = int(ids[0] == template.end_of_text)
    return Encoded(
        np.array([*ids[opening:], template.end_of_text], template.tokenizer.dtype),
        np.array([*mask[opening:], 0], np.uint8),
        sum(len(each.content.encode()) for each in messages),
    )
