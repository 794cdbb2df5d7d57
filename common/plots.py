"""Plots, drawn without a screen and saved atomically. matplotlib is imported when used."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from common import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In the dark the colours are reversed and their hues kept; 0.88 leaves a page's dark grey instead of black.
DARK = b"@media (prefers-color-scheme: dark) {svg {filter: invert(0.88) hue-rotate(180deg)}}"
# Metadata without a date, so that the same plot gives the same bytes.
KINDS: dict[str, dict[str, None]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def figure(width: float, height: float) -> "Figure":
    """Return an empty figure, size in inches. It belongs to no window, so nothing has to be closed."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def check_path(path: str | Path) -> Path:
    """Return the path if its suffix is that of a plot, else raise ValueError. Call it before long work."""
    path = Path(path)
    if path.suffix not in KINDS:
        raise ValueError(f"{path}: the name of a plot should end in one of {', '.join(KINDS)}")
    return path


def save(figure: "Figure", path: str | Path, dpi: int = 120) -> None:
    """Write the figure atomically, in the format that the suffix of `path` names.

    The same figure gives the same bytes; an SVG is dark where the reader's system is. Raises ValueError for an unknown
    suffix.
    """
    import matplotlib

    path, drawn = check_path(path), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "slm", "svg.fonttype": "none"}):
        figure.savefig(drawn, format=path.suffix[1:], dpi=dpi, metadata=KINDS[path.suffix])
    with files.atomic(path) as file:
        content = drawn.getvalue()
        file.write(content.replace(b"</style>", DARK + b"</style>", 1) if path.suffix == ".svg" else content)


def log_losses(axes: "Axes") -> None:
    """Give losses a logarithmic axis, on which a late gain is as visible as an early one, with plain numbers.

    Call it after drawing: losses of reinforcement learning, which have any sign, keep their axis.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    if axes.dataLim.y0 <= 0:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 4, 5, 7)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def draw_ratios(ratios: Mapping[str, float], path: str | Path) -> None:
    """Save a bar chart of ratios by name; bars start at 1 and go right if ours is better."""
    picture = figure(9, 0.8 + 0.22 * len(ratios))
    axes = picture.subplots()
    values = list(ratios.values())
    colours = ["C0" if value >= 1 else "C1" for value in values]
    bars = axes.barh(list(ratios), [value - 1 for value in values], left=1, color=colours)
    axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=2, fontsize=7)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="how many times better ours is")
    for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        ticks("{x:g}")
    axes.tick_params(axis="both", which="both", labelsize=7)
    axes.invert_yaxis()
    save(picture, path)
