"""The examples in the docstrings of what surrounds a trained model run, and so do those of docs/sampling.md."""

import doctest
import re
from pathlib import Path

import pytest

from training import ablation, evaluate, originality, probabilities, scoring, text


@pytest.mark.parametrize(
    "module",
    [ablation, evaluate, originality, probabilities, scoring, text],
    ids=lambda module: module.__name__,
)
def test_examples_in_the_code_run(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


PAGE = Path(__file__).parents[2] / "docs" / "sampling.md"


def test_examples_on_the_page_run():
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert result.attempted >= 5 and not result.failed


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#:]+)\)", PAGE.read_text(encoding="utf-8"))
    assert len(targets) > 8
    for target in targets:
        assert (PAGE.parent / target).exists(), target
