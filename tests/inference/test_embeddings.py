"""The embeddings' view: words read from a tokenizer.json, neighbours, projections, the plot."""

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from bpe import Tokenizer
from inference.__main__ import main
from inference.embeddings import nearest, positions, principal_components, whole_words, word_ids
from model import GPT, GPTConfig

MERGES = (
    "t+h th+e _+the d+o do+g _+dog c+a ca+t _+cat s+u su+n _+sun c+o l+d co+ld _+cold w+a r+m wa+rm _+warm"
)
WORDS = ["the", "dog", "cat", "sun", "cold", "warm"]


@pytest.fixture
def tokenizer():
    """Return a tokenizer whose vocabulary holds six words."""
    pairs = (pair.replace("_", " ").encode().split(b"+") for pair in MERGES.split())
    return Tokenizer([(left, right) for left, right in pairs])


@pytest.fixture
def run(tokenizer, tmp_path):
    """Return a run's files, with a model in which dog is near cat."""
    tokenizer.save(tmp_path / "tokenizer.json")
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, block_size=12, n_layer=1, n_head=2, n_embd=16))
    with torch.no_grad():
        dog, cat = tokenizer.encode(" dog cat")
        gpt.wte.weight[dog] = 3 * gpt.wte.weight[cat] + 1e-3
    gpt.save_pretrained(tmp_path / "best")
    return tmp_path


def test_words_are_tokens_of_a_space_and_letters_in_order_of_id(tokenizer):
    assert list(whole_words(tokenizer)) == WORDS


@pytest.mark.parametrize(
    "asked, left_out", [("sun", ["sun"]), ("sundog", ["sun"]), ("warm cat", ["warm", "cat"])]
)
def test_neighbours_are_those_of_the_highest_cosine_with_the_mean_of_the_tokens(tokenizer, asked, left_out):
    table, words, ids = torch.randn(300, 16), whole_words(tokenizer), word_ids(tokenizer, asked)
    assert tokenizer.decode(ids) == " " + asked
    ours = nearest(table, words, ids, 4)
    rows = table.double().numpy()
    mean = np.mean([rows[i] for i in ids], axis=0)
    expected = {
        word: rows[i] @ mean / np.linalg.norm(rows[i]) / np.linalg.norm(mean)
        for word, i in words.items()
        if word not in left_out
    }
    assert [word for word, _ in ours] == sorted(expected, key=expected.get, reverse=True)[:4]
    for word, cosine in ours:
        assert cosine == pytest.approx(expected[word], abs=1e-5)


def test_principal_components_are_the_covariances_eigenvectors():
    x = torch.randn(50, 6, dtype=torch.float64) * torch.tensor([5.0, 3.0, 1.0, 0.5, 0.2, 0.1])
    values, vectors = np.linalg.eigh(np.cov(x.numpy().T))
    expected = (x - x.mean(0)).numpy() @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(principal_components(x).numpy()), np.abs(expected), atol=1e-9)
    np.testing.assert_allclose(principal_components(x).var(0), values[::-1][:2])


def test_three_kinds_of_positions_where_the_model_learned_one(run):
    assert list(positions(GPT.from_pretrained(run / "best"))) == [
        "learned",
        "sinusoidal",
        "rotary: cosine of the angle",
    ]
    rotary = GPTConfig(vocab_size=10, block_size=12, n_layer=1, n_head=2, n_embd=16, positions="rotary")
    assert len(positions(GPT(rotary))) == 2


def test_the_command_prints_neighbours_and_draws(run, capsys):
    plot = run / "out.png"
    words = ["dog", "sun", "doghouse"]
    main(["embeddings", str(run), "--words", *words, "--neighbours", "2", "--plot", str(plot)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("dog: cat 1.00, ") and lines[1].startswith("sun: ")
    assert lines[2].startswith("doghouse (mean of dog + h + o + u + s + e): ")
    image = imread(plot)
    assert min(image.shape[:2]) > 400 and image[..., :3].std() > 0.05


def test_no_name_in_the_plot_covers_another():
    from common import plots
    from inference.embeddings import _scatter

    axes = plots.figure(8, 8).subplots()
    close = torch.tensor([[0.0, 0.0], [0.001, 0.0], [1.0, 1.0]])
    _scatter(axes, "words", close, ["kitten", "puppy", "storm"])
    assert [text.get_text() for text in axes.texts] == ["kitten", "storm"]
    one, two = (text.get_window_extent() for text in axes.texts)
    assert not one.overlaps(two)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--words", " "], "' ' is no word"),
        (["--plot", "out.qqq"], "qqq"),
        (["--neighbours", "0"], "neighbours is 0"),
    ],
)
def test_mistakes_are_named(run, refused, argv, message):
    assert message in refused(main, "embeddings", str(run), *argv)


@pytest.mark.parametrize("content", ["[]", '{"model": {}}', "{", '{"model": {"vocab": {"a": 0}}}'])
def test_a_file_that_is_no_tokenizer_is_named(run, refused, content):
    (run / "tokenizer.json").write_text(content)
    assert "tokenizer.json" in refused(main, "embeddings", str(run))
