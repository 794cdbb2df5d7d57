"""The examples in the docstrings of data/ are true."""

import doctest
import importlib
import pkgutil

import pytest

import data


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(data.__path__)])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(f"data.{name}")).failed == 0
