"""Fit scaling laws to finished runs: the three approaches of Hoffmann et al. 2022 (Chinchilla), section 3.

    1. envelope     at each budget of FLOPs the lowest run; a power law through their sizes
    2. isoflops     at each budget a parabola of loss over log N; a power law through the minima
    3. parametric   L(N, D) = E + A / N^alpha + B / D^beta through all runs, by Huber loss on log L

N is a number of parameters, D of tokens, C of FLOPs; losses are in nats per token. docs/scaling.md derives the rest.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray
DELTA = 1e-3  # Huber's threshold on log L (Hoffmann et al. 2022, appendix D.3)
LEAST_RUNS = 6  # one more than the parametric form has constants
LEAST_BUDGETS = 2
LEAST_SIZES = 3  # per budget: a parabola has three coefficients


@dataclasses.dataclass(frozen=True)
class Runs:
    """Finished runs: arrays (R,) of float64, one entry a run."""

    n: Array
    """Parameters."""
    d: Array
    """Training tokens."""
    c: Array
    """Training FLOPs."""
    loss: Array
    """Validation loss in nats per token."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            if not np.all(np.isfinite(values)) or np.any(values <= 0):
                raise ValueError(
                    f"a run has {field.name} that is not a positive number: leave it out of the fit"
                )

    def __len__(self) -> int:
        return len(self.n)

    def take(self, rows: Array) -> "Runs":
        """Return the runs at these indices; an index may come twice."""
        return Runs(self.n[rows], self.d[rows], self.c[rows], self.loss[rows])

    def budgets(self) -> list[Array]:
        """Return the indices of the runs of each budget, from the smallest; budgets within 5 % are one."""
        order = np.argsort(self.c, kind="stable")
        jumps = np.flatnonzero(np.diff(np.log(self.c[order])) > np.log(1.05)) + 1
        return np.split(order, jumps)


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """y = coefficient * x ** exponent."""

    coefficient: float
    exponent: float

    def __call__(self, x: float) -> float:
        return self.coefficient * x**self.exponent


def power_law(x: Array, y: Array) -> PowerLaw:
    """Fit a line to log y over log x by least squares.

    >>> law = power_law(np.array([1.0, 10.0, 100.0]), np.array([2.0, 20.0, 200.0]))
    >>> round(law.coefficient, 6), round(law.exponent, 6)
    (2.0, 1.0)
    """
    exponent, intercept = np.polyfit(np.log(x), np.log(y), 1)
    return PowerLaw(float(np.exp(intercept)), float(exponent))


def envelope(runs: Runs) -> Runs:
    """Return the run with the lowest loss at each budget (approach 1).

    To use whole training curves, pass `at_budgets(...)` of them.
    """
    return runs.take(np.array([rows[np.argmin(runs.loss[rows])] for rows in runs.budgets()]))


def at_budgets(curves: Sequence[Runs], budgets: Array) -> Runs:
    """Interpolate training curves at common budgets of FLOPs; a curve counts only between its first and last point.

    `curves` hold one run's evaluations each, in the order of training. Loss is interpolated over log C.
    """
    parts = []
    for curve in curves:
        c = budgets[(budgets >= curve.c[0]) & (budgets <= curve.c[-1])]
        loss = np.interp(np.log(c), np.log(curve.c), curve.loss)
        parts.append((np.full_like(c, curve.n[0]), curve.d[0] / curve.c[0] * c, c, loss))
    return Runs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


@dataclasses.dataclass(frozen=True)
class Parabola:
    """Loss over log N at one budget: curvature * (log N - log n)² + loss, with its minimum at (n, loss)."""

    c: float
    n: float
    d: float
    loss: float
    curvature: float

    def __call__(self, n: Array) -> Array:
        return self.curvature * (np.log(n) - np.log(self.n)) ** 2 + self.loss


def isoflops(runs: Runs) -> list[Parabola]:
    """Fit a parabola at each budget with at least three sizes (approach 2).

    A budget whose parabola opens downwards, or whose minimum is outside the sizes tried, says nothing about the
    optimum and is left out.
    """
    found = []
    for rows in runs.budgets():
        log_n = np.log(runs.n[rows])
        if len(np.unique(log_n)) < LEAST_SIZES:
            continue
        centre = log_n.mean()
        curvature, slope, level = np.polyfit(log_n - centre, runs.loss[rows], 2)
        best = centre - slope / (2 * curvature)
        if curvature <= 0 or not log_n.min() <= best <= log_n.max():
            continue
        c = float(np.exp(np.log(runs.c[rows]).mean()))
        # FLOPs per token as a power of N, so that tokens follow for any way of counting C
        per_token = power_law(runs.n[rows], runs.c[rows] / runs.d[rows])
        n = float(np.exp(best))
        low = float(level - slope**2 / (4 * curvature))
        found.append(Parabola(c, n, c / per_token(n), low, float(curvature)))
    return found


@dataclasses.dataclass(frozen=True)
class Surface:
    """L(N, D) = e + a / N^alpha + b / D^beta, in nats per token (approach 3)."""

    e: float
    a: float
    b: float
    alpha: float
    beta: float

    def loss(self, n: Array, d: Array) -> Array:
        """Return the loss of models of n parameters trained on d tokens."""
        return self.e + self.a * n**-self.alpha + self.b * d**-self.beta

    def optimum(
        self, c: float, flops_per_token: Callable[[Array], Array] = lambda n: 6 * n
    ) -> tuple[float, float]:
        """Return the (N, D) of least loss that c FLOPs can buy.

        For 6 N FLOPs per token this is N = G (c/6)^(beta / (alpha + beta)), equation 4 of the paper; other ways of
        counting have no closed form, so log N is searched on a grid that shrinks around its best point.
        """
        low, high = 0.0, np.log(c)
        for _ in range(16):
            log_n = np.linspace(low, high, 33)
            n = np.exp(log_n)
            best = int(np.argmin(self.loss(n, c / flops_per_token(n))))
            low, high = log_n[max(best - 1, 0)], log_n[min(best + 1, 32)]
        return float(n[best]), float(c / flops_per_token(n[best]))


def parametric(runs: Runs, start: Surface | None = None) -> Surface:
    """Fit the parametric form by Huber loss on log L, minimized by L-BFGS from the best points of a grid of starts.

    With `start`, only from there: what a bootstrap draw needs. ValueError if there are too few runs, or if the fit does
    not converge to positive exponents.
    """
    _check(runs)
    log_n, log_d, log_l = (torch.from_numpy(np.log(x)) for x in (runs.n, runs.d, runs.loss))
    # Centred, so that log A does not move with alpha: the uncentred valley is long, curved and flat.
    middle_n, middle_d = log_n.mean(), log_d.mean()
    x, y = log_n - middle_n, log_d - middle_d

    def objective(theta: Tensor) -> Tensor:
        """Return the sum (a mean would end L-BFGS early) of Huber losses in units of DELTA²; theta: (…, 5)."""
        a, b, e, alpha, beta = (theta[..., i, None] for i in range(5))
        terms = torch.stack([a - alpha * x, b - beta * y, e.expand_as(a - alpha * x)])  # (3, …, R)
        residual = (log_l - torch.logsumexp(terms, 0)) / DELTA
        size = residual.abs()
        return torch.where(size <= 1, residual**2 / 2, size - 0.5).sum(-1)

    if start is None:
        starts = _grid(objective, float(log_l.min()))
    else:
        a = np.log(start.a) - start.alpha * float(middle_n)
        b = np.log(start.b) - start.beta * float(middle_d)
        starts = [torch.tensor([a, b, np.log(start.e), start.alpha, start.beta], dtype=torch.float64)]
    ends = [_minimize(objective, each) for each in starts]
    best = min(ends, key=lambda theta: _value(objective, theta))
    a, b, e, alpha, beta = best.tolist()
    surface = Surface(
        *np.exp([e, a + alpha * float(middle_n), b + beta * float(middle_d)]).tolist(), alpha, beta
    )
    if not np.all(np.isfinite(dataclasses.astuple(surface))) or alpha <= 0 or beta <= 0:
        raise ValueError(
            f"the parametric fit did not converge (alpha {alpha:.3g}, beta {beta:.3g}): add runs whose sizes and "
            "token counts differ more"
        )
    return surface


def _check(runs: Runs) -> None:
    if len(runs) < LEAST_RUNS:
        raise ValueError(
            f"{len(runs)} runs are too few to fit five constants: add runs until there are {LEAST_RUNS}"
        )
    for name, values in (("sizes", runs.n), ("token counts", runs.d)):
        if len(np.unique(values)) < 3:
            raise ValueError(
                f"the runs have {len(np.unique(values))} different {name}, and a power law with an offset needs 3: "
                "add runs"
            )


def _grid(objective: Callable[[Tensor], Tensor], lowest: float, keep: int = 6) -> list[Tensor]:
    """Return the best points of a grid of starts; with centred x and y every term is below the loss itself."""
    terms = [lowest + shift for shift in (-3.0, -2.0, -1.0, -0.5)]
    floors = [lowest + shift for shift in (-2.0, -1.0, -0.5, -0.2, -0.05)]
    exponents = (0.1, 0.25, 0.4, 0.6, 1.0)
    points = list(itertools.product(terms, terms, floors, exponents, exponents))
    starts = torch.tensor(points, dtype=torch.float64)  # (S, 5)
    order = objective(starts).argsort()[:keep]
    return list(starts[order])


def _minimize(objective: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    theta = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=300, tolerance_grad=1e-8, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(theta)
        value.backward()
        return value

    optimizer.step(closure)
    return theta.detach()


def _value(objective: Callable[[Tensor], Tensor], theta: Tensor) -> float:
    value = float(objective(theta))
    return value if np.isfinite(value) else np.inf


def project(runs: Runs) -> Surface:
    """Fit the parametric form by variable projection: only alpha and beta are searched.

    For given exponents the form is linear in E, A and B, which weighted least squares finds at once (Golub and Pereyra
    1973); the weights make it Huber's loss of the relative error. The two exponents are searched on a grid that is
    refined around its best point. Better conditioned than five constants at once, and no start is needed.
    """
    _check(runs)
    log_alpha, log_beta, reach = np.log(0.35), np.log(0.35), 1.8
    for _ in range(40):
        steps = np.linspace(-reach, reach, 9)
        alphas, betas = (g.ravel() for g in np.meshgrid(np.exp(log_alpha + steps), np.exp(log_beta + steps)))
        values, linear = _project(runs, alphas, betas)
        best = int(np.argmin(values))
        log_alpha, log_beta = np.log(alphas[best]), np.log(betas[best])
        reach *= 0.6
    if not np.isfinite(values[best]):
        raise ValueError(
            "no exponents give positive E, A and B: add runs whose sizes and token counts differ more"
        )
    e, a, b = linear[best]
    alpha, beta = alphas[best], betas[best]
    scale_n, scale_d = np.exp(np.log(runs.n).mean()), np.exp(np.log(runs.d).mean())
    return Surface(float(e), float(a * scale_n**alpha), float(b * scale_d**beta), float(alpha), float(beta))


def _project(runs: Runs, alphas: Array, betas: Array) -> tuple[Array, Array]:
    """Return Huber losses (P,) and the (E, A, B) (P, 3) of P pairs of exponents, for sizes divided by their means."""
    x = np.log(runs.n) - np.log(runs.n).mean()
    y = np.log(runs.d) - np.log(runs.d).mean()
    columns = np.stack(
        [np.ones((len(alphas), len(x))), np.exp(-alphas[:, None] * x), np.exp(-betas[:, None] * y)], axis=-1
    )  # (P, R, 3)
    columns /= runs.loss[:, None]  # relative errors: the right-hand side is 1
    weights = np.ones(columns.shape[:2])  # (P, R)
    for _ in range(60):
        weighted = columns * weights[..., None]
        normal = np.einsum("pri,prj->pij", weighted, columns) + 1e-14 * np.eye(3)
        linear = np.linalg.solve(normal, weighted.sum(1)[..., None])[..., 0]  # (P, 3)
        residual = np.einsum("pri,pi->pr", columns, linear) - 1
        weights = 1 / np.maximum(np.abs(residual) / DELTA, 1)  # iteratively reweighted: Huber's loss
    size = np.abs(residual) / DELTA
    values = np.where(size <= 1, size**2 / 2, size - 0.5).sum(1)
    values[(linear <= 0).any(1)] = np.inf
    return values, linear


def bootstrap(runs: Runs, draws: int, seed: int, *, by_budget: bool = False) -> list[Runs]:
    """Return `draws` resamplings of the runs with replacement; `by_budget` keeps the number of runs of each budget."""
    generator = np.random.default_rng(seed)
    groups = runs.budgets() if by_budget else [np.arange(len(runs))]
    return [
        runs.take(np.concatenate([generator.choice(rows, len(rows)) for rows in groups]))
        for _ in range(draws)
    ]


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the central interval that holds `level` of the values.

    >>> [round(end, 6) for end in interval(range(101), 0.9)]
    [5.0, 95.0]
    """
    tail = (1 - level) / 2
    low, high = np.quantile(np.asarray(values, dtype=float), [tail, 1 - tail])
    return float(low), float(high)
