"""Draws the pictures of README and docs into docs/plots/.

    python -m scripts.pictures [--run RUN] [--only NAME …] [--out DIR]

Those of `FROM_A_RUN` show a trained model. Where RUN cannot show one it is left out, with a line that says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import cli, files
from kernels.ladder import OPS
from scripts.pictures import kernels, learning, model, sampling, serving, words
from scripts.pictures.svg import Picture

ROOT = Path(__file__).resolve().parents[2]
DRAWN = {
    "pipeline": words.pipeline,
    "merges": words.merges,
    "batches": words.batches,
    "block": model.block,
    "masks": model.masks,
    "activations": model.activations,
    "cache": model.cache,
    "pages": serving.pages,
    "timeline": serving.timeline,
    "schedules": learning.schedules,
    "memory": kernels.memory,
    "tiles": kernels.tiles,
    "coalescing": kernels.coalescing,
    "banks": kernels.banks,
    **{f"ladder_{op}": kernels.ladder(op) for op in OPS},
}
FROM_A_RUN = {
    "tokens": words.tokens,
    "attention": model.attention,
    "positions": model.positions,
    "loss": learning.loss,
    "optimizers": learning.optimizers,
    "sampling": sampling.rules,
}


@dataclass(frozen=True)
class Options:
    """Draw the pictures of README and docs."""

    run: Path = Path("runs/quickstart")
    """A run of train.py, for the pictures that show a trained model."""
    only: tuple[str, ...] = ()
    """Names of pictures; all if not given."""
    out: Path = ROOT / "docs" / "plots"
    """Where NAME.svg goes."""


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Draw the pictures that are asked for."""
    options = cli.parse(Options, argv, prog="python -m scripts.pictures")
    names = options.only or (*DRAWN, *FROM_A_RUN)
    if unknown := set(names) - set(DRAWN) - set(FROM_A_RUN):
        cli.fail(f"no picture {min(unknown)!r}: choose from {', '.join((*DRAWN, *FROM_A_RUN))}")
    for name in names:
        try:
            picture = DRAWN[name]() if name in DRAWN else _of_a_run(name, options.run)
        except ValueError as reason:
            if options.only:
                raise
            print(f"{name} is left out: {reason}")
        else:
            files.write_text(options.out / f"{name}.svg", picture.svg())


def _of_a_run(name: str, run: Path) -> Picture:
    """Return a picture of a trained model; ValueError if the run cannot show it."""
    if not (run / "best").is_dir():
        raise ValueError(f"it shows a trained model, and {run} is none: make train, or give --run")
    return FROM_A_RUN[name](run)


if __name__ == "__main__":
    main()
