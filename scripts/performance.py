"""Writes the tables and plots of docs/performance.md from benchmarks/results/*.json.

    python scripts/performance.py

The page is written by hand except between its two markers; the plots are docs/plots/NAME.svg.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import bench, files, plots

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
COMMANDS = {
    "gpu": "scripts/gpu_check.sh",
    "kernels": "python -m kernels bench",
    "serving": "SLM_LLAMA_CPP=DIR python benchmarks/serving.py --threads 1",
    "train against nanoGPT": "python benchmarks/train.py --nanogpt DIR --text FILE",
    "train with busy loops": "python benchmarks/train.py --busy 1 2 3 --threads 2",
}
NOT_PLOTTED = ("reference", "SDPA math")  # so slow that the other bars would vanish


def render(results: Path) -> str:
    """Return all tables in Markdown: a section per file, and the goals on a GPU until one has been measured."""
    found = {path: files.read_json(path) for path in sorted(results.glob("*.json"))}
    sections = [_section(path, result) for path, result in found.items()]
    if not any("device" in result for result in found.values()):
        sections.append(_not_measured())
    return "\n\n".join(sections)


def _section(path: Path, result: dict[str, Any]) -> str:
    name = result["benchmark"]
    command = COMMANDS.get(name, f"python benchmarks/{name}.py")
    where = result.get("device", result["machine"])
    if "device" in result:
        where += f", torch {result['torch']}, CUDA {result['cuda']}, kernels {result['csrc_sha256'][:16]}"
    source = f"[{path.name}](../benchmarks/results/{path.name})"
    lines = [f"### {name}: {result.get('device', result['machine'].split(',')[0])}", ""]
    lines += [f"{where}, {result['date']}. `{command}`, {source}.", ""]
    if _bars(result):
        lines += [f"![how many times better ours is than each peer](plots/{path.stem}.svg)", ""]
    return "\n".join([*lines, *_table(result["rows"])])


def _table(rows: Iterable[dict[str, Any]]) -> list[str]:
    rows = list(rows)
    goals = any(row.get("goal") for row in rows)
    header = ["figure", "ours", "unit", "peer", "its figure", "ratio", *(["goal"] if goals else [])]
    lines = [
        _line(header),
        _line(["---", "---:", "---", "---", "---:", "---:", *(["---:"] if goals else [])]),
    ]
    for row in rows:
        cells = [row["name"], number(row["ours"]), row["unit"], row["peer"], number(row["peer_value"])]
        lines.append(_line([*cells, _ratio(row), *([number(row.get("goal"))] if goals else [])]))
    return lines


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _ratio(row: dict[str, Any]) -> str:
    """Format the ratio; where ours is behind the peer, say so."""
    if row["ratio"] is None:
        return ""
    behind = row["ratio"] < 0.995 and row["peer"] != "datasheet"
    return f"{row['ratio']:.2f}{' (behind)' if behind else ''}"


def number(value: float | None) -> str:
    """Format as the tables of common.bench do; None is an empty cell."""
    return "" if value is None else bench.short(value)


def _not_measured() -> str:
    """Return the rows that a GPU has to fill, with their goals."""
    lines = ["### gpu: no GPU has been measured yet", "", "`scripts/gpu_check.sh` fills these in.", ""]
    lines += [_line(["figure", "peer", "ratio", "goal"]), _line(["---", "---", "---", "---:"])]
    return "\n".join(
        [*lines, *(_line([name, peer, "not measured", number(goal)]) for name, peer, goal in goals())]
    )


def goals() -> list[tuple[str, str, float]]:
    """Return figure, peer and ratio of every goal on a GPU."""
    from benchmarks import step
    from kernels.workbench.bench import goals as goals_of_kernels

    sides = {"ours, compiled": 1.0, "nanoGPT": 1.0}
    rows = [
        row
        for name, model in step.MODELS.items()
        if model.goals
        for row in step.rows(name, sides, dict.fromkeys(sides, 1), ("datasheet", 1.0))
    ]
    return [*goals_of_kernels(), *((row.name, row.peer, row.goal) for row in rows if row.goal)]


def _bars(result: dict[str, Any]) -> dict[str, float]:
    """Return each figure's ratio to each peer once, if there are at least three."""
    found: dict[str, float] = {}
    for row in result["rows"]:
        if row["ratio"] and row["peer"] not in NOT_PLOTTED:
            found.setdefault(f"{row['name']} / {row['peer']}", row["ratio"])
    return found if len(found) >= 3 else {}


def updated(page: str, tables: str) -> str:
    """Return the page with these tables between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise ValueError(f"{PAGE} has lost its markers: put {BEGIN} and {END} where the tables belong")
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def main() -> None:
    """Write page and plots."""
    files.write_text(PAGE, updated(PAGE.read_text(encoding="utf-8"), render(RESULTS)))
    for path in sorted(RESULTS.glob("*.json")):
        bars = _bars(files.read_json(path))
        if bars:
            plots.draw_ratios(bars, PAGE.parent / "plots" / f"{path.stem}.svg")


if __name__ == "__main__":
    main()
