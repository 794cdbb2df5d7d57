"""How fast the built-in corpus is written and checked, in megabytes per second on one core.

python benchmarks/stories.py [--megabytes 10] [--json PATH]
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import bench, cli
from data.stories import coherence, corpus


@dataclasses.dataclass(frozen=True)
class Options:
    """Time the story grammar and its checker."""

    megabytes: float = 10.0
    """How much text to write; a tenth of it is checked."""
    json: Path | None = None
    """Write the rows to this file, or into this folder, as JSON."""


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    options = cli.parse(Options, argv, prog="benchmarks/stories.py")
    size = int(options.megabytes * 1e6)
    tenth = list(corpus(size // 10))
    times = bench.medians(
        {"write": lambda: sum(map(len, corpus(size))), "check": lambda: coherence(tenth)}, repeat=3
    )
    rows = [
        bench.Row(f"stories write {options.megabytes:g} MB", times["write"], "s", less_is_better=True),
        bench.Row("stories write", size / 1e6 / times["write"], "MB/s"),
        bench.Row("stories check", len(tenth) / times["check"], "stories/s"),
    ]
    bench.report("stories", rows, options.json)


if __name__ == "__main__":
    main()
