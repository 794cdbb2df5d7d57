"""From fitted runs to advice: the best size, the tokens and the loss for a budget, each with an interval."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from experiments.scaling import fit
from experiments.scaling.fit import Array, PowerLaw, Runs, Surface

DRAWS = 200
LEAST_DRAWS = 0.5  # fraction of the draws that must converge for an interval to mean something


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number and the central 95 % of its bootstrap draws."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


@dataclasses.dataclass(frozen=True)
class Law:
    """How the optimal size grows with compute, N = coefficient * C ** exponent, by one approach."""

    approach: str
    law: PowerLaw
    exponent: Estimate
    draws: list[PowerLaw]

    def size(self, c: float) -> Estimate:
        """Return the optimal number of parameters for c FLOPs."""
        return _estimate(self.law(c), [draw(c) for draw in self.draws])


@dataclasses.dataclass(frozen=True)
class Fitted:
    """All that is known from a set of runs."""

    runs: Runs
    per_token: PowerLaw
    """FLOPs per training token as a power of N."""
    surface: Surface
    surface_draws: list[Surface]
    laws: list[Law]

    @property
    def constants(self) -> dict[str, Estimate]:
        """Return the constants of the parametric form, by name."""
        return {
            name: _estimate(value, [getattr(draw, name) for draw in self.surface_draws])
            for name, value in dataclasses.asdict(self.surface).items()
        }

    @property
    def residuals(self) -> Array:
        """Return log(measured loss / fitted loss) of every run: (R,)."""
        return np.log(self.runs.loss / self.surface.loss(self.runs.n, self.runs.d))

    def loss(self, n: float, d: float) -> Estimate:
        """Return the loss of one run of n parameters on d tokens.

        The interval holds a new run, not only the mean of many: to the uncertainty of the constants, which the draws
        show, each draw adds the residual of a run, which is what seeds and everything unfitted do to a run.
        """
        noise = np.random.default_rng(0).choice(self.residuals, len(self.surface_draws))
        draws = [
            float(draw.loss(n, d) * np.exp(e)) for draw, e in zip(self.surface_draws, noise, strict=True)
        ]
        return _estimate(float(self.surface.loss(n, d)), draws)

    def optimum(self, c: float) -> tuple[Estimate, Estimate]:
        """Return the (N, D) of least loss for c FLOPs by the parametric form."""
        best = self.surface.optimum(c, self.per_token)
        draws = [draw.optimum(c, self.per_token) for draw in self.surface_draws]
        n, d = (_estimate(best[i], [draw[i] for draw in draws]) for i in (0, 1))
        return n, d


def _estimate(value: float, draws: list[float]) -> Estimate:
    return Estimate(value, *fit.interval(draws))


def fitted(runs: Runs, draws: int = DRAWS, seed: int = 0) -> Fitted:
    """Fit all three approaches, with `draws` bootstrap draws each.

    An approach that needs common budgets is left out if the runs have none. ValueError with what to add if the
    parametric form cannot be fitted, or if fewer than half of its draws can.
    """
    surface = fit.parametric(runs)
    surfaces = list(
        _converged(lambda each: fit.parametric(each, start=surface), fit.bootstrap(runs, draws, seed))
    )
    if len(surfaces) < LEAST_DRAWS * draws:
        raise ValueError(
            f"only {len(surfaces)} of {draws} resamplings of the runs can be fitted, so every interval would be "
            "infinite: add runs, at sizes and token counts that are not there yet"
        )
    per_token = fit.power_law(runs.n, runs.c / runs.d)
    span = np.geomspace(runs.c.min(), runs.c.max(), 5)
    by_budget = fit.bootstrap(runs, draws, seed, by_budget=True)
    laws = []
    for approach, law in (("envelope", _envelope), ("isoflops", _isoflops)):
        found = list(_converged(law, [runs]))
        many = list(_converged(law, by_budget))
        if found and len(many) >= LEAST_DRAWS * draws:
            laws.append(_law(approach, found[0], many))
    optima = [_optima(each, span, per_token) for each in (surface, *surfaces)]
    laws.append(_law("parametric", optima[0], optima[1:]))
    return Fitted(runs, per_token, surface, surfaces, laws)


def _converged(law: Callable, samples: list[Runs]) -> Iterator:
    """Yield the fit of every sample that has one."""
    for sample in samples:
        try:
            yield law(sample)
        except ValueError:  # a draw that repeats few runs may lack what the fit needs
            continue


def _law(approach: str, law: PowerLaw, draws: list[PowerLaw]) -> Law:
    return Law(approach, law, _estimate(law.exponent, [draw.exponent for draw in draws]), draws)


def _envelope(runs: Runs) -> PowerLaw:
    best = fit.envelope(runs)
    if len(best) < fit.LEAST_BUDGETS or len(best) * fit.LEAST_SIZES > len(runs):
        raise ValueError("the runs have no common budgets")
    return fit.power_law(best.c, best.n)


def _isoflops(runs: Runs) -> PowerLaw:
    found = fit.isoflops(runs)
    if len(found) < fit.LEAST_BUDGETS:
        raise ValueError("fewer than two budgets have a parabola with a minimum")
    return fit.power_law(np.array([p.c for p in found]), np.array([p.n for p in found]))


def _optima(surface: Surface, span: Array, per_token: PowerLaw) -> PowerLaw:
    """Return the power law through the surface's optima over `span`: exact for FLOPs of 6 N D, close otherwise."""
    return fit.power_law(span, np.array([surface.optimum(c, per_token)[0] for c in span]))
