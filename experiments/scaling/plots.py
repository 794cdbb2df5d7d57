"""Plots of scaling laws: loss over compute, IsoFLOP curves, the fit and its residuals, the fan of predictions."""

from pathlib import Path

import numpy as np

from common import plots
from experiments.scaling import fit
from experiments.scaling.predict import Fitted


def draw(fitted: Fitted, path: Path, *, title: str, beyond: float = 4.0) -> None:
    """Save the four plots in one figure; the fan reaches `beyond` times the largest budget."""
    figure = plots.figure(11, 8)
    figure.suptitle(title)
    (frontier, curves), (residuals, fan) = figure.subplots(2, 2)
    _frontier(frontier, fitted)
    _isoflops(curves, fitted)
    _residuals(residuals, fitted)
    _fan(fan, fitted, beyond)
    plots.save(figure, path)


def _frontier(axes, fitted: Fitted) -> None:
    """Draw every run's loss over its compute, coloured by size, with the lowest loss the surface allows."""
    runs = fitted.runs
    dots = axes.scatter(runs.c, runs.loss, c=np.log10(runs.n), cmap="viridis", s=22)
    axes.figure.colorbar(dots, ax=axes, label="log10 parameters")
    span = np.geomspace(runs.c.min(), runs.c.max(), 50)
    best = [fitted.surface.loss(*fitted.surface.optimum(c, fitted.per_token)) for c in span]
    axes.plot(span, best, "k--", lw=1, label="frontier of the fit")
    axes.set(xscale="log", xlabel="training FLOPs", ylabel="nats per token", title="loss over compute")
    plots.log_losses(axes)
    axes.legend()


def _isoflops(axes, fitted: Fitted) -> None:
    """Draw one curve for each budget, its parabola and the parabola's minimum."""
    runs = fitted.runs
    parabolas = fit.isoflops(runs)
    for number, rows in enumerate(runs.budgets()):
        order = rows[np.argsort(runs.n[rows])]
        colour, c = f"C{number % 10}", np.exp(np.log(runs.c[rows]).mean())
        axes.plot(runs.n[order], runs.loss[order], "o", color=colour, ms=4, label=f"{c:.2g}")
        for parabola in (p for p in parabolas if abs(np.log(p.c / c)) < 0.05):
            n = np.geomspace(runs.n[rows].min(), runs.n[rows].max(), 50)
            axes.plot(n, parabola(n), "-", lw=1, color=colour)
            axes.plot(parabola.n, parabola.loss, "kx", ms=6)
    axes.set(xscale="log", xlabel="parameters", ylabel="nats per token", title="IsoFLOP curves")
    axes.xaxis.set_minor_formatter("")
    plots.log_losses(axes)
    axes.legend(title="FLOPs", fontsize=7)


def _residuals(axes, fitted: Fitted) -> None:
    """Draw how far each run is from the surface, in percent, over its compute."""
    axes.axhline(0, color="k", lw=0.8)
    axes.plot(fitted.runs.c, 100 * fitted.residuals, "o", ms=4)
    axes.set(xscale="log", xlabel="training FLOPs", ylabel="measured over fitted loss, %", title="residuals")


def _fan(axes, fitted: Fitted, beyond: float) -> None:
    """Draw the predicted loss of the best model over compute, with its interval, past the largest budget."""
    runs = fitted.runs
    span = np.geomspace(runs.c.min(), runs.c.max() * beyond, 20)
    found = []
    for c in span:
        n, d = fitted.surface.optimum(c, fitted.per_token)
        found.append(fitted.loss(n, d))
    axes.fill_between(span, [e.low for e in found], [e.high for e in found], alpha=0.3, label="95 %")
    axes.plot(span, [e.value for e in found], label="predicted")
    lowest = fit.envelope(runs)
    axes.plot(lowest.c, lowest.loss, "k.", label="lowest run")
    axes.axvline(runs.c.max(), color="k", lw=0.8, ls=":")
    axes.set(xscale="log", xlabel="training FLOPs", ylabel="nats per token", title="prediction")
    plots.log_losses(axes)
    axes.legend()
