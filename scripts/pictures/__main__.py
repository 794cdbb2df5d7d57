"""Draws the pictures of README and docs into docs/plots/.

    python -m scripts.pictures [--run RUN] [--only NAME …] [--out DIR]

Those of `FROM_A_RUN` show a trained model, those of `PHOTOGRAPHED` need a browser as well. One that cannot be made is
left out, with a line that says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import cli, files
from kernels.ladder import OPS
from scripts.pictures import kernels, learning, lens, model, sampling, serving, words
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
PHOTOGRAPHED = {"lens": lens.logit_lens}
ALL = (*DRAWN, *FROM_A_RUN, *PHOTOGRAPHED)


@dataclass(frozen=True)
class Options:
    """Draw the pictures of README and docs."""

    run: Path = Path("runs/quickstart")
    """A run of train.py, for the pictures that show a trained model."""
    only: tuple[str, ...] = ()
    """Names of pictures; all if not given."""
    out: Path = ROOT / "docs" / "plots"
    """Where NAME.svg, or NAME.png for a photograph, goes."""


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Draw the pictures that are asked for."""
    options = cli.parse(Options, argv, prog="python -m scripts.pictures")
    if unknown := set(options.only) - set(ALL):
        cli.fail(f"no picture {min(unknown)!r}: choose from {', '.join(ALL)}")
    for name in options.only or ALL:
        try:
            picture = _picture(name, options.run)
        except ValueError as reason:
            if options.only:
                raise
            print(f"{name} is left out: {reason}")
        else:
            path = options.out / f"{name}.{'png' if name in PHOTOGRAPHED else 'svg'}"
            with files.atomic(path) as file:
                file.write(picture if isinstance(picture, bytes) else picture.svg().encode())


def _picture(name: str, run: Path) -> Picture | bytes:
    """Return a picture, a photograph as bytes; ValueError if the run cannot show it."""
    if name in DRAWN:
        return DRAWN[name]()
    if not (run / "best").is_dir():
        raise ValueError(f"it shows a trained model, and {run} is none: make train, or give --run")
    return {**FROM_A_RUN, **PHOTOGRAPHED}[name](run)


if __name__ == "__main__":
    main()
