"""Prompt lookup: guess the next tokens by finding the last few in the text so far, and take what followed them there.

A step over a few tokens reads the weights once, as one over a single token does, so guesses cost little; those that the
rules would have drawn anyway are kept. The draw of each token is a function of its logits and its own random number, so
the text is the same as without guesses, greedy or sampled. Saxena 2023; speculative decoding: Leviathan et al. 2023.
"""

from collections.abc import Sequence

LONGEST, SHORTEST = 3, 2  # tokens of the end that must have occurred before


def guess(ids: Sequence[int], count: int) -> list[int]:
    """Return up to `count` tokens that followed the latest earlier occurrence of the last 3, else 2, of `ids`.

    >>> guess([5, 6, 7, 8, 9, 5, 6, 7], 2)
    [8, 9]
    >>> guess([1, 2, 3], 2)
    []
    """
    for size in range(LONGEST, SHORTEST - 1, -1):
        end = list(ids[-size:])
        for start in range(len(ids) - size - 1, -1, -1):
            if ids[start] == end[0] and list(ids[start : start + size]) == end:
                return list(ids[start + size : start + size + count])
    return []
