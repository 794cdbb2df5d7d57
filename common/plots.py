"""Plots: drawn without a screen, and saved as a file that is whole or not there. matplotlib is imported when used."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from common import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What each kind would say of the day on which it was drawn is left out.
KINDS: dict[str, dict[str, None]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches. It belongs to no window, so nothing has to be closed."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def check_path(path: str | Path) -> Path:
    """The path, if its name ends as that of a plot does; else a ValueError. For use before long work."""
    path = Path(path)
    if path.suffix not in KINDS:
        raise ValueError(f"{path}: the name of a plot should end in one of {', '.join(KINDS)}")
    return path


def save(figure: "Figure", path: str | Path, dpi: int = 120) -> None:
    """Writes the figure in the format that the name of the file says, atomically; `dpi` are dots per inch.

    The same figure gives the same bytes. ValueError for a name of another kind.
    """
    import matplotlib

    path = check_path(path)
    with files.atomic(path) as file, matplotlib.rc_context({"svg.hashsalt": "slm", "svg.fonttype": "none"}):
        figure.savefig(file, format=path.suffix[1:], dpi=dpi, metadata=KINDS[path.suffix])


def draw_ratios(ratios: Mapping[str, float], path: str | Path) -> None:
    """Saves a bar for each ratio by its name, from 1 to the right where it is above, else to the left."""
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
