"""python -m experiments scaling transfer DATA: does the best learning rate of a narrow model suit a wide one?

With GPT-2's initialization it does not: the best rate falls as models get wider. With the maximal update
parametrization (µP, Yang et al. 2022; GPTConfig.mup_width) it does. Two measurements show it, both drawn side by side:

coordinates   how much the stream and the logits change in the first steps, over the width (section D.1 of the paper)
sweep         the validation loss over the learning rate, a curve for each width
"""

import dataclasses
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from common import files, plots
from experiments import sweep
from training import loop
from training.config import TrainConfig

STEPS = 4  # of the coordinate check
Curves = dict[int, dict[float, float]]  # width -> learning rate -> mean validation loss, nats per token


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer:
    """Sweep the learning rate at several widths, with GPT-2's initialization and with µP; print, draw and write it."""

    data: Annotated[Path, tyro.conf.Positional]
    """Directory of token files."""
    out: Path = Path("runs/transfer")
    """Directory for the runs, transfer.json and the plot. Finished runs are kept."""
    preset: str = "transfer"
    """What all runs share."""
    widths: tuple[int, ...] = (32, 64, 128)
    """Values of n_embd; µP takes the first as the one that the rates were chosen for."""
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
    """Learning rates, in rising order."""
    seeds: int = 2
    """Runs for each width and rate."""
    plot: Path | None = None
    """Where to draw (.png, .svg, .pdf). Default: OUT/transfer.png."""

    def __post_init__(self) -> None:
        for name, least in (("widths", 2), ("rates", 3)):
            values = getattr(self, name)
            if len(values) < least or list(values) != sorted(set(values)):
                raise ValueError(f"--{name} {values}: give at least {least} values in rising order")


def transfer(options: Transfer) -> None:
    """Train what is missing; print the best rate of each width, draw both measurements, write OUT/transfer.json."""
    plot = plots.check_path(options.plot or options.out / "transfer.png")
    settings = {"standard": grid(options, None), "µP": grid(options, options.widths[0])}
    curves = {name: measured(each) for name, each in settings.items()}
    changes = {name: coordinates(each) for name, each in settings.items()}
    files.write_json(options.out / "transfer.json", {"curves": curves, "changes": changes})
    draw(curves, changes, plot)
    Console().print(best_table(curves, options))
    print(f"written: {options.out / 'transfer.json'}, {plot}")


def grid(options: Transfer, mup_width: int | None) -> list[list[TrainConfig]]:
    """Return the settings of all widths and rates, with a configuration for each seed."""
    fields = {"n_embd": options.widths, "learning_rate": options.rates}
    fields |= {"mup_width": (mup_width,)} if mup_width else {}
    words = tuple(f"{name}={','.join(str(value) for value in values)}" for name, values in fields.items())
    plan = sweep.Sweep(options.preset, words, options.seeds, options.out, options.data)
    return [configs for _, configs in sweep.configurations(plan)]


def measured(settings: list[list[TrainConfig]]) -> Curves:
    """Return the mean validation loss over the seeds of every width and rate."""
    curves: Curves = defaultdict(dict)
    for configs in settings:
        losses = [sweep.measure(config) for config in configs]
        curves[configs[0].model.n_embd][configs[0].learning_rate] = sum(losses) / len(losses)
    return dict(curves)


def coordinates(settings: list[list[TrainConfig]]) -> dict[str, dict[int, list[float]]]:
    """Return the changes of stream and logits after 1 to STEPS steps at each width, at the middle rate, first seed."""
    found: dict[str, dict[int, list[float]]] = {"stream": {}, "logits": {}}
    rates = sorted({configs[0].learning_rate for configs in settings})
    for config in (configs[0] for configs in settings):
        if config.learning_rate == rates[len(rates) // 2]:
            for name, changes in changes_of(config).items():
                found[name][config.model.n_embd] = changes
    return found


def changes_of(config: TrainConfig) -> dict[str, list[float]]:
    """Return the root mean square of how far each coordinate has moved after 1 to STEPS steps on one batch."""
    trainer = loop.Trainer(dataclasses.replace(config, warmup_steps=0, overwrite=True))
    batch = next(iter(trainer.batches))
    before = activations(trainer.model, batch[0])
    changes: dict[str, list[float]] = {name: [] for name in before}
    for _ in range(STEPS):
        trainer.step(batch)
        for name, now in activations(trainer.model, batch[0]).items():
            changes[name].append((now - before[name]).square().mean().sqrt().item())
    return changes


@torch.no_grad()
def activations(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """Return the residual stream after the last block (B, T, C) and the logits (B, T, V) for ids (B, T)."""
    seen: list[Tensor] = []
    hook = model.h[-1].register_forward_hook(lambda block, inputs, output: seen.append(output))
    logits, _ = model(ids)
    hook.remove()
    return {"stream": seen[0], "logits": logits}


def best_rates(curves: Curves) -> dict[int, float]:
    """Return the learning rate with the lowest loss of each width.

    >>> best_rates({32: {0.1: 3.0, 0.2: 2.0}, 64: {0.1: 1.0, 0.2: 2.0}})
    {32: 0.2, 64: 0.1}
    """
    return {width: min(losses, key=losses.__getitem__) for width, losses in curves.items()}


def moved(curves: Curves, rates: tuple[float, ...]) -> int:
    """Return how many steps of the grid separate the lowest and the highest best rate."""
    places = [rates.index(rate) for rate in best_rates(curves).values()]
    return max(places) - min(places)


def valley(losses: dict[float, float]) -> float:
    """Return the learning rate at the bottom of the parabola through the best rate and its neighbours, over log rate.

    At an end of the grid, where there is only one neighbour, the best rate itself.

    >>> round(valley({0.1: 5.0, 0.2: 2.0, 0.4: 1.0, 0.8: 2.0}), 6)
    0.4
    >>> valley({0.1: 1.0, 0.2: 2.0, 0.4: 3.0})
    0.1
    """
    rates = sorted(losses)
    best = min(range(len(rates)), key=lambda place: losses[rates[place]])
    if best in (0, len(rates) - 1):
        return rates[best]
    around = np.array(rates[best - 1 : best + 2])
    curvature, slope, _ = np.polyfit(
        np.log(around / rates[best]), [losses[rate] for rate in around.tolist()], 2
    )
    return float(rates[best] * np.exp(-slope / (2 * curvature)))


def best_table(curves: dict[str, Curves], options: Transfer) -> Table:
    """Return the best rate of each width on the grid and between its points, and how far it moves."""
    table = Table(
        "width", *curves, title="best learning rate (valley; loss, nats per token)", title_justify="left"
    )
    for width in options.widths:
        found = [(best_rates(each)[width], each[width]) for each in curves.values()]
        table.add_row(
            str(width), *(f"{rate:g} ({valley(each):.2g}; {min(each.values()):.4f})" for rate, each in found)
        )
    table.add_row("grid steps moved", *(str(moved(each, options.rates)) for each in curves.values()))
    narrow, wide = options.widths[0], options.widths[-1]
    ratios = [valley(each[wide]) / valley(each[narrow]) for each in curves.values()]
    table.add_row(f"valley, {wide} / {narrow}", *(f"{ratio:.2f}" for ratio in ratios))
    return table


def draw(
    curves: dict[str, Curves], changes: dict[str, dict[str, dict[int, list[float]]]], path: Path
) -> None:
    """Save the coordinate check above and the sweep below, one column for each parametrization."""
    figure = plots.figure(10, 8)
    above, below = figure.subplots(2, len(curves), sharey="row")
    for axes, (name, found) in zip(above, changes.items(), strict=True):
        for (part, widths), line in zip(found.items(), ("o-", "s--"), strict=True):
            for step, moves in enumerate(zip(*widths.values(), strict=True), 1):
                axes.plot(list(widths), moves, line, color=f"C{step}", label=f"{part}, step {step}")
        axes.set(xscale="log", yscale="log", xlabel="width", title=f"{name}: change since the start")
        axes.set_xticks(sizes := list(found["stream"]), map(str, sizes))
        axes.xaxis.minorticks_off()
        axes.legend(fontsize=7)
    for axes, (name, widths) in zip(below, curves.items(), strict=True):
        for width, losses in widths.items():
            axes.plot(list(losses), list(losses.values()), "o-", label=f"width {width}")
        axes.set(xscale="log", xlabel="learning rate", title=f"{name}: validation loss")
        axes.legend()
    plots.save(figure, path)
