"""The examples in the docstrings of kernels/ are true."""

import doctest

import pytest

from kernels import chunked_loss, decode, dispatch, ladder, reference, toolchain
from kernels.workbench import programs, trace, trace_plot
from kernels.workbench.mutation import operators
from kernels.workbench.mutation import report as mutation_report

MODULES = [
    chunked_loss,
    decode,
    dispatch,
    ladder,
    reference,
    toolchain,
    programs,
    trace,
    trace_plot,
    operators,
    mutation_report,
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
