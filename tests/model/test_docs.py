"""docs/model.md tells the truth: its excerpts are the code, its examples run; so do those in the code."""

import dataclasses
import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import model
from model import GPTConfig, accounting

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "model.md"
EXCERPTS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("excerpt", EXCERPTS, ids=lambda text: text.strip().splitlines()[0][:40])
def test_excerpts_are_the_code(excerpt):
    assert any(excerpt in path.read_text(encoding="utf-8") for path in (ROOT / "model").glob("*.py"))


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(model.__path__)])
def test_examples_in_the_code_run(name):
    assert doctest.testmod(importlib.import_module(f"model.{name}")).failed == 0


def test_the_table_of_memory_is_what_is_counted():
    cells = r"^\| `--(.*?)`:.*\| ([\d.]+) GB \| ([\d.]+) GB \| (\d+) \|$"
    rows = re.findall(cells, PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 3
    for flag, single, half, batch in rows:
        name, _, value = flag.partition(" ")
        changes = {"attention": value} if value else {"attention": "sdpa", name.replace("-", "_"): True}
        config = dataclasses.replace(GPTConfig.preset("gpt2"), **changes)
        found = [accounting.activations(config, 8, each)["blocks"] / 1e9 for each in ("float32", "bfloat16")]
        assert [f"{x:.1f}" for x in found] == [single, half]
        assert accounting.largest_batch(config, 24) == int(batch)


def test_examples_on_the_page_run():
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert result.attempted >= 10 and result.failed == 0
