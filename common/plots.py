"""Plots: drawn without a screen, and saved as a file that is whole or not there. matplotlib is imported when used."""

from pathlib import Path
from typing import TYPE_CHECKING

from common import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = (".png", ".svg", ".pdf")


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
    """Writes the figure in the format that the name of the file says, atomically. The same figure, the same bytes."""
    import matplotlib

    path = check_path(path)
    unchanging = {"Date": None} if path.suffix == ".svg" else {}
    with files.atomic(path) as file, matplotlib.rc_context({"svg.hashsalt": "slm"}):
        figure.savefig(file, format=path.suffix[1:], dpi=dpi, metadata=unchanging)
