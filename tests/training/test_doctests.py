"""The examples in the docstrings of training/ run, and so do those of docs/sampling.md."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import training


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(training.__path__)])
def test_examples_in_the_code_run(name):
    assert doctest.testmod(importlib.import_module(f"training.{name}")).failed == 0


PAGE = Path(__file__).parents[2] / "docs" / "sampling.md"


def test_examples_on_the_page_run():
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert result.attempted >= 5 and not result.failed
