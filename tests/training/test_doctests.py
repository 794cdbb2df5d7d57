"""The examples in the docstrings of what surrounds a trained model run."""

import doctest

import pytest

from training import ablation, evaluate, originality, probabilities, scoring, text


@pytest.mark.parametrize(
    "module",
    [ablation, evaluate, originality, probabilities, scoring, text],
    ids=lambda module: module.__name__,
)
def test_examples_in_the_code_run(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
