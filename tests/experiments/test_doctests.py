"""The examples in the docstrings of experiments/ run."""

import doctest
import importlib
import pkgutil

import pytest

import experiments


@pytest.mark.parametrize(
    "name", [module.name for module in pkgutil.walk_packages(experiments.__path__, "experiments.")]
)
def test_examples_in_the_code_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
