"""The examples in the docstrings of common/ and of the scripts."""

import doctest

import pytest

from common import bench, cli, cluster, gpus, textfiles
from scripts import gpu_check


@pytest.mark.parametrize(
    "module", [bench, cli, cluster, gpus, textfiles, gpu_check], ids=lambda module: module.__name__
)
def test_examples_in_the_docstrings_hold(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
