"""benchmarks/variants.py: what it makes of logs, and that every variant is a model."""

import doctest

import pytest

from benchmarks import variants
from common.bench import as_json
from model import GPTConfig


def test_the_examples_in_the_benchmark_run():
    assert doctest.testmod(variants).attempted and not doctest.testmod(variants).failed


@pytest.mark.parametrize(  # Student's own table: t for a two-sided p of 0.05, by degrees of freedom
    "freedom, t", [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (30, 2.042)]
)
def test_p_values_are_those_of_students_table(freedom, t):
    n = freedom + 1
    spread = [1.0, -1.0] * (n // 2) + [0.0] * (n % 2)  # mean 0
    deviation = (sum(x * x for x in spread) / freedom) ** 0.5
    differences = [x + t * deviation / n**0.5 for x in spread]
    assert variants.p_value(differences) == pytest.approx(0.05, abs=1e-4)


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_every_variant_changes_the_quickstart(name):
    config = GPTConfig.preset("quickstart", **variants.VARIANTS[name])
    assert (config == GPTConfig.preset("quickstart")) == (name == variants.BASELINE)


def test_a_slow_variant_is_judged_at_its_own_last_flops():
    def run(speed, gain):
        return [{"seconds": s, "flops": speed * s, "loss": 5 - gain * s} for s in (1.0, 2.0, 3.0)]

    curves = {
        variants.BASELINE: {seed: run(2.0, 1.0) for seed in (1, 2, 3)},
        "slow": {seed: run(1.0, 0.9 + seed / 100) for seed in (1, 2, 3)},
    }
    in_time, in_flops = as_json("variants", variants.rows_of(curves, "text"))["rows"]
    assert (in_time["ours"], in_time["peer_value"]) == pytest.approx((5 - 3 * 0.92, 2.0))
    assert (in_flops["ours"], in_flops["peer_value"]) == pytest.approx((5 - 3 * 0.92, 3.5))
    assert in_time["note"] == "difference +0.240, spread 0.03, p 0.0052"


def test_an_unknown_variant_is_named(refused):
    assert "unknown variant 'flux': choose of baseline, RMSNorm" in refused(variants.main, "--only", "flux")
