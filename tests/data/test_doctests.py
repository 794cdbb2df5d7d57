"""The examples in the docstrings of data/ are true."""

import doctest
import importlib
import pkgutil

import pytest

import data


@pytest.mark.parametrize("name", [module.name for module in pkgutil.walk_packages(data.__path__, "data.")])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
