"""What the embeddings have learned: neighbours by cosine, a map of the words, and positions as heat maps.

python -m inference embeddings runs/quickstart --words dog happy --plot embeddings.png

The embedding of a word of several tokens is the mean of theirs.
"""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bpe import Tokenizer
from common import plots
from inference.text import TextModel
from model import GPT, GPTConfig
from model.layers import SinusoidalPositions, position_angles


def show(run: Path, words: Sequence[str], neighbours: int, plot: Path | None, labels: int) -> None:
    """Print the neighbours of `words` in the model of `run` and, with a path, draw the plot."""
    if neighbours < 1 or labels < 3:
        raise ValueError(f"neighbours is {neighbours} and labels {labels}: they must be at least 1 and 3")
    text_model = TextModel.load(run, "cpu")
    gpt, tokenizer = text_model.model, text_model.tokenizer
    vocabulary = whole_words(tokenizer)
    if len(vocabulary) < 2:
        raise ValueError(f"the vocabulary of {run} is too small: it holds no two tokens that are words")
    table = gpt.wte.weight.detach()
    asked = {word: word_ids(tokenizer, word) for word in words or list(vocabulary)[:12]}
    for word, ids in asked.items():
        found = nearest(table, vocabulary, ids, neighbours)
        print(
            f"{_spelled(tokenizer, word, ids)}: " + ", ".join(f"{other} {near:.2f}" for other, near in found)
        )
    if plot is not None:
        named = {word: asked[word] for word in words}  # the common words of the default are in the map anyway
        draw(gpt, named, told_apart(table, vocabulary, labels), plot)
        print(f"drawn: {plot}")


def whole_words(tokenizer: Tokenizer) -> dict[str, int]:
    """Return word -> id for the tokens that are a space and at least three ASCII letters.

    They are in the order of their ids, roughly from common to rare: BPE merges frequent pairs first.

    >>> whole_words(Tokenizer([(b"t", b"h"), (b"th", b"e"), (b" ", b"the")]))
    {'the': 258}
    """
    tokens = sorted(tokenizer.vocab.items())
    return {token[1:].decode(): id for id, token in tokens if re.fullmatch(rb" [A-Za-z]{3,}", token)}


def word_ids(tokenizer: Tokenizer, word: str) -> list[int]:
    """Return the ids of a word as it is in the middle of a text, after a space.

    >>> word_ids(Tokenizer([(b"t", b"h"), (b"th", b"e"), (b" ", b"the")]), "then")
    [258, 110]
    """
    if not word.strip():
        raise ValueError(f"{word!r} is no word: give one with a letter in it")
    return tokenizer.encode(" " + word.strip())


def _spelled(tokenizer: Tokenizer, word: str, ids: Sequence[int]) -> str:
    """Return the word, and its tokens if there are several."""
    if len(ids) == 1:
        return word
    return f"{word} (mean of {' + '.join(tokenizer.decode([id]).strip() for id in ids)})"


def nearest(
    table: Tensor, vocabulary: dict[str, int], ids: Sequence[int], count: int
) -> list[tuple[str, float]]:
    """Return the `count` words whose rows of `table` (V, C) have the largest cosine with the mean of those of `ids`.

    The tokens in `ids` are left out.

    >>> table = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    >>> nearest(table, {"right": 0, "up": 1, "between": 2}, [1], 1)
    [('between', 0.7071068286895752)]
    >>> [(word, round(cosine, 4)) for word, cosine in nearest(table, {"right": 0, "between": 2}, [0, 1], 1)]
    [('between', 0.9487)]
    """
    others = [word for word, id in vocabulary.items() if id not in ids]
    rows = torch.nn.functional.normalize(table[[vocabulary[other] for other in others]], dim=-1)  # (n, C)
    cosines = rows @ torch.nn.functional.normalize(table[list(ids)].mean(0), dim=0)  # (n,)
    best = cosines.topk(min(count, len(others)))
    return [(others[i], value) for value, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


ALIKE = 0.98  # cosine of two rows that training has pushed the same way; related words are far below


def told_apart(table: Tensor, vocabulary: dict[str, int], count: int) -> dict[str, int]:
    """Return the first `count` words whose row of `table` (V, C) is unlike all others.

    A token that only ever is a part of longer ones, such as " smil", never occurs: training pushes all of these alike.

    >>> table = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.1]])
    >>> told_apart(table, {"gre": 0, "day": 1, "smil": 2}, 3)
    {'day': 1}
    """
    first = dict(list(vocabulary.items())[: 4 * count])
    rows = torch.nn.functional.normalize(table[list(first.values())], dim=-1)  # (n, C)
    alike = (rows @ rows.mT).fill_diagonal_(0).amax(-1) > ALIKE  # (n, n) -> (n,)
    kept = [word for word, dropped in zip(first, alike.tolist(), strict=True) if not dropped]
    return {word: first[word] for word in kept[:count]}


def principal_components(x: Tensor, count: int = 2) -> Tensor:
    """Return the coordinates (n, count) of rows (n, C) along the directions in which they vary most."""
    centered = x - x.mean(0)
    u, s, _ = torch.linalg.svd(centered, full_matrices=False)
    return u[:, :count] * s[:count]


def projections(x: Tensor) -> dict[str, Tensor]:
    """Return PCA of x (n, C) -> (n, 2), and UMAP or t-SNE if umap-learn or scikit-learn is installed."""
    maps = {"PCA": principal_components(x)}
    if importlib.util.find_spec("umap"):
        import umap

        maps["UMAP"] = torch.from_numpy(umap.UMAP(random_state=0, metric="cosine").fit_transform(x.numpy()))
    elif importlib.util.find_spec("sklearn"):
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(x) - 1) / 3)
        maps["t-SNE"] = torch.from_numpy(TSNE(perplexity=perplexity, random_state=0).fit_transform(x.numpy()))
    return maps


def positions(gpt: GPT) -> dict[str, Tensor]:
    """Return the kinds of position embeddings as (T, …) tables; the learned one if the model has it."""
    config: GPTConfig = gpt.config
    at = torch.arange(config.block_size)
    tables = {
        "sinusoidal": SinusoidalPositions(_even(config.n_embd))(at),
        "rotary: cosine of the angle": position_angles(at, _even(config.head_dim)).cos(),
    }
    if config.positions == "learned":
        tables = {"learned": gpt.wpe.weight.detach(), **tables}
    return tables


def _even(width: int) -> int:
    return width + width % 2


def draw(gpt: GPT, asked: dict[str, list[int]], vocabulary: dict[str, int], path: Path) -> None:
    """Draw the words in two dimensions and the positions as heat maps, into a PNG, PDF or SVG.

    The words that were asked for come first, so that no other name covers theirs.
    """
    table = gpt.wte.weight.detach()
    ids = {**asked, **{word: [id] for word, id in vocabulary.items() if word not in asked}}
    maps = projections(torch.stack([table[each].mean(0) for each in ids.values()]))  # (n, C) -> (n, 2)
    tables = positions(gpt)
    figure = plots.figure(18, 9 * len(maps) + 5)
    words, heat = figure.subfigures(2, 1, height_ratios=[9 * len(maps), 5])
    for axes, (name, points) in zip(
        words.subplots(len(maps), squeeze=False)[:, 0], maps.items(), strict=True
    ):
        _scatter(axes, f"token embeddings, {name}", points, list(ids), len(asked))
    for axes, (name, table) in zip(heat.subplots(1, len(tables)), tables.items(), strict=True):
        image = axes.imshow(table.numpy(), aspect="auto", cmap="RdBu", interpolation="nearest")
        axes.set(title=f"positions, {name}", xlabel="column", ylabel="position")
        heat.colorbar(image, ax=axes)
    plots.save(figure, path, dpi=80)


def _scatter(axes: Any, title: str, points: Tensor, names: list[str], asked: int = 0) -> None:
    """Draw the points, the first `asked` ones larger, and the names from the first on that cover no other name."""
    axes.scatter(*points[asked:].T.numpy(), s=4, label="words of one token")
    if asked:
        axes.scatter(*points[:asked].T.numpy(), s=40, label="--words; of several tokens: their mean")
        axes.legend()
    axes.set_title(title)
    axes.get_figure(root=True).draw_without_rendering()  # names are measured where they will be
    taken: list[Any] = []
    for name, (x, y) in zip(names, points.tolist(), strict=True):
        label = axes.annotate(name, (x, y), fontsize=8, parse_math=False)
        box = label.get_window_extent()
        if box.count_overlaps(taken):
            label.remove()
        else:
            taken.append(box)
