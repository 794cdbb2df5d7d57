"""The tally for people: tables in the terminal, and one HTML page that needs nothing else. Text from the web is
escaped.
"""

import html
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from common import files, plots
from data.web.rules import RULES
from data.web.tally import Histogram, Sample, Tally

if TYPE_CHECKING:
    from rich.console import Group

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
body { color: #222; background: #fff }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
.bar { background: #4878a8; height: .8rem } .lost { color: #a33 }
pre { white-space: pre-wrap; background: #f4f4f2; padding: .5rem; margin: .2rem 0 .8rem }
pre { max-height: 12rem; overflow: auto }
figure { display: inline-block; margin: 0 1.5rem 1rem 0 } figcaption { font-size: .85rem }
rect.in { fill: #4878a8 } rect.out { fill: #c66 }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #181818 } pre { background: #262626 } .lost { color: #e88 }
}
"""
WIDTH, HEIGHT = 240, 60  # of a histogram, in pixels


def write(tally: Tally, out: Path) -> None:
    """Write report.json and report.html."""
    files.write_json(out / "report.json", tally.as_json())
    files.write_text(out / "report.html", page(tally))


def read(out: Path) -> Tally:
    """Read the tally of a finished pipeline; FileNotFoundError says what to run."""
    path = out / "report.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{out} holds no report.json: finish python -m data web run, extract or dedup first"
        )
    try:
        return Tally.from_json(files.read_json(path))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no report of data web ({error}): run the pipeline again") from error


def render(tally: Tally) -> "Group":
    """Return the funnel, the reasons and the masked data as tables for the terminal."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    funnel = Table()
    for name in ("stage", "documents", "MB", "left"):
        funnel.add_column(name, justify="left" if name == "stage" else "right")
    for name, documents, size in tally.funnel():
        funnel.add_row(name, f"{documents:,}", f"{size / 1e6:,.2f}", percent(documents, tally.documents))
    reasons = Table()
    for name in ("stage", "reason", "documents", "for example"):
        reasons.add_column(name, justify="right" if name == "documents" else "left", overflow="fold")
    for stage, reason, documents, _ in all_reasons(tally):
        sample = next(iter(tally.samples.get(f"{stage}: {reason}", [])), ["", "", ""])
        example = " ".join((sample[2] or sample[1]).split())[:60]
        reasons.add_row(stage, escape(reason), f"{documents:,}", escape(printable(example)))
    masked = ", ".join(f"{count:,} {kind}" for kind, count in sorted(tally.masked.items())) or "none"
    return Group(
        "left after each stage:",
        funnel,
        "why documents were dropped:",
        reasons,
        f"personal data masked: {masked}",
    )


def printable(text: str) -> str:
    """Return text without characters that a terminal would obey.

    >>> printable("a\\x1b[2Jb")
    'a[2Jb'
    """
    return "".join(letter for letter in text if letter.isprintable())


def percent(part: int, whole: int) -> str:
    """Format a share of all documents."""
    return f"{100 * part / max(whole, 1):.1f}%"


def all_reasons(tally: Tally) -> Iterator[tuple[str, str, int, int]]:
    """Yield stage, reason, documents and bytes of everything that was dropped, stages in order, frequent reasons
    first.
    """
    for name, stage in tally.stages.items():
        for reason, (documents, size) in sorted(
            stage.reasons.items(), key=lambda item: (-item[1][0], item[0])
        ):
            yield name, reason, documents, size


def page(tally: Tally) -> str:
    """Return the report as one HTML page."""
    sections = [
        "<h1>From the web to a corpus</h1>",
        _funnel(tally),
        _masked(tally),
        "<h2>Why documents were dropped</h2>",
        *_dropped(tally),
        "<h2>What was nearly dropped</h2>",
        *_misses(tally),
        "<h2>What was measured</h2><p>Of the documents that reached the rule; red is what it drops.</p>",
        *_histograms(tally),
        "<h2>Where the thresholds come from</h2>",
        _sources(tally),
    ]
    head = f'<meta charset="utf-8"><title>From the web to a corpus</title><style>{STYLE}</style>'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n'
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def draw(tally: Tally, path: str | Path) -> None:
    """Save the funnel as a bar chart: documents that are left after each stage, and what each took away."""
    rows = tally.funnel()
    picture = plots.figure(7, 0.8 + 0.28 * len(rows))
    axes = picture.subplots()
    left = [documents for _, documents, _ in rows]
    lost = [before - after for before, after in zip(left[:1] + left, left, strict=False)]
    names = [name for name, _, _ in rows]
    axes.barh(names, left, color="C0")
    bars = axes.barh(names, lost, left=left, color="C1")
    labels = [
        f"{documents:,}" + (f"  (−{gone:,})" if gone else "")
        for documents, gone in zip(left, lost, strict=True)
    ]
    axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.set(xlabel="documents", xlim=(0, 1.2 * max(left)))
    axes.invert_yaxis()
    plots.save(picture, path)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table; cells are HTML, those of a column whose name begins with # are numbers."""
    names = list(header)
    kinds = [' class="n"' if name.startswith("#") else "" for name in names]
    top = "".join(f"<th{kind}>{name.lstrip('#')}</th>" for kind, name in zip(kinds, names, strict=True))
    body = (
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{top}</tr>{''.join(body)}</table>"


def _funnel(tally: Tally) -> str:
    rows = []
    before = tally.documents
    for name, documents, size in tally.funnel():
        width = 100 * documents / max(tally.documents, 1)
        lost = f'<span class="lost">−{before - documents:,}</span>' if documents != before else ""
        bar = f'<div style="width:16rem"><div class="bar" style="width:{width:.1f}%"></div></div>'
        rows.append((html.escape(name), f"{documents:,}", lost, f"{size / 1e6:,.2f}", bar))
        before = documents
    return _table(("after", "#documents", "#lost", "#MB", ""), rows)


def _masked(tally: Tally) -> str:
    if not tally.masked:
        return ""
    rows = [(html.escape(kind), f"{count:,}") for kind, count in sorted(tally.masked.items())]
    return "<h2>Personal data masked</h2>" + _table(("kind", "#times"), rows)


def _samples(samples: Iterable[Sample]) -> str:
    return "".join(
        f"<div>{html.escape(name)}</div><pre>{html.escape(text) or '…'}</pre>" for _, name, text in samples
    )


def _dropped(tally: Tally) -> Iterator[str]:
    for stage, reason, documents, size in all_reasons(tally):
        title = f"{html.escape(stage)}: {html.escape(reason)} — {documents:,} documents, {size / 1e6:,.2f} MB"
        yield f"<details><summary>{title}</summary>{_samples(tally.samples.get(f'{stage}: {reason}', []))}</details>"


def _misses(tally: Tally) -> Iterator[str]:
    for rule, samples in tally.misses.items():
        title = f"{html.escape(rule)} — nearest: {html.escape(samples[0][1]) if samples else ''}"
        yield f"<details><summary>{title}</summary>{_samples(samples)}</details>"


def _histograms(tally: Tally) -> Iterator[str]:
    for name, histogram in tally.histograms.items():
        yield f"<figure>{_bars(histogram)}<figcaption>{html.escape(name)}, 0 to {histogram.top:g}</figcaption></figure>"


def _bars(histogram: Histogram) -> str:
    """Return an SVG of a histogram; heights by square root, so that rare values can be seen."""
    most, step = max(histogram.counts) or 1, WIDTH / len(histogram.counts)
    bars = []
    for place, count in enumerate(histogram.counts):
        middle = (place + 0.5) * histogram.top / len(histogram.counts)
        kept = histogram.low is None or middle >= histogram.low
        # A bound of 0 is the edge of the first bin.
        kept &= histogram.high is None or middle <= histogram.high or place == 0
        height = HEIGHT * (count / most) ** 0.5
        box = f'x="{place * step:.1f}" y="{HEIGHT - height:.1f}" width="{step - 1:.1f}" height="{height:.1f}"'
        bars.append(f'<rect class="{"in" if kept else "out"}" {box}><title>{count:,}</title></rect>')
    return f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">{"".join(bars)}</svg>'


def _sources(tally: Tally) -> str:
    used = [rule for rule in RULES if rule.key in tally.histograms]
    rows = []
    for rule in used:
        histogram = tally.histograms[rule.key]
        low, high = ("" if bound is None else f"{bound:g}" for bound in (histogram.low, histogram.high))
        rows.append((html.escape(rule.key), low, high, html.escape(rule.source)))
    return _table(("rule", "#at least", "#at most", "source"), rows)
