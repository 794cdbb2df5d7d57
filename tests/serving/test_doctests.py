"""The examples in the docstrings of serving are true."""

import doctest
import importlib
import pkgutil

import pytest

import serving


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(serving.__path__)])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(f"serving.{name}")).failed == 0
