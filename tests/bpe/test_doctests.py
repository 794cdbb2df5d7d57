"""The examples in the docstrings of bpe are true."""

import doctest
import importlib
import pkgutil

import pytest

import bpe


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(bpe.__path__)])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(f"bpe.{name}")).failed == 0
