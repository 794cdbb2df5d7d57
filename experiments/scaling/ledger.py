"""A budget of FLOPs and what was bought with it: reserved before a run starts, refunded if it fails, never paid twice.

The ledger is one JSON file that is replaced as a whole at every change, so a kill at any moment leaves it readable. A
run that was killed stays reserved: if it is asked for again, it continues from its checkpoint and is not charged again.
"""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import files


@dataclasses.dataclass(frozen=True)
class Entry:
    """One run that was asked for."""

    hyperparameters: dict[str, Any]
    flops: float
    state: str
    """"reserved" while it runs (or was killed), "done", or "failed" (refunded)."""
    result: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What a finished run measured, or the reason of its failure."""


class OverBudget(ValueError):
    """A run that the rest of the budget does not pay for."""


class Ledger:
    """The runs bought so far, by the hash of their hyperparameters. Threads may share one."""

    def __init__(self, path: Path, budget: float):
        """Open `path`, or start an empty ledger; `budget` in FLOPs may be larger or smaller than the last time."""
        self.path, self.budget = path, budget
        self._lock = threading.Lock()
        saved = files.read_json(path)["runs"] if path.is_file() else {}
        self.entries = {key: Entry(**entry) for key, entry in saved.items()}

    @property
    def spent(self) -> float:
        """Return the FLOPs of the runs that are done or reserved."""
        return sum(entry.flops for entry in self.entries.values() if entry.state != "failed")

    @property
    def left(self) -> float:
        """Return the FLOPs that can still be reserved."""
        return self.budget - self.spent

    def reserve(self, hyperparameters: Mapping[str, Any], flops: float) -> Entry:
        """Return the entry of a run: done, if it was bought before, else reserved. OverBudget if too little is left."""
        with self._lock:
            entry = self.entries.get(key(hyperparameters))
            if entry is None or entry.state == "failed":
                if flops > self.left:
                    raise OverBudget(
                        f"a run of {flops:.3g} FLOPs exceeds the {self.left:.3g} left of {self.budget:.3g}: raise "
                        "--budget or ask for smaller runs"
                    )
                entry = self._write(Entry(dict(hyperparameters), flops, "reserved"))
            return entry

    def settle(self, entry: Entry, result: Mapping[str, Any]) -> Entry:
        """Record what a reserved run measured."""
        with self._lock:
            return self._write(dataclasses.replace(entry, state="done", result=dict(result)))

    def refund(self, entry: Entry, why: str) -> Entry:
        """Give back what a failed run had reserved; it may be asked for again."""
        with self._lock:
            return self._write(dataclasses.replace(entry, state="failed", result={"why": why}))

    def _write(self, entry: Entry) -> Entry:
        self.entries[key(entry.hyperparameters)] = entry
        runs = {name: dataclasses.asdict(each) for name, each in self.entries.items()}
        files.write_json(self.path, {"budget": self.budget, "spent": self.spent, "runs": runs})
        return entry


def key(hyperparameters: Mapping[str, Any]) -> str:
    """Return the name of a run: the same for equal hyperparameters, in whatever order they are given.

    >>> key({"n_layer": 2, "seed": 1}) == key({"seed": 1, "n_layer": 2})
    True
    """
    text = json.dumps(hyperparameters, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
