"""docs/model.md is true: its excerpts are the code. Examples in the code run too."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import kernels
import model
from model import GPTConfig, accounting

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "model.md"
TEXT = PAGE.read_text(encoding="utf-8")
EXCERPTS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("excerpt", EXCERPTS, ids=lambda text: text.strip().splitlines()[0][:40])
def test_excerpts_are_the_code(excerpt):
    others = ("basics/gpt.py", "kernels/reference.py", "kernels/chunked_loss.py")
    sources = [*(ROOT / "model").glob("*.py"), *(ROOT / name for name in others)]
    assert any(excerpt in path.read_text(encoding="utf-8") for path in sources)


@pytest.mark.parametrize(
    "name", [*(module.name for module in pkgutil.iter_modules(model.__path__)), "export.gguf"]
)
def test_examples_in_the_code_run(name):
    assert doctest.testmod(importlib.import_module(f"model.{name}")).failed == 0


def test_the_table_of_memory_is_what_is_counted():
    rows = re.findall(
        r"^\| (as it is|`--checkpoint).*: .*\| ([\d.]+) GB \| ([\d.]+) GB \| (\d+) \|$", TEXT, re.MULTILINE
    )
    assert [name for name, *_ in rows] == ["as it is", "`--checkpoint"]
    for name, single, half, batch in rows:
        config = GPTConfig.preset("gpt2", checkpoint_activations=name != "as it is")
        with kernels.use("torch"):
            found = [
                accounting.activations(config, 8, each)["blocks"] / 1e9 for each in ("float32", "bfloat16")
            ]
            assert [f"{x:.1f}" for x in found] == [single, half]
            assert accounting.largest_batch(config, 24) == int(batch)


def test_the_table_of_presets_is_what_is_counted():
    rows = re.findall(r"^\| `([\w-]+)` \| ([\d,]+) \| ([\d,.]+) \| ([\d,.]+) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 7
    for name, parameters, forward, backward in rows:
        config = GPTConfig.preset(name)
        flops = accounting.flops_per_token(config)
        assert parameters == f"{accounting.parameters(config)['total']:,}"
        assert [forward, backward] == [f"{flops[key] / 1e6:,.1f}" for key in ("forward", "backward")]
