"""A random order of n things that is computed, not stored."""

import numpy as np


def permute(indices: np.ndarray, n: int, key: tuple[int, ...], rounds: int = 6) -> np.ndarray:
    """Where a permutation of 0 … n-1, chosen by `key`, sends `indices`; nothing of length n is stored.

    A Feistel network permutes the 2k-bit numbers, 4^k >= n: each round adds a hash of one half to the other,
    which can be undone and so loses nothing. A value outside 0 … n-1 is sent through again until it falls
    inside ("cycle walking": Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002), fewer than
    4 times on average.

    >>> sorted(permute(np.arange(10), 10, (7, 0)).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    keys = np.random.SeedSequence(key).generate_state(rounds, np.uint64)
    values = _feistel(indices.astype(np.uint64), half, keys)
    while len(outside := np.flatnonzero(values >= n)):
        values[outside] = _feistel(values[outside], half, keys)
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    """Permutes numbers of 2·half bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer, mod 2^64 (Steele, Lea and Flood, 2014): every bit reaches every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
