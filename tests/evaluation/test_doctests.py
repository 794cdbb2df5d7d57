"""The examples in the docstrings of evaluation/ run."""

import doctest
import importlib
import pkgutil

import pytest

import evaluation


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(evaluation.__path__)])
def test_examples_in_the_code_run(name):
    assert doctest.testmod(importlib.import_module(f"evaluation.{name}")).failed == 0
