"""Plots are saved whole or not at all, in the format that their name says, and never twice differently."""

from xml.etree import ElementTree

import pytest

from common import plots


def drawn():
    figure = plots.figure(2, 1)
    figure.subplots().plot([1, 2, 3])
    return figure


@pytest.mark.parametrize("name", ["a.png", "a.svg", "a.pdf"])
def test_the_name_says_the_format(tmp_path, name):
    plots.save(drawn(), tmp_path / name)
    start = (tmp_path / name).read_bytes()[:8]
    assert start.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[name[1:]])


def test_another_name_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"should end in one of \.png, \.svg, \.pdf"):
        plots.save(drawn(), tmp_path / "a.doc")
    assert list(tmp_path.iterdir()) == []


def test_a_plot_that_fails_leaves_the_older_one(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    plots.save(drawn(), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plots.save(drawn(), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.parametrize("kind", plots.KINDS)
def test_the_same_plot_gives_the_same_bytes_on_another_day(tmp_path, kind, monkeypatch):
    for name in ("a", "b"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(ord(name)))  # what matplotlib takes for today
        plots.save(drawn(), tmp_path / f"{name}{kind}")
    assert (tmp_path / f"a{kind}").read_bytes() == (tmp_path / f"b{kind}").read_bytes()


def test_an_svg_is_dark_where_the_system_is(tmp_path):
    plots.save(drawn(), tmp_path / "a.svg")
    style = ElementTree.parse(tmp_path / "a.svg").find(".//{*}style").text
    assert "@media (prefers-color-scheme: dark) {svg {filter: invert" in style


def test_ratios_are_bars_that_begin_at_one(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    plots.draw_ratios({"faster": 4.0, "slower": 0.5}, tmp_path / "r.svg")
    (axes,) = drawn[0].axes
    spans = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]
    assert spans == [(1, 4), (1, 0.5)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["faster", "slower"]
