"""Scaling laws: how long the grid takes, how well its fit predicts four times the compute, how far learning rates move.

python benchmarks/scaling.py [--out DIR] [--text FILE] [--json PATH]

The grid is that of `python -m experiments scaling run --preset cpu`; it and the run that verifies its prediction are
kept in DIR and trained only if they are missing. With --text the best learning rates of three widths are measured on
FILE, with GPT-2's initialization and with µP (experiments/scaling/transfer.py). About an hour on two cores.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed

from common import cli, files
from common.bench import Row, report
from common.workers import available_cores
from data.prepare import Prepare, prepare
from experiments.scaling import command, transfer
from experiments.scaling.ledger import Ledger

MOST_MINUTES, MOST_ERROR, MOST_OF_IMPROVEMENT = 45, 0.02, 0.25


@dataclasses.dataclass(frozen=True)
class Options:
    """Say what is measured and where it is kept."""

    out: Path = Path("runs/scaling")
    """Directory of the grid."""
    jobs: int = 2
    """Runs at once, each on its share of the cores."""
    text: Path | None = None
    """Text for the learning rates of several widths; they are left out without it."""
    json: Path | None = None
    """Write the rows here, too."""


def grid_rows(options: Options) -> list[Row]:
    """Return the row of the grid: the minutes that its runs would take on two cores, by the core-minutes they took."""
    command.run(command.Run(out=options.out, jobs=options.jobs))
    runs = Ledger(options.out / "ledger.json", np.inf).entries.values()
    threads = max(1, available_cores() // options.jobs)
    minutes = sum(entry.result["wall_seconds"] for entry in runs) * threads / 60
    name, note = f"scaling: {len(runs)} runs, on two cores", f"{minutes:.0f} core-minutes"
    return [
        Row(name, minutes / 2, "minutes", "the most", MOST_MINUTES, less_is_better=True, goal=1.0, note=note)
    ]


def prediction_rows(out: Path) -> list[Row]:
    """Return how far the loss of a model of four times the largest budget is from its prediction."""
    command.predicted(command.Predict(out=out, verify=True))
    found = files.read_json(out / "verify.json")
    predicted = found["predicted"]
    note = f"predicted {predicted['value']:.4f} ({predicted['low']:.4f} to {predicted['high']:.4f})"
    note += f", reached {found['reached']:.4f}: {'inside' if found['inside'] else 'outside'}"
    limits = {"the loss": (abs(found["error"]), MOST_ERROR)}
    limits["the improvement"] = (found["error_of_improvement"], MOST_OF_IMPROVEMENT)
    return [
        Row(f"scaling: error of the prediction, of {what}", 100 * error, "%", "the most", 100 * most, True, 1.0, note)
        for what, (error, most) in limits.items()
    ]  # fmt: skip


def transfer_rows(options: Options) -> list[Row]:
    """Return how many grid steps, each a factor of 2, the best learning rate moves over the widths."""
    tokens = options.out / "text"
    if not (tokens / "meta.json").is_file():
        prepare(Prepare(source=(f"text:{options.text}",), vocab_size=512, out=tokens))
    settings = transfer.Transfer(data=tokens, out=options.out / "transfer")
    transfer.transfer(settings)
    saved = files.read_json(settings.out / "transfer.json")["curves"]
    rows = []
    for name, widths in saved.items():
        curves = {int(w): {float(r): loss for r, loss in losses.items()} for w, losses in widths.items()}
        best = ", ".join(f"{rate:g} at width {width}" for width, rate in transfer.best_rates(curves).items())
        steps = transfer.moved(curves, settings.rates)
        rows.append(Row(f"scaling: best learning rate moves, {name}", steps, "factors of 2", note=best))
    return rows


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write the rows."""
    options = cli.parse(Options, argv, prog="benchmarks/scaling.py")
    rows = [*grid_rows(options), *prediction_rows(options.out)]
    rows += transfer_rows(options) if options.text else []
    report("scaling", rows, options.json)


if __name__ == "__main__":
    main()
