"""Which documents came before: a growing set of 64-bit hashes."""

import numpy as np


class Seen:
    """A set of uint64 at 8 bytes each: sorted runs, of which each is more than twice as long as the next.

    With 64 bits, ten million different documents have a chance of 3 in a million that any two are taken for one.
    """

    def __init__(self, hashes: np.ndarray | None = None) -> None:
        """Starts with the `hashes` (N,) that were seen already."""
        self._runs: list[np.ndarray] = []
        if hashes is not None and len(hashes):
            self._runs.append(np.sort(hashes))

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Adds (N,) uint64; returns (N,) bool: True where a hash comes for the first time.

        >>> Seen().add(np.array([7, 8, 7], np.uint64)).tolist()
        [True, True, False]
        """
        new = np.zeros(len(hashes), bool)
        new[np.unique(hashes, return_index=True)[1]] = True
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            new &= run[place] != hashes
        if new.any():
            self._runs.append(np.sort(hashes[new]))
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate([self._runs[-1], last]), kind="stable")
        return new
