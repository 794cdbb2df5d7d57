"""What the embeddings have learned: neighbours by cosine, a map of the words, and positions as heat maps.

python -m inference embeddings runs/quickstart --words dog happy --plot embeddings.png
"""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import plots
from common.files import read_json, whole_directory
from model.config import GPTConfig
from model.gpt import GPT
from model.layers import SinusoidalPositions, position_angles

SPACE = "Ġ"  # how tokenizer.json spells a leading space


def show(run: Path, words: Sequence[str], neighbours: int, plot: Path | None, labels: int) -> None:
    """Print the neighbours of `words` in the model of `run` and, with a path, draw the plot."""
    if neighbours < 1 or labels < 3:
        raise ValueError(f"neighbours is {neighbours} and labels {labels}: they must be at least 1 and 3")
    vocabulary = read_words(run / "tokenizer.json")
    gpt = GPT.from_pretrained(whole_directory(run / "best"))
    if not vocabulary:
        raise ValueError(f"{run / 'tokenizer.json'} holds no token that is a word: it is too small")
    if max(vocabulary.values()) >= gpt.config.vocab_size:
        raise ValueError(f"{run / 'tokenizer.json'} has more tokens than the model's {gpt.config.vocab_size}")
    table = gpt.wte.weight.detach()
    near = {word: nearest(table, vocabulary, word, neighbours) for word in words or list(vocabulary)[:12]}
    for word, found in near.items():
        print(f"{word}: " + ", ".join(f"{other} {cosine:.2f}" for other, cosine in found))
    if plot is not None:
        draw(gpt, told_apart(table, vocabulary, labels), plot)
        print(f"drawn: {plot}")


def read_words(path: Path) -> dict[str, int]:
    """Return word -> id for the tokens of a tokenizer.json that are a space and at least three ASCII letters.

    They are in the order of their ids, roughly from common to rare: BPE merges frequent pairs first.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: give the directory of a run, such as runs/quickstart")
    content = read_json(path)
    try:
        vocabulary = content["model"]["vocab"]
        named = sorted((token_id, token) for token, token_id in vocabulary.items())
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no tokenizer.json: it has no model.vocab of tokens and ids") from error
    return {token[1:]: i for i, token in named if re.fullmatch(SPACE + "[A-Za-z]{3,}", token)}


def nearest(table: Tensor, vocabulary: dict[str, int], word: str, count: int) -> list[tuple[str, float]]:
    """Return the `count` words whose rows of `table` (V, C) have the largest cosine with that of `word`.

    >>> table = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    >>> nearest(table, {"right": 0, "up": 1, "between": 2}, "up", 1)
    [('between', 0.7071068286895752)]
    """
    if word not in vocabulary:
        raise ValueError(
            f"{word!r} is not one token of this vocabulary: try one of {', '.join(list(vocabulary)[:9])}"
        )
    others = [other for other in vocabulary if other != word]
    rows = torch.nn.functional.normalize(table[[vocabulary[other] for other in others]], dim=-1)  # (n, C)
    cosines = rows @ torch.nn.functional.normalize(table[vocabulary[word]], dim=0)  # (n,)
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


def draw(gpt: GPT, vocabulary: dict[str, int], path: Path) -> None:
    """Draw the words in two dimensions and the positions as heat maps, into a PNG, PDF or SVG."""
    maps = projections(gpt.wte.weight.detach()[list(vocabulary.values())])
    tables = positions(gpt)
    figure = plots.figure(18, 9 * len(maps) + 5)
    words, heat = figure.subfigures(2, 1, height_ratios=[9 * len(maps), 5])
    for axes, (name, points) in zip(
        words.subplots(len(maps), squeeze=False)[:, 0], maps.items(), strict=True
    ):
        _scatter(axes, f"token embeddings, {name}", points, list(vocabulary))
    for axes, (name, table) in zip(heat.subplots(1, len(tables)), tables.items(), strict=True):
        image = axes.imshow(table.numpy(), aspect="auto", cmap="RdBu", interpolation="nearest")
        axes.set(title=f"positions, {name}", xlabel="column", ylabel="position")
        heat.colorbar(image, ax=axes)
    plots.save(figure, path, dpi=80)


def _scatter(axes: Any, title: str, points: Tensor, names: list[str]) -> None:
    """Draw the points, and the names from the first on that cover no other name."""
    axes.scatter(*points.T.numpy(), s=4)
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
