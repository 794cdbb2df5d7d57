"""The notebooks run as they are; what each claims, its own assertions hold."""

import runpy
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook, capsys):
    runpy.run_path(str(notebook), run_name="__main__")
    assert capsys.readouterr().out


def test_every_notebook_is_made_of_cells_and_ends_with_things_to_try():
    assert len(NOTEBOOKS) == 4
    for notebook in NOTEBOOKS:
        first, *cells = notebook.read_text(encoding="utf-8").split("\n# %%")
        assert first.startswith("# %% [markdown]\n# # "), notebook
        assert cells[-1].startswith(" [markdown]\n# ## Things to try\n"), notebook
