"""The examples in the docstrings of training/ run."""

import doctest
import importlib
import pkgutil

import pytest

import training


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(training.__path__)])
def test_examples_in_the_code_run(name):
    assert doctest.testmod(importlib.import_module(f"training.{name}")).failed == 0
