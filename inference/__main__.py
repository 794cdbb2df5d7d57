"""python -m inference embeddings RUN: what a model has learned about words. sample.py generates, scores and talks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from common import cli


@dataclass(frozen=True)
class Embeddings:
    """Print each word's nearest neighbours by cosine, and draw the embeddings."""

    run: tyro.conf.Positional[Path]
    """A run of train.py, such as runs/quickstart."""
    words: tuple[str, ...] = ()
    """Words to find the neighbours of (none: the most common ones); of several tokens: the mean of their embeddings."""
    neighbours: int = 8
    """Neighbours per word."""
    plot: Path | None = None
    """Where to draw: words in two dimensions, --words larger, and the three kinds of positions as heat maps."""
    labels: int = 150
    """Words in the plot; a name that would cover another is left out."""


def embeddings(options: Embeddings) -> None:
    """Print and draw what inference.embeddings finds."""
    from inference.embeddings import show

    show(options.run, options.words, options.neighbours, options.plot, options.labels)


COMMANDS = {"embeddings": (Embeddings, embeddings)}


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the commands."""
    cli.dispatch(COMMANDS, argv, prog="python -m inference")


if __name__ == "__main__":
    main()
