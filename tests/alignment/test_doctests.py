"""The examples in the docstrings of alignment are true."""

import doctest
import importlib
import pkgutil

import pytest

import alignment


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(alignment.__path__)])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(f"alignment.{name}")).failed == 0
