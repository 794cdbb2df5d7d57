"""What the report shows: documents and bytes lost in each stage, samples, near misses, histograms. Tallies of files
add up.

Samples are those whose hash is least: the same whichever machine read which file, and in whatever order.
"""

import dataclasses
from typing import Any

from data.splitting import text_hash
from data.web.rules import Rule

SAMPLES = 5  # texts shown for each reason
EXCERPT = 600  # characters of each
BINS = 20
NEARLY = 0.5  # a text was nearly dropped if its value is less than half a bound away from the bound


@dataclasses.dataclass
class Stage:
    """What one stage took away: documents and their bytes, by reason, and bytes out of documents that stay."""

    reasons: dict[str, list[int]] = dataclasses.field(default_factory=dict)  # [documents, bytes]
    edited: int = 0

    @property
    def documents(self) -> int:
        """Return the number of documents that were dropped."""
        return sum(documents for documents, _ in self.reasons.values())

    @property
    def bytes(self) -> int:
        """Return the bytes that are gone."""
        return sum(size for _, size in self.reasons.values()) + self.edited


@dataclasses.dataclass
class Histogram:
    """Counts in equal bins from 0 to `top`, what is beyond in the last; values from `low` to `high` are kept."""

    top: float
    low: float | None
    high: float | None
    counts: list[int] = dataclasses.field(default_factory=lambda: [0] * BINS)

    def add(self, value: float) -> None:
        """Count a value; one that is no number is not counted."""
        if value == value:
            self.counts[int(min(BINS - 1, max(0, value / self.top * BINS)))] += 1


Sample = list[Any]  # [order, name, excerpt]


@dataclasses.dataclass
class Tally:
    """Everything that is counted while pages become a corpus."""

    documents: int = 0
    bytes: int = 0
    stages: dict[str, Stage] = dataclasses.field(default_factory=dict)
    samples: dict[str, list[Sample]] = dataclasses.field(default_factory=dict)
    misses: dict[str, list[Sample]] = dataclasses.field(default_factory=dict)
    histograms: dict[str, Histogram] = dataclasses.field(default_factory=dict)
    masked: dict[str, int] = dataclasses.field(default_factory=dict)

    def enter(self, *stages: str) -> None:
        """Name stages in their order, also if they will drop nothing."""
        for stage in stages:
            self.stages.setdefault(stage, Stage())

    def found(self, size: int) -> None:
        """Count a page that was found, and its bytes."""
        self.documents += 1
        self.bytes += size

    def dropped(self, stage: str, reason: str, text: str, name: str, size: int | None = None) -> None:
        """Count a document that a stage dropped, by default with the bytes of its text; keep a sample of the text."""
        size = len(text.encode()) if size is None else size
        self.enter(stage)
        counts = self.stages[stage].reasons.setdefault(reason, [0, 0])
        counts[0] += 1
        counts[1] += size
        order = text_hash(f"{name}\n{text[:EXCERPT]}".encode(errors="replace"))
        _keep(self.samples.setdefault(f"{stage}: {reason}", []), [order, name, text[:EXCERPT]])

    def edited(self, stage: str, lost: int) -> None:
        """Count bytes that a stage took out of a document that stays (or put in, if negative)."""
        self.enter(stage)
        self.stages[stage].edited += lost

    def measured(self, rule: Rule, value: float) -> None:
        """Count a value in the histogram of its rule."""
        if rule.key not in self.histograms:
            self.histograms[rule.key] = Histogram(rule.top, rule.low, rule.high)
        self.histograms[rule.key].add(value)

    def missed(self, rule: Rule, value: float, text: str, name: str) -> None:
        """Remember a document that was kept if it was among those nearest to the rule's bound."""
        margin = rule.margin(value)
        if margin > NEARLY:
            return
        near = self.misses.setdefault(rule.key, [])
        if len(near) < SAMPLES or margin <= near[-1][0]:
            _keep(near, [margin, f"{name} ({value:.3g})", text[:EXCERPT]])

    def merge(self, other: "Tally") -> None:
        """Add the counts of another tally."""
        self.documents += other.documents
        self.bytes += other.bytes
        self.enter(*other.stages)
        for name, stage in other.stages.items():
            self.stages[name].edited += stage.edited
            for reason, (documents, size) in stage.reasons.items():
                counts = self.stages[name].reasons.setdefault(reason, [0, 0])
                counts[0] += documents
                counts[1] += size
        for mine, theirs in ((self.samples, other.samples), (self.misses, other.misses)):
            for name, samples in theirs.items():
                _keep(mine.setdefault(name, []), *samples)
        for name, histogram in other.histograms.items():
            known = self.histograms.setdefault(name, Histogram(histogram.top, histogram.low, histogram.high))
            known.counts = [a + b for a, b in zip(known.counts, histogram.counts, strict=True)]
        for kind, count in other.masked.items():
            self.masked[kind] = self.masked.get(kind, 0) + count

    def funnel(self) -> list[tuple[str, int, int]]:
        """Return (stage, documents, bytes) after each stage, beginning with what was found."""
        rows = [("found", self.documents, self.bytes)]
        for name, stage in self.stages.items():
            _, documents, size = rows[-1]
            rows.append((name, documents - stage.documents, size - stage.bytes))
        return rows

    def as_json(self) -> dict[str, Any]:
        """Return the tally as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Tally":
        """Return the tally that `as_json` wrote."""
        stages = {name: Stage(**stage) for name, stage in values["stages"].items()}
        histograms = {name: Histogram(**histogram) for name, histogram in values["histograms"].items()}
        return cls(**{**values, "stages": stages, "histograms": histograms})


def _keep(samples: list[Sample], *more: Sample) -> None:
    """Insert samples, and keep the least few."""
    samples += more
    samples.sort()
    del samples[SAMPLES:]
