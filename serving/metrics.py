"""What /metrics tells, in the text format of Prometheus: https://prometheus.io/docs/instrumenting/exposition_formats."""

import dataclasses
from collections import Counter
from dataclasses import dataclass, field

from serving.engine import Engine
from serving.scheduler import Counters

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
HELP = {
    "steps": "Passes of the model.",
    "prompt_tokens": "Tokens of prompts that were computed, again ones included.",
    "reused_tokens": "Tokens of prompts whose keys and values were known.",
    "drawn_tokens": "Tokens generated.",
    "guessed_tokens": "Tokens guessed ahead by prompt lookup.",
    "accepted_tokens": "Guesses that were right.",
    "preemptions": "Times that a text lost its pages and was computed again.",
}


@dataclass
class Histogram:
    """How many times lasted up to each of BOUNDS.

    >>> times = Histogram(); times.add(0.03); times.add(99.0)
    >>> times.counts[3], times.count, times.total
    (1, 2, 99.03)
    """

    counts: list[int] = field(default_factory=lambda: [0] * len(BOUNDS))
    count: int = 0
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one time."""
        self.count += 1
        self.total += seconds
        for place, bound in enumerate(BOUNDS):
            self.counts[place] += seconds <= bound

    def lines(self, name: str, help: str) -> list[str]:
        """Return the lines of the format."""
        buckets = [
            f'{name}_bucket{{le="{bound}"}} {count}' for bound, count in zip(BOUNDS, self.counts, strict=True)
        ]
        buckets.append(f'{name}_bucket{{le="+Inf"}} {self.count}')
        return [
            *_head(name, help, "histogram"),
            *buckets,
            f"{name}_sum {self.total}",
            f"{name}_count {self.count}",
        ]


@dataclass
class Metrics:
    """What the HTTP side counts."""

    answers: Counter[int] = field(default_factory=Counter)
    """By HTTP status."""
    first_token: Histogram = field(default_factory=Histogram)
    """Seconds from a request to its first piece of text."""
    whole: Histogram = field(default_factory=Histogram)
    """Seconds to the end of its last."""

    def text(self, engine: Engine) -> str:
        """Return everything, with what the engine counts and what it holds at this moment."""
        lines = _head("slm_answers_total", "Answers by HTTP status.", "counter")
        lines += [
            f'slm_answers_total{{status="{status}"}} {count}'
            for status, count in sorted(self.answers.items())
        ]
        for name in (each.name for each in dataclasses.fields(Counters)):
            value = getattr(engine.scheduler.counters, name)
            lines += [*_head(f"slm_{name}_total", HELP[name], "counter"), f"slm_{name}_total {value}"]
        scheduler = engine.scheduler
        gauges = {
            "running": (len(scheduler.running), "Texts computed at this moment."),
            "waiting": (engine.waiting, "Requests that have not begun."),
            "pages": (scheduler.pool.count, "Pages of the cache."),
            "pages_free": (scheduler.pool.free_count, "Pages that hold nothing."),
        }
        for name, (value, help) in gauges.items():
            lines += [*_head(f"slm_{name}", help, "gauge"), f"slm_{name} {value}"]
        lines += self.first_token.lines("slm_first_token_seconds", "Time to the first piece of text.")
        lines += self.whole.lines("slm_request_seconds", "Time to the end of the answer.")
        return "\n".join(lines) + "\n"


def _head(name: str, help: str, kind: str) -> list[str]:
    return [f"# HELP {name} {help}", f"# TYPE {name} {kind}"]
