"""Pictures of training: schedules, what AdamW and Muon make of a gradient, the loss of a run."""

import json
import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from data.stories.grammar import story
from inference.run import load_tokenizer
from model import GPT
from scripts.pictures.svg import Axes, Picture
from training.optimizer import AdamW, Muon, learning_rate


def schedules() -> Picture:
    """Show the learning rate over a run by each schedule."""
    picture = Picture(640, 230, "Learning rate by step: warm-up, then cosine, wsd or constant")
    axes = Axes(picture, (70, 24, 470, 164), (0, 1000), (0, 1.06))
    axes.ticks(
        {0: "0", 250: "250", 500: "500", 750: "750", 1000: "step 1,000"}, {0: "0", 0.5: "½ peak", 1: "peak"}
    )
    rate = partial(learning_rate, peak=1.0, final=0.05, warmup_steps=100, steps=1000)
    for shape, colour, label in (("constant", "c", 1.0), ("wsd", "b", 0.6), ("cosine", "a", 0.14)):
        axes.plot(
            range(0, 1001, 10),
            [rate(min(step, 999), shape=shape) for step in range(0, 1001, 10)],
            f"{colour}-line wide",
        )
        picture.text(550, axes.at(0, label)[1] + 5, shape, f"{colour}-text")
    picture.text(*axes.at(60, 0.12), "warm-up", "s m")
    return picture


def loss(run: Path) -> Picture:
    """Show the loss of a run by step, as trained on and as evaluated on held-out text."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    train = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    held_out = [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line]
    last = max(step for step, _ in train)
    picture = Picture(640, 270, f"Loss of a quickstart run over {last + 1} steps, logarithmic")
    low, high = math.log(0.35), math.log(8.5)
    axes = Axes(picture, (52, 26, 570, 196), (0, last), (low, high))
    step = 500
    axes.ticks(
        {x: f"{x:,}" for x in range(0, last + 1, step)},
        {math.log(y): f"{y:g}" for y in (0.4, 0.5, 1, 2, 4, 7.6)},
    )
    picture.text(8, 14, "nats per token", "s m")
    picture.text(622, 262, "step", "s m", "end")
    axes.plot([x for x, _ in train], [math.log(y) for _, y in train], "a-line")
    for x, y in held_out:
        picture.dot(*axes.at(x, math.log(y)), 5, "b")
    picture.text(240, 92, "training", "a-text")
    picture.text(240, 113, f"held out: {held_out[-1][1]:.3f} at the end", "b-text")
    picture.text(*axes.at(last * 0.015 + 20, math.log(5.6)), "guessing among 2,048 tokens: 7.62", "s m")
    return picture


def optimizers(run: Path) -> Picture:
    """Show the singular values of a real gradient, and of the steps that AdamW and Muon make of ten such."""
    gradients = gradients_of(run, 10)
    picture = Picture(640, 280, "Singular values of a gradient and of the steps of AdamW and Muon")
    axes = Axes(picture, (58, 26, 440, 206), (1, min(gradients[0].shape)), (-3.5, 0.1))
    axes.ticks(
        {1: "1", 32: "32", 64: "64", 96: "96", 128: "128"}, {-3: "0.001", -2: "0.01", -1: "0.1", 0: "1"}
    )
    picture.text(8, 14, "size, relative to the largest", "s m")
    picture.text(278, 272, "singular value, the largest first", "s m", "middle")
    sides = {
        "gradient": (gradients[-1], "b"),
        "AdamW": (moved(AdamW, gradients, lr=1.0, betas=(0.9, 0.95), eps=1e-8), "c"),
        "Muon": (moved(Muon, gradients, lr=1.0), "a"),
    }
    for name, (matrix, colour) in sides.items():
        values = torch.linalg.svdvals(matrix)
        sizes = (values / values[0]).clamp(min=10**-3.5).log10().tolist()
        axes.plot(range(1, len(sizes) + 1), sizes, f"{colour}-line wide")
        picture.text(508, axes.at(0, sizes[-3])[1] + 4, name, f"{colour}-text")
    return picture


def gradients_of(run: Path, count: int) -> list[Tensor]:
    """Return the gradients (4 C, C) of the first layer's MLP for `count` batches of four stories."""
    gpt, tokenizer = GPT.from_pretrained(run / "best"), load_tokenizer(run)
    end = tokenizer.special_tokens["<|endoftext|>"]
    found = []
    for batch in range(count):
        rows = [[end, *tokenizer.encode(story(1, 4 * batch + n)), end] for n in range(4)]
        size = min(min(map(len, rows)), gpt.config.block_size + 1)
        ids = torch.tensor([row[:size] for row in rows])
        gpt.zero_grad()
        gpt(ids[:, :-1], ids[:, 1:])[1].backward()
        found.append(gpt.h[0].mlp.c_fc.weight.grad.clone())
    return found


def moved(kind: type, gradients: list[Tensor], **settings) -> Tensor:
    """Return the last of the steps that an optimizer makes of these gradients, without weight decay."""
    weight = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = kind([{"params": [weight], "weight_decay": 0.0}], **settings)
    for gradient in gradients:
        before = weight.detach().clone()
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach() - before
