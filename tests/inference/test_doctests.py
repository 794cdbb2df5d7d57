"""The examples in the docstrings of inference/ run."""

import doctest
import importlib
import pkgutil

import pytest

import inference


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(inference.__path__)])
def test_examples_in_the_code_run(name):
    assert doctest.testmod(importlib.import_module(f"inference.{name}")).failed == 0
