"""docs/kernels/emulator.md is true: its first kernel sums, is caught without its barrier, and its traces run."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from kernels.workbench import trace

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "kernels" / "emulator.md").read_text(encoding="utf-8")
KERNEL, *EXAMPLES = re.findall(r"^```(?:cuda|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
TRACES = re.findall(r"^python -m kernels trace (.*)$", re.sub(r"\\\n *", "", PAGE), re.MULTILINE)
pytestmark = pytest.mark.slow


def test_the_first_kernel_sums_and_its_accesses_are_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("row_sum.cu").write_text(KERNEL, encoding="utf-8")
    Path("tests").symlink_to(ROOT / "tests")
    names: dict = {}
    for example in EXAMPLES:
        exec(example, names)
        np.testing.assert_array_equal(names["out"], [1000, 1000, 1000])
    assert "space='shared'" in capsys.readouterr().out


def test_without_its_barrier_the_race_is_found_as_the_page_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("row_sum.cu").write_text(re.sub(r".*__syncthreads.*\n", "", KERNEL), encoding="utf-8")
    (shown,) = re.findall(r"^```\nRuntimeError: (.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    with pytest.raises(RuntimeError) as error:
        exec(EXAMPLES[0], {})
    assert str(error.value).replace(f"{tmp_path}/", "").split() == shown.split()


@pytest.mark.parametrize("command", TRACES)
def test_a_trace_shows_events(command, compiler, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    trace.main([*shlex.split(command), "--build", str(compiler.folder)])
    assert capsys.readouterr().out.count("│") > 20
