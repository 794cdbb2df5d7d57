"""Writes the figures of README and the pages, and the plots of docs/performance.md, from benchmarks/results/*.json.

    python scripts/performance.py

Pages are written by hand, except between markers such as <!-- figures: begin --> and <!-- figures: end -->, and but for
the numbers in SENTENCES, which are those of the quickstart. The plots are docs/plots/NAME.svg.
"""

import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import bench, files, plots

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
ATTENTION = r"causal_attention \(2, 1024, 12, 64\) float32 forward \+ backward"
HEADLINES = (  # README's table: what, benchmark, row, factor and form of the figures, peer, what README calls it
    ("encode familiar words (ours: Python and NumPy)", "bpe_encode", "encode, warm: encode", 1, "{:.0f} MB/s",
     "tiktoken.encode_to_numpy", "tiktoken"),
    ("learn a vocabulary from 200 MB", "bpe_train", "train 10,000 ids, (189|200) MB", 1, "{:.1f} s",
     "tokenizers", "Hugging Face tokenizers"),
    ("attention, forward and backward, 1,024 tokens", "kernels", ATTENTION, 1e-3, "{:.0f} ms",
     "SDPA flash", "PyTorch's SDPA"),
    ("train the quickstart's model with AdamW", "train", "train quickstart with AdamW, 2 threads", 1,
     "{:,.0f} tokens/s", "plain torch loop", "plain PyTorch loop"),
    ("decode a model of 15 M, int8 against float32", "decode", "decode batch 1, int8", 1, "{:,.0f} tokens/s",
     "llama2.c", "llama2.c"),
)  # fmt: skip
SENTENCES = {  # the quickstart's figures, wherever a page states them in words
    "README.md": (
        "training takes {minutes:.1f} minutes",
        "from 7.6 nats per token to {validation_loss:.2f} in {steps:,} steps",
    ),
    "docs/training.md": (
        "to 1 after 300 steps and {validation_loss:.2f} after {steps:,}, on",
        "has {validation_loss:.3f} nats per token and {bytes_per_token:.2f} bytes per token: {bits_per_byte:.3f} bits",
        "{parameters:,} parameters on cpu in bfloat16 with fused kernels, {steps} steps of",
    ),
    "docs/model.md": ("gives it Llama's, with {parameters:,} parameters",),
}
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


def latest(results: Path, benchmark: str) -> list[dict[str, Any]]:
    """Return all results of a benchmark, the last measured first, and before them those of the quickstart's machine."""
    found = [files.read_json(path) for path in sorted(results.glob("*.json"))]
    trained = max(
        (each for each in found if each["benchmark"] == "quickstart"), key=lambda each: each["date"]
    )
    chosen = [each for each in found if each["benchmark"] == benchmark]
    return sorted(
        chosen, key=lambda each: (each["machine"] == trained["machine"], each["date"]), reverse=True
    )


def headlines(results: Path) -> str:
    """Return README's table of our figures, their peers' and the processor."""
    lines = [_line(["", "ours", "peer", "", "on"]), "|---|---:|---:|---:|---|"]
    for what, benchmark, name, factor, form, peer, called in HEADLINES:
        row, processor = next(
            (row, result["machine"].partition(",")[0])
            for result in latest(results, benchmark)
            for row in result["rows"]
            if re.fullmatch(name, row["name"]) and row["peer"] == peer
        )
        ours, theirs = (form.format(row[side] * factor) for side in ("ours", "peer_value"))
        theirs = f"{called}: {theirs.partition(' ')[0]}"
        lines.append(_line([what, ours, theirs, f"{row['ratio']:.1f} ×", processor]))
    return "\n".join(lines)


def quickstart(results: Path) -> dict[str, Any]:
    """Return the figures of the last quickstart: validation_loss, steps, … minutes, and the story that README tells."""
    rows = {row["name"]: row for row in latest(results, "quickstart")[0]["rows"]}
    figures = {name.partition(": ")[2].replace(" ", "_"): row["ours"] for name, row in rows.items()}
    notes = {name.partition(": ")[2]: row["note"] for name, row in rows.items() if "note" in row}
    return {**figures, "minutes": figures["seconds"] / 60, "told": notes["story"], "notes": notes}


def ending(figures: Mapping[str, Any]) -> str:
    """Return what training prints at its end, with one of its stories."""
    from training.pretraining import Report

    report = Report(
        val_loss=figures["validation_loss"],
        train_loss=figures["training_loss"],
        bits_per_byte=figures["bits_per_byte"],
        coherence=figures["coherence"] / 100,
        skipped=0,
        tokens=figures["tokens"],
        seconds=figures["seconds"],
        tokens_per_second=figures["speed"],
        peak_memory_mb=figures["peak_memory"],
        parameters=figures["parameters"],
        stories=[],
    )
    lines = [line for line in report.lines(Path()) if not line.startswith("written to")]
    paragraphs = (textwrap.wrap(paragraph, 116) for paragraph in figures["told"].splitlines())
    told = [line for paragraph in paragraphs for line in paragraph or [""]]
    return textwrap.indent("\n".join([*lines, "", f"--- story {figures['story']} ---", *told]), "    ")


def endings(figures: Mapping[str, Any]) -> str:
    """Return what sample.py --score prints of the example's three texts."""
    from benchmarks.quickstart import ENDINGS

    lines = [f"{'log P':>6}{'perplexity':>13}   text"]
    for text in ENDINGS:
        lines.append(f"{figures[text.replace(' ', '_')]:6.2f}{figures['notes'][text]:>13}   {text}")
    return textwrap.indent("\n".join(lines), "    ")


def neighbours(figures: Mapping[str, Any]) -> str:
    """Return what python -m inference embeddings prints of the example's words."""
    from benchmarks.quickstart import WORDS

    return "\n".join(f"    {word}: {figures['notes'][f'nearest to {word}']}" for word in WORDS)


def with_figures(text: str, sentence: str, figures: Mapping[str, Any]) -> str:
    """Return the text with the numbers in a sentence replaced by these figures; ValueError without the sentence.

    >>> with_figures("It takes 3.1 minutes, not 9.", "takes {minutes:.1f} minutes", {"minutes": 2.27})
    'It takes 2.3 minutes, not 9.'
    """
    between = re.split(r"\{.*?\}", sentence)
    words = (re.escape(part).replace(r"\ ", r"\s+") for part in between)
    found = re.search("([\\d.,]*\\d)".join(f"({part})" for part in words), text)
    if not found:
        raise ValueError(f"no page says {sentence!r}: give the sentence in SENTENCES as it is now")
    numbers = [field.format(**figures) for field in re.findall(r"\{.*?\}", sentence)]
    parts = list(found.groups())
    parts[1::2] = numbers
    return text[: found.start()] + "".join(parts) + text[found.end() :]


def updated(page: str, name: str, tables: str) -> str:
    """Return the page with these tables between the markers of this name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = page.partition(begin)
    _, marker, after = rest.partition(end)
    if not marker:
        raise ValueError(f"the page has lost its markers: put {begin} and {end} where the tables belong")
    return f"{before}{begin}\n\n{tables}\n\n{end}{after}"


def pages() -> dict[Path, str]:
    """Return each page that holds figures as it has to be."""
    figures = quickstart(RESULTS)
    written = {ROOT / name: (ROOT / name).read_text(encoding="utf-8") for name in SENTENCES}
    for name, sentences in SENTENCES.items():
        for sentence in sentences:
            written[ROOT / name] = with_figures(written[ROOT / name], sentence, figures)
    for name, marker, block in (
        ("README.md", "headlines", headlines(RESULTS)),
        ("README.md", "quickstart", ending(figures)),
        ("docs/sampling.md", "endings", endings(figures)),
        ("docs/model.md", "neighbours", neighbours(figures)),
        ("docs/performance.md", "figures", render(RESULTS)),
    ):
        path = ROOT / name
        written[path] = updated(written.get(path) or path.read_text(encoding="utf-8"), marker, block)
    return written


def main() -> None:
    """Write pages and plots."""
    for path, text in pages().items():
        files.write_text(path, text)
    for path in sorted(RESULTS.glob("*.json")):
        bars = _bars(files.read_json(path))
        if bars:
            plots.draw_ratios(bars, PAGE.parent / "plots" / f"{path.stem}.svg")


if __name__ == "__main__":
    main()
