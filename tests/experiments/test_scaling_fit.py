"""The fits of scaling laws, against surfaces whose constants are known and against published fits of published runs.

The published runs are not part of the project. To repeat the last three tests, put two files into a folder and name it
in SLM_SCALING_DATA: svg_extracted_data.csv of Epoch AI's analyzing-chinchilla, and isoflops_curves.json of the scaling
assignment of Stanford's CS336 (2024).
"""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from experiments.scaling import fit
from experiments.scaling.fit import Runs, Surface

CHINCHILLA = Surface(e=1.69, a=406.4, b=410.7, alpha=0.34, beta=0.28)  # Hoffmann et al. 2022, equation 10
TINY = Surface(e=0.31, a=9.5, b=77.0, alpha=0.41, beta=0.52)


def on_a_grid(surface: Surface, sizes, budgets) -> Runs:
    n, c = (each.ravel() for each in np.meshgrid(sizes, budgets))
    return Runs(n, c / (6 * n), c, surface.loss(n, c / (6 * n)))


@pytest.mark.parametrize(
    ("surface", "sizes", "budgets"),
    [
        (CHINCHILLA, np.geomspace(1e7, 1e10, 7), np.geomspace(1e18, 1e21, 5)),
        (TINY, np.geomspace(2e4, 1e6, 6), np.geomspace(1e12, 3e13, 5)),
    ],
)
@pytest.mark.parametrize("method", [fit.parametric, fit.project])
def test_constants_of_a_noise_free_surface_come_back(surface, sizes, budgets, method):
    found = method(on_a_grid(surface, sizes, budgets))
    for name in ("e", "a", "b", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(surface, name), rel=1e-3), name


def test_the_optimum_is_the_closed_form_and_beats_its_neighbours():
    c = 5.76e23
    n, d = CHINCHILLA.optimum(c)
    e, a, b, alpha, beta = 1.69, 406.4, 410.7, 0.34, 0.28
    g = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    assert n == pytest.approx(g * (c / 6) ** (beta / (alpha + beta)), rel=1e-6)
    assert 6 * n * d == pytest.approx(c)
    best = CHINCHILLA.loss(n, d)
    assert all(CHINCHILLA.loss(n * f, d / f) > best for f in (0.9, 1.1))
    assert best == pytest.approx(e + a / n**alpha + b / d**beta)


def test_parabolas_find_minima_that_follow_a_power_law():
    budgets, exponent = np.geomspace(1e15, 1e17, 4), 0.47
    parts = []
    for c in budgets:
        n = 3.0 * c**exponent * np.geomspace(0.3, 4, 6)
        parts.append((n, c / (6 * n), np.full_like(n, c), 2 + 0.1 * np.log(n / (3.0 * c**exponent)) ** 2))
    runs = Runs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    found = fit.isoflops(runs)
    law = fit.power_law(np.array([p.c for p in found]), np.array([p.n for p in found]))
    assert (law.exponent, law.coefficient) == pytest.approx((exponent, 3.0), rel=1e-6)
    assert [6 * p.n * p.d for p in found] == pytest.approx(list(budgets))
    assert [p.loss for p in found] == pytest.approx([2.0] * 4)


def test_a_parabola_without_a_minimum_inside_is_left_out():
    n = np.array([1e5, 2e5, 4e5])
    falling = Runs(n, 1e12 / (6 * n), np.full(3, 1e12), np.array([3.0, 2.5, 2.2]))
    hill = Runs(n, 1e12 / (6 * n), np.full(3, 1e12), np.array([2.0, 2.5, 2.2]))
    assert fit.isoflops(falling) == fit.isoflops(hill) == []


def test_training_curves_are_read_at_common_budgets():
    c = np.geomspace(1e12, 1e14, 9)
    curves = [Runs(np.full(9, n), c / (6 * n), c, TINY.loss(n, c / (6 * n))) for n in (5e4, 2e5, 8e5)]
    runs = fit.envelope(fit.at_budgets(curves, np.geomspace(2e12, 5e13, 5)))
    expected = [min((5e4, 2e5, 8e5), key=lambda n: TINY.loss(n, c / (6 * n))) for c in runs.c]
    assert list(runs.n) == expected
    assert runs.loss == pytest.approx(TINY.loss(runs.n, runs.c / (6 * runs.n)), rel=2e-2)


def test_intervals_hold_the_truth_of_noisy_runs():
    runs = on_a_grid(TINY, np.geomspace(2e4, 1e6, 7), np.geomspace(1e12, 3e13, 6))
    noise = np.exp(np.random.default_rng(0).normal(0, 2e-3, len(runs)))
    runs = Runs(runs.n, runs.d, runs.c, runs.loss * noise)
    best = fit.parametric(runs)
    draws = [fit.parametric(each, start=best) for each in fit.bootstrap(runs, 60, seed=0)]
    for name in ("e", "alpha", "beta"):
        low, high = fit.interval([getattr(draw, name) for draw in draws], 0.99)
        assert low < getattr(TINY, name) < high
        assert low < getattr(best, name) < high


@pytest.mark.parametrize("method", [fit.parametric, fit.project])
def test_too_few_runs_are_named(method):
    runs = on_a_grid(TINY, np.array([1e5]), np.geomspace(1e12, 3e13, 5))
    with pytest.raises(ValueError, match="5 runs are too few to fit five constants"):
        method(runs)


@pytest.mark.parametrize("method", [fit.parametric, fit.project])
def test_runs_of_two_sizes_are_refused(method):
    with pytest.raises(ValueError, match="the runs have 2 different sizes"):
        method(on_a_grid(TINY, np.array([1e5, 2e5]), np.geomspace(1e12, 3e13, 5)))


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_a_loss_that_is_no_positive_number_is_refused(bad):
    one = np.ones(3)
    with pytest.raises(ValueError, match="a run has loss that is not a positive number"):
        Runs(one, one, one, np.array([1.0, bad, 1.0]))


def published(name: str) -> Path:
    path = Path(os.environ.get("SLM_SCALING_DATA", "")) / name
    if "SLM_SCALING_DATA" not in os.environ or not path.is_file():
        pytest.skip(f"SLM_SCALING_DATA names no folder with {name}")
    return path


@pytest.fixture
def chinchilla() -> Runs:
    """Return the 240 runs that Epoch AI kept: all digitized points but the five of highest loss."""
    rows = list(csv.DictReader(published("svg_extracted_data.csv").read_text().splitlines()))
    n, c, loss = (np.array([float(r[k]) for r in rows]) for k in ("Model Size", "Training FLOP", "loss"))
    runs = Runs(n, c / (6 * n), c, loss)
    return runs.take(np.sort(np.argsort(loss)[:-5]))


@pytest.mark.slow
def test_the_published_replication_of_chinchilla_is_reproduced(chinchilla):
    assert len(chinchilla) == 240
    found = fit.parametric(chinchilla)
    expected = {"a": 477.8, "b": 2143, "e": 1.817, "alpha": 0.347, "beta": 0.367}
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1.5e-3), name


@pytest.mark.slow
def test_bootstrap_intervals_are_the_published_ones(chinchilla):
    best = fit.parametric(chinchilla)
    draws = [fit.parametric(each, start=best) for each in fit.bootstrap(chinchilla, 400, seed=0)]
    published_intervals = {"e": (1.769, 1.871), "alpha": (0.317, 0.373), "beta": (0.331, 0.415)}
    for name, (low, high) in published_intervals.items():
        found = fit.interval([getattr(draw, name) for draw in draws])
        # An end of an interval from 400 draws is known to about a tenth of the interval's width.
        assert found == pytest.approx((low, high), abs=0.15 * (high - low)), name


@pytest.mark.slow
def test_the_isoflop_table_of_a_course_gives_its_known_answers():
    table = json.loads(published("isoflops_curves.json").read_text())
    n, c, loss = (
        np.array([float(r[k]) for r in table]) for k in ("parameters", "compute_budget", "final_loss")
    )
    runs = Runs(n, c / (6 * n), c, loss)
    assert (len(runs), len(runs.budgets())) == (72, 9)
    lowest = fit.envelope(runs)
    law = fit.power_law(lowest.c, lowest.n)
    assert (law.exponent, law(1e23)) == pytest.approx((0.469, 7.0e10), rel=5e-3)
    parabolas = fit.isoflops(runs)
    law = fit.power_law(np.array([p.c for p in parabolas]), np.array([p.n for p in parabolas]))
    assert (law.exponent, law(1e23)) == pytest.approx((0.515, 9.1e10), rel=5e-3)
