"""python -m experiments scaling run | fit | predict | transfer: the command line of scaling laws."""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from common import files
from common import plots as pictures
from experiments.scaling import plots, predict
from experiments.scaling.ledger import Ledger
from experiments.scaling.predict import Fitted
from experiments.scaling.runner import (
    Count,
    Flops,
    Plan,
    Runner,
    finished,
    parameters,
    read_plan,
)
from experiments.scaling.transfer import Transfer, transfer
from model import accounting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Train the grid of a plan within a budget of FLOPs; finished runs are kept and stopped ones continued."""

    preset: str = "cpu"
    """Name of a file in presets/scaling (without .toml), or the path of one of your own."""
    out: Path = Path("runs/scaling")
    """Directory for the runs, their data and ledger.json."""
    budget: float | None = None
    """FLOPs that all runs together may cost, earlier ones of this directory included. Default: what the grid costs."""
    jobs: int = 1
    """Runs at once, each on its share of the cores."""

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"--jobs is {self.jobs}: it must be at least 1")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"--budget is {self.budget}: it must be above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Fit the three approaches of Chinchilla to the finished runs; print, draw and write what they say."""

    out: Annotated[Path, tyro.conf.Positional] = Path("runs/scaling")
    """Directory of python -m experiments scaling run."""
    count: Count | None = None
    """Which parameters are N. Default: as the plan counts."""
    flops: Flops | None = None
    """What C is: 6 N D, or the exact count of the matrix products. Default: as the plan counts."""
    draws: int = predict.DRAWS
    """Bootstrap draws of each interval."""
    plot: Path | None = None
    """Where to draw (.png, .svg, .pdf). Default: OUT/scaling.png."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict:
    """Predict which model a larger budget should train and what it will reach; with --verify, train it and compare."""

    out: Annotated[Path, tyro.conf.Positional] = Path("runs/scaling")
    """Directory of python -m experiments scaling run."""
    budget: float | None = None
    """FLOPs. Default: four times the largest budget of the plan."""
    verify: bool = False
    """Train the size nearest to the optimum that the plan lists, and say whether its loss is inside the interval."""
    draws: int = predict.DRAWS
    """Bootstrap draws of each interval."""


def run(options: Run) -> None:
    """Train what the plan lacks and say what it cost."""
    plan = read_plan(options.preset)
    runner = Runner(plan, options.out, options.budget or np.inf, options.jobs)
    grid = runner.grid()
    costs = [runner.cost(each) for each in grid]
    if not costs:
        raise ValueError(
            f"{options.preset} has no run: at no budget does a shape have tokens_per_parameter in its limits"
        )
    if options.budget and options.budget < min(costs):
        raise ValueError(
            f"the smallest run of {options.preset} costs {min(costs):.3g} FLOPs, more than --budget "
            f"{options.budget:.3g}; the whole grid costs {sum(costs):.3g}"
        )
    files.write_json(options.out / "plan.json", dataclasses.asdict(plan))
    done = runner.measure_all(grid)
    print(f"{len(done)} of {len(grid)} runs done, {runner.ledger.spent:.3g} FLOPs spent")
    print(f"next: python -m experiments scaling fit {options.out}")


def opened(out: Path) -> tuple[Plan, Ledger]:
    """Return the plan and the ledger of a directory; FileNotFoundError if there are none."""
    if not (out / "plan.json").is_file() or not (out / "ledger.json").is_file():
        raise FileNotFoundError(
            f"{out} holds no runs: make them with python -m experiments scaling run --out {out}"
        )
    return Plan(**files.read_json(out / "plan.json")), Ledger(out / "ledger.json", np.inf)


def fit(options: Fit) -> None:
    """Fit, print two tables, draw the plots and write OUT/fit.json."""
    plan, ledger = opened(options.out)
    plot = pictures.check_path(options.plot or options.out / "scaling.png")
    count, flops = options.count or plan.count, options.flops or plan.flops
    found = predict.fitted(finished(plan, ledger, count, flops), options.draws)
    title = f"{len(found.runs)} runs; N: {count}; C: {flops}"
    console = Console()
    console.print(constants_table(found, title))
    console.print(advice_table(found, plan, title))
    plots.draw(found, plot, title=title)
    files.write_json(options.out / "fit.json", as_json(found, count, flops))
    print(f"written: {options.out / 'fit.json'}, {plot}")


def constants_table(found: Fitted, title: str) -> Table:
    """Return the constants of the parametric form and each approach's exponent."""
    table = Table(
        "constant", "value (95 %)", title=f"L = E + A / N^alpha + B / D^beta; {title}", title_justify="left"
    )
    for name, estimate in found.constants.items():
        table.add_row(name, str(estimate))
    for law in found.laws:
        table.add_row(f"N ∝ C^x by {law.approach}", str(law.exponent))
    return table


def advice_table(found: Fitted, plan: Plan, title: str) -> Table:
    """Return the optimum of each budget next to the rule of 20 tokens per parameter, and where the FLOPs go."""
    table = Table(title=f"the optimum by the parametric form; {title}", title_justify="left")
    for column in ("FLOPs", "N", "D", "D/N", "loss", "loss at D/N = 20", "attention", "MLP"):
        table.add_column(column, justify="right")
    for c in [*plan.budgets, 4 * max(plan.budgets)]:
        n, d = found.surface.optimum(c, found.per_token)
        # C = per_token(N) · 20 N: solved for N by the power law that per_token is
        per = found.per_token
        n20 = (c / (20 * per.coefficient)) ** (1 / (1 + per.exponent))
        loss, loss20 = (float(found.surface.loss(*at)) for at in ((n, d), (n20, 20 * n20)))
        attention, mlp = shares(plan, n)
        cells = (f"{c:.2e}", f"{n:,.0f}", f"{d:,.0f}", f"{d / n:.1f}", f"{loss:.4f}", f"{loss20:.4f}")
        table.add_row(*cells, f"{attention:.0%}", f"{mlp:.0%}")
    return table


def nearest(plan: Plan, n: float, count: Count) -> dict[str, int]:
    """Return the shape of the plan whose size is nearest to n."""
    shapes = [dict(zip(("n_layer", "n_head", "n_embd"), shape, strict=True)) for shape in plan.shapes]
    return min(shapes, key=lambda shape: abs(np.log(parameters(plan.config(shape), count) / n)))


def shares(plan: Plan, n: float) -> tuple[float, float]:
    """Return the fractions of the FLOPs that attention (its matrices and scores) and the MLP take near size n."""
    config = plan.config(nearest(plan, n, plan.count))
    forward = accounting.flops_per_token(config)["forward"]
    counts = accounting.parameters(dataclasses.replace(config, bias=False))
    scores = 4 * config.n_embd * accounting.mean_context(config, config.block_size) * config.n_layer
    return (2 * counts["attention"] + scores) / forward, 2 * counts["MLP"] / forward


def as_json(found: Fitted, count: Count, flops: Flops) -> dict:
    """Return what OUT/fit.json holds."""
    return {
        "count": count,
        "flops": flops,
        "runs": len(found.runs),
        "constants": {name: dataclasses.asdict(each) for name, each in found.constants.items()},
        "exponents": {law.approach: dataclasses.asdict(law.exponent) for law in found.laws},
    }


def predicted(options: Predict) -> None:
    """Print the advice for a budget; with --verify, train it and write OUT/verify.json."""
    plan, ledger = opened(options.out)
    found = predict.fitted(finished(plan, ledger, plan.count, plan.flops), options.draws)
    budget = options.budget or 4 * max(plan.budgets)
    size, tokens = found.optimum(budget)
    for law in found.laws:
        print(f"N by {law.approach:10}  {law.size(budget)}")
    print(f"D               {tokens}")
    print(f"D/N             {tokens.value / size.value:.1f} (Chinchilla's rule: about 20)")
    runner = Runner(plan, options.out, ledger.spent + 2 * budget)
    shape = nearest(plan, size.value, plan.count)
    wanted = runner.spend(shape, budget)
    n = parameters(plan.config(shape), plan.count)
    loss = found.loss(n, wanted["tokens"])
    print(f"loss            {loss} with {n:,} parameters ({shape}) on {wanted['tokens']:,} tokens")
    if options.verify:
        verify(runner, found, wanted, loss)


def verify(runner: Runner, found: Fitted, wanted: dict[str, int], loss: predict.Estimate) -> None:
    """Train the predicted run, in a new directory if there is too little data, and compare."""
    larger = Runner(runner.plan, runner.out / "verify", runner.cost(wanted) * 1.01)
    reached = larger.loss(**wanted)
    best = float(found.runs.loss[found.runs.budgets()[-1]].min())
    inside = loss.low <= reached <= loss.high
    result = {
        "run": wanted,
        "flops": runner.cost(wanted),
        "predicted": dataclasses.asdict(loss),
        "reached": reached,
        "error": reached / loss.value - 1,
        "error_of_improvement": abs(reached - loss.value) / (best - reached),
        "inside": inside,
    }
    files.write_json(runner.out / "verify.json", result)
    print(
        f"reached         {reached:.4g}, {result['error']:+.2%} of the prediction and "
        f"{result['error_of_improvement']:.0%} of the improvement over {best:.4g}; "
        f"{'inside' if inside else 'OUTSIDE'} the interval"
    )


COMMANDS = {
    "run": (Run, run),
    "fit": (Fit, fit),
    "predict": (Predict, predicted),
    "transfer": (Transfer, transfer),
}
