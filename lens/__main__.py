"""python -m lens RUN [--out FILE] [--index TOKENS]: one page that shows what is inside your model; docs/lens.md."""

import os
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from common import cli, files


@dataclass(frozen=True)
class Options:
    """Write a run as one HTML file that works without a network, and open it."""

    run: tyro.conf.Positional[Path]
    """A run of train.py, such as runs/quickstart."""
    out: Path | None = None
    """Where to write the page, which is not opened then (none: RUN/lens.html, opened in the browser)."""
    index: Path | None = None
    """A folder of token files, such as tokens/stories: the page then shows which texts move each unit of an MLP."""
    precision: Literal["float16", "int8"] = "float16"
    """Numbers of the weights in the page: float16, or int8 in half the size."""
    film: int = 12
    """Checkpoints of the run (train.py --keep) that the page can step through, at most."""


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Write the page."""
    options = cli.parse(Options, argv, prog="python -m lens")
    if options.film < 0:
        raise ValueError(f"film is {options.film}: it must be at least 0")
    out = options.out or options.run / "lens.html"
    if out.is_dir():
        raise ValueError(f"{out} is a directory: give --out the name of a file, such as lens.html")
    from lens.assemble import page
    from lens.export import export

    head, data = export(options.run, options.precision, options.film, options.index)
    files.write_text(out, page(head, data, way_to_source(out)))
    print(
        f"{out}: {out.stat().st_size / 1e6:.1f} MB, {head['parameters']:,} parameters in {options.precision}"
    )
    if options.out is None:
        webbrowser.open(out.resolve().as_uri())


def way_to_source(out: Path) -> str | None:
    """Return the relative path from the page's folder to the source; None for a page outside of it, or no source."""
    root = Path(__file__).resolve().parents[1]
    there = out.resolve().parent
    if not (root / "docs").is_dir() or not there.is_relative_to(root):
        return None
    return Path(os.path.relpath(root, there)).as_posix()


if __name__ == "__main__":
    main()
