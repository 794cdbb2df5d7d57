"""The pictures of the docs are what their code draws, are shown with a description, and fit light and dark."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from matplotlib.image import imread

from kernels.ladder import OPS
from model import GPT, GPTConfig, layouts
from scripts.pictures import kernels, model
from scripts.pictures.__main__ import DRAWN, FROM_A_RUN, main

ROOT = Path(__file__).parents[2]
PLOTS = ROOT / "docs" / "plots"
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_what_its_code_draws(name):
    drawn = DRAWN[name]().svg()
    assert drawn == (PLOTS / f"{name}.svg").read_text(encoding="utf-8"), "run python -m scripts.pictures"


@pytest.mark.parametrize("name", [*DRAWN, *FROM_A_RUN])
def test_every_picture_is_shown_with_a_description_and_has_colours_for_the_dark(name):
    text = (PLOTS / f"{name}.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(text).get("viewBox") and "prefers-color-scheme:dark" in text
    assert not re.search(r'(?:fill|stroke)="', text), "colours come from classes, which know light and dark"
    shown = [re.findall(rf"!\[([^\]]+)\]\(\S*plots/{name}\.svg\)", page.read_text("utf-8")) for page in PAGES]
    assert any(len(alt) > 30 for found in shown for alt in found)


def test_all_pictures_together_are_small():
    assert sum((PLOTS / f"{name}.svg").stat().st_size for name in (*DRAWN, *FROM_A_RUN)) < 1_000_000


def test_pictures_of_a_run_are_drawn_from_any_run(babble, tmp_path):
    main(["--run", str(babble), "--only", *FROM_A_RUN, "--out", str(tmp_path)])
    for name in FROM_A_RUN:
        ElementTree.fromstring((tmp_path / f"{name}.svg").read_text(encoding="utf-8"))


def test_the_lens_is_photographed_if_there_is_a_browser(babble, tmp_path, capsys):
    try:
        main(["--run", str(babble), "--only", "lens", "--out", str(tmp_path)])
    except SystemExit:
        assert "it is a photograph of a browser: pip install playwright" in (
            err := capsys.readouterr().err
        ) or ("there is no Chromium" in err)
    else:
        assert imread(tmp_path / "lens.png").shape[:2] == (900, 1200)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--only", "mona_lisa"], "no picture 'mona_lisa': choose from"),
        (
            ["--only", "loss", "--run", "nowhere"],
            "it shows a trained model, and nowhere is none: make train",
        ),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_one_line(argv, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*argv, "--out", str(tmp_path)])
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_attention_map_is_that_of_transformers(babble):
    transformers = pytest.importorskip("transformers")
    ids = [5, 300, 7, 8, 9, 200]
    theirs = transformers.GPT2LMHeadModel.from_pretrained(babble / "best", attn_implementation="eager")
    with torch.no_grad():
        weights = theirs(torch.tensor([ids]), output_attentions=True).attentions[0][0]
    ours = model.attention_weights(GPT.from_pretrained(babble / "best"), ids, 0)
    torch.testing.assert_close(ours, weights, rtol=1e-4, atol=1e-5)


def test_the_attention_map_of_rotary_positions_is_that_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    shape = {"vocab_size": 50, "block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16}
    llama = {"norm": "rmsnorm", "positions": "rotary", "mlp": "swiglu", "bias": False, "n_inner": 32}
    gpt = GPT(GPTConfig(**shape, **llama))
    layouts.save(tmp_path, gpt.config, gpt.state_dict())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    ids = [5, 30, 7, 8]
    with torch.no_grad():
        weights = theirs(torch.tensor([ids]), output_attentions=True).attentions[0][0]
    torch.testing.assert_close(model.attention_weights(gpt, ids, 0), weights, rtol=1e-4, atol=1e-5)


def test_the_charts_of_the_ladder_show_every_rung_of_its_tables():
    assert [len(kernels.rows_of_page(op)) for op in OPS] == [5, 5, 5, 7, 5]
    assert kernels.rows_of_page("attention_forward")[2] == (
        "3 tensor cores",
        {"sectors": 11_296, "wavefronts": 76_032, "mma": 4_096},
    )
