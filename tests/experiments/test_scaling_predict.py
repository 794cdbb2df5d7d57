"""Predictions from runs on a known surface come back to that surface, and their intervals hold it."""

import numpy as np
import pytest

from common import files
from experiments.scaling import plots, predict
from experiments.scaling.fit import Runs, Surface

TRUE = Surface(e=0.31, a=9.5, b=77.0, alpha=0.41, beta=0.52)


def noisy_runs(noise: float, seed: int = 0) -> Runs:
    """Return 36 runs at 6 budgets, sizes around each budget's optimum."""
    parts = []
    for c in np.geomspace(1e12, 3e13, 6):
        n = TRUE.optimum(c)[0] * np.geomspace(0.25, 4, 6)
        parts.append((n, c / (6 * n), np.full(6, c)))
    n, d, c = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Runs(n, d, c, TRUE.loss(n, d) * np.exp(np.random.default_rng(seed).normal(0, noise, len(n))))


@pytest.fixture(scope="module")
def fitted() -> predict.Fitted:
    return predict.fitted(noisy_runs(2e-3), draws=24)


def test_a_larger_budget_is_predicted_and_the_interval_holds_the_truth(fitted):
    c = 4 * 3e13
    n, d = TRUE.optimum(c)
    loss = fitted.loss(n, d)
    assert loss.value == pytest.approx(TRUE.loss(n, d), rel=0.01)
    assert loss.low < TRUE.loss(n, d) < loss.high
    size, tokens = fitted.optimum(c)
    assert size.low < n < size.high
    assert tokens.low < d < tokens.high
    assert 6 * size.value * tokens.value == pytest.approx(c, rel=1e-6)


def test_all_three_approaches_agree_on_the_exponent(fitted):
    exponents = {law.approach: law.exponent for law in fitted.laws}
    true = 0.52 / (0.41 + 0.52)
    assert list(exponents) == ["envelope", "isoflops", "parametric"]
    assert exponents["parametric"].low < true < exponents["parametric"].high
    assert exponents["isoflops"].value == pytest.approx(true, abs=0.05)


def test_more_noise_widens_the_interval(fitted):
    wider = predict.fitted(noisy_runs(1e-2), draws=16)
    n, d = TRUE.optimum(1.2e14)

    def width(found: predict.Fitted) -> float:
        return found.loss(n, d).high - found.loss(n, d).low

    assert width(wider) > 2 * width(fitted)


def test_without_common_budgets_only_the_parametric_form_is_fitted():
    random = np.random.default_rng(1)
    n, d = np.exp(random.uniform(10, 14, 30)), np.exp(random.uniform(13, 17, 30))
    found = predict.fitted(Runs(n, d, 6 * n * d, TRUE.loss(n, d)), draws=4)
    assert [law.approach for law in found.laws] == ["parametric"]


def test_an_interval_that_would_be_infinite_is_refused():
    """Six runs, of which nearly every resampling lacks three different sizes or token counts."""
    n = np.array([1e5, 2e5, 4e5, 1e5, 1e5, 1e5])
    d = np.array([1e6, 1e6, 1e6, 2e6, 4e6, 1e6])
    with pytest.raises(ValueError, match="every interval would be infinite: add runs"):
        predict.fitted(Runs(n, d, 6 * n * d, TRUE.loss(n, d)), draws=8)


def test_the_plots_are_drawn_and_the_same_runs_give_the_same_bytes(fitted, tmp_path):
    for name in ("one.svg", "two.svg"):
        plots.draw(fitted, tmp_path / name, title="synthetic")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert "IsoFLOP curves" in files.read_text(tmp_path / "one.svg")
