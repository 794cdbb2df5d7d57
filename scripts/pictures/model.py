"""Pictures of the model: its block, masks, activations, positions, attention and cache."""

import math
import re
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from inference.run import load_tokenizer
from kernels.reference import rotate, seen
from model import GPT
from model.layers import position_angles
from scripts.pictures.svg import Axes, Picture

TEXT = "Once there was a girl named Lily. One day, Lily lost her red ball. She was sad."


def block() -> Picture:
    """Show a block beside the residual stream that it reads and adds to."""
    picture = Picture(
        640, 420, "A GPT: the residual stream runs through; attention and MLP read it and add to it"
    )
    stream = 110
    picture.box(40, 8, 140, 40, "muted", "token ids", kind="")
    picture.text(196, 33, "(B, T)", "s m mono")
    picture.arrow(stream, 49, stream, 66)
    picture.box(40, 67, 140, 40, "a", "embedding")
    picture.text(196, 85, "+ positions", "s m")
    picture.text(196, 101, "(B, T, C)", "s m mono")
    picture.rect(20, 122, 606, 196, "grid-soft", 10)
    picture.text(612, 310, "block, n_layer times", "s m", "end")
    picture.path([(stream, 108), (stream, 352)], "a-line stream")
    for y, name, what in ((152, "attention", "looks at other tokens"), (240, "MLP", "works on each token")):
        picture.dot(stream, y + 8, 5, "a")
        picture.arrow(stream + 5, y + 8, 252, y + 8)
        picture.box(253, y - 10, 90, 36, "muted", "norm")
        picture.arrow(344, y + 8, 384, y + 8)
        picture.box(385, y - 10, 220, 36, "b" if name == "MLP" else "c", name)
        picture.text(495, y + 43, what, "s m", "middle")
        picture.path([(400, y + 27), (400, y + 52)], "muted-line")
        picture.arrow(400, y + 52, stream + 14, y + 52)
        picture.dot(stream, y + 52, 12, "page")
        picture.dot(stream, y + 52, 12, "a-line")
        picture.text(stream, y + 57, "+", "strong", "middle")
    picture.arrow(stream, 340, stream, 363)
    picture.box(40, 364, 140, 40, "muted", "last norm")
    picture.arrow(181, 384, 252, 384)
    picture.box(253, 364, 90, 40, "d", "head")
    picture.arrow(344, 384, 384, 384)
    picture.box(385, 364, 220, 40, "muted", "logits", kind="")
    picture.text(597, 389, "(B, T, V)", "s m mono", "end")
    return picture


def masks() -> Picture:
    """Show which keys each query sees, and how query heads share key and value heads."""
    picture = Picture(
        640, 232, "Causal, window and document masks; four query heads on four, two and one key heads"
    )
    causal, window = seen(8, window=None), seen(8, window=3)
    document = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    panels = {
        "causal": (causal, "sees itself and all before"),
        "window of 3": (window, "sees the last 3 tokens"),
        "documents": (causal & (document[:, None] == document), "sees its own document"),
    }
    for number, (name, (mask, what)) in enumerate(panels.items()):
        x = 8 + 164 * number
        picture.text(x, 18, name, "strong")
        for row in range(8):
            for column in range(8):
                kind = "line-fill" if not mask[row, column] else "a" if row == column else "a-mid"
                picture.cell(x + 17 * column, 34 + 17 * row, 17, kind)
        picture.text(x, 192, what.rsplit(" ", 2)[0], "s m")
        picture.text(x, 209, " ".join(what.rsplit(" ", 2)[1:]), "s m")
    _heads(picture, 502)
    return picture


def _heads(picture: Picture, x: float) -> None:
    """Draw 4 query heads over 4, 2 and 1 heads of keys and values."""
    picture.text(x, 18, "grouped heads", "strong")
    for row, shared in enumerate((4, 2, 1)):
        y = 36 + 58 * row
        for head in range(4):
            of = (head * shared // 4 + 0.5) * 128 / shared
            picture.path([(x + 32 * head + 15, y + 18), (x + of - 1, y + 30)], "muted-line")
            picture.rect(x + 32 * head + 2, y, 26, 18, "b-mid", 3)
        for head in range(shared):
            picture.rect(x + (head + 0.5) * 128 / shared - 14, y + 30, 26, 18, "c-mid", 3)
    picture.text(x, 226, "queries", "s b-text")
    picture.text(x + 58, 226, "keys/values", "s c-text")


def activations() -> Picture:
    """Show GELU, SiLU and ReLU², and the slopes of the first two."""
    picture = Picture(640, 260, "GELU, SiLU and squared ReLU, and their slopes")
    x = torch.linspace(-4, 3, 141, dtype=torch.float64, requires_grad=True)
    curves = {"GELU": (F.gelu(x), "a"), "SiLU": (F.silu(x), "b"), "ReLU²": (F.relu(x).square(), "c")}
    for number, title in enumerate(("value", "slope")):
        box = (36 + 322 * number, 30, 270, 190)
        axes = Axes(picture, box, (-4, 3), (-0.5, 3) if number == 0 else (-0.2, 1.5))
        axes.ticks(
            {-4: "−4", -2: "−2", 0: "0", 2: "2"},
            {0: "0", 1: "1", 2: "2", 3: "3"} if number == 0 else {0: "0", 0.5: "0.5", 1: "1", 1.5: "1.5"},
        )
        picture.text(box[0], 18, title, "strong")
        for place, (name, (y, colour)) in enumerate(curves.items()):
            if number:
                (y,) = torch.autograd.grad(y.sum(), x)
            inside = [(a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True) if b <= axes.y[1]]
            axes.plot(*zip(*inside, strict=True), f"{colour}-line wide")
            if not number:
                picture.text(box[0] + 60 + 78 * place, 18, name, f"s {colour}-text")
    return picture


def positions(run: Path) -> Picture:
    """Show a learned table, the waves of sinusoidal positions, and the turning pairs of rotary ones."""
    gpt = GPT.from_pretrained(run / "best")
    if gpt.config.positions != "learned":
        raise ValueError(f"{run} has {gpt.config.positions} positions: train with --model.positions learned")
    table = gpt.wpe.weight[:144:6, :16].detach()  # (24, 16)
    picture = Picture(640, 268, "Learned, sinusoidal and rotary positions")
    for number, name in enumerate(("learned", "sinusoidal", "rotary")):
        picture.text(8 + 218 * number, 18, name, "strong")
    for row, values in enumerate(table / table.abs().max()):
        for column, value in enumerate(values.tolist()):
            colour = "a" if value > 0 else "b"
            picture.rect(8 + 11.5 * column, 34 + 8.6 * row, 10.5, 7.8, colour, 1, max(abs(value), 0.04))
    picture.text(8, 260, "a row for a position", "s m")
    waves = position_angles(torch.arange(64), 128)[:, [0, 8, 16, 32]].sin()
    for row, wave in enumerate(waves.T.tolist()):
        axes = Axes(picture, (226, 36 + 53 * row, 186, 44), (0, 63), (-1, 1))
        axes.plot([0, 63], [0, 0], "line")
        axes.plot(range(64), wave, f"{'abcd'[row]}-line wide")
    picture.text(226, 260, "a wave for a channel", "s m")
    for row, step in enumerate((0.6, 0.25, 0.08)):
        for column in range(4):
            x, y = 468 + 48 * column, 66 + 62 * row
            angle = step * column * 2
            picture.dot(x, y, 20, "line")
            picture.path(
                [(x, y), (x + 20 * math.cos(angle), y - 20 * math.sin(angle))], f"{'abc'[row]}-line wide"
            )
    for column in range(4):
        picture.text(468 + 48 * column, 238, 2 * column, "s m", "middle")
    picture.text(444, 260, "a turn for a position", "s m")
    return picture


def attention(run: Path) -> Picture:
    """Show two heads of a trained model: each row is a token, and the row's darkest cells are where it looks.

    They are the head in which the tokens after a name look most at it, and the one in which punctuation looks most at
    the word "named".
    """
    gpt, tokenizer = GPT.from_pretrained(run / "best"), load_tokenizer(run)
    ids = [tokenizer.special_tokens["<|endoftext|>"], *tokenizer.encode(TEXT)][: gpt.config.block_size]
    names = ["⟨end⟩", *(tokenizer.decode([token]).strip() for token in ids[1:])]
    weights = torch.stack([attention_weights(gpt, ids, layer) for layer in range(gpt.config.n_layer)])
    lily, marks, named = (
        [len(tokenizer.encode(TEXT[: found.end()])) for found in re.finditer(word, TEXT)]
        for word in ("Lily", "[.,]", "named")
    )
    size = 268 / len(ids)
    picture = Picture(640, 380, "Attention maps of two heads of a trained model")
    for number, (rows, columns) in enumerate(((range(lily[-1], lily[-1] + 4), lily), (marks, named))):
        looks = weights[:, :, [*rows]][..., columns].sum((-2, -1))  # (L, H)
        layer, head = divmod(int(looks.argmax()), gpt.config.n_head)
        left = 58 + 322 * number
        picture.text(left + 134, 372, f"layer {layer + 1}, head {head + 1}", "strong", "middle")
        for row, name in enumerate(names):
            y = 84 + size * row
            picture.text(left - 5, y + size * 0.8, name, "tiny", "end")
            picture.text(left + size * (row + 0.75), 78, name, "tiny", turn=-60)
            for column in range(row + 1):
                weight = weights[layer, head, row, column].item()
                picture.rect(left + size * column, y, size - 1, size - 1, "a", 1.5, max(weight**0.7, 0.05))
    return picture


@torch.no_grad()
def attention_weights(gpt: GPT, ids: list[int], layer: int) -> Tensor:
    """Return the attention weights (H, T, T) of a layer with as many heads of keys as of queries, for a text."""
    caught: list[tuple[Tensor, Tensor | None]] = []
    attn = gpt.h[layer].attn
    hook = attn.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[:2]))
    gpt(torch.tensor([ids]))
    hook.remove()
    x, angles = caught[0]
    q, k, _ = (
        attn.c_attn(x).unflatten(-1, (3, gpt.config.n_head, -1)).unbind(2)
    )  # (1, T, 3 C) -> three of (1, T, H, D)
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    q, k = q[0].transpose(0, 1), k[0].transpose(0, 1)  # (T, H, D) -> (H, T, D)
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # (H, T, T)
    return scores.masked_fill(~seen(len(ids), None), -math.inf).softmax(-1)


def cache() -> Picture:
    """Show five steps of generation, without and with a cache: which keys and values are computed."""
    picture = Picture(640, 240, "Without a cache every step computes all keys and values; with it, one")
    words = ["Once", "there", "was", "a", "girl"]
    for number, title in enumerate(("without a cache", "with the cache")):
        left = 8 + 322 * number
        picture.text(left, 18, title, "strong")
        for step in range(1, 6):
            for place in range(step):
                new = number == 0 or place == step - 1
                x, y = left + 61 * place, 32 + 34 * (step - 1)
                picture.rect(x, y, 57, 28, "b-mid" if new else "a-soft", 4)
                picture.text(x + 28.5, y + 19, words[place], "s" if new else "s m", "middle")
        total = 15 if number == 0 else 5
        picture.text(left, 228, f"{total} tokens computed in 5 steps", "s m")
    for x, kind, what in ((484, "b-mid", "computed"), (576, "a-soft", "kept")):
        picture.rect(x, 8, 13, 13, kind, 3)
        picture.text(x + 19, 19, what, "s m")
    return picture
