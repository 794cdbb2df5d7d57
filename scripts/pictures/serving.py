"""Pictures of the server: the pages that texts list, and who was computed in each step, both from a real scheduler."""

import torch

from model import GPT, GPTConfig
from model.generate import Rules
from scripts.pictures.svg import Picture
from serving.paged_cache import PAGE, page_bytes
from serving.scheduler import Limits, Request, Scheduler

COLOURS = ("a", "b", "c", "d")
CELL = 30


def scheduler(pages: int, **limits: int) -> Scheduler:
    """Return a scheduler of a tiny model with this many pages."""
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=64, block_size=64, n_layer=1, n_head=1, n_embd=8)).eval()
    return Scheduler(gpt, Limits(cache_mb=(pages + 0.5) * page_bytes(gpt) / 1e6, **limits))


def pages() -> Picture:
    """Show the block tables of three requests, two of which begin alike and one of which has two texts."""
    engine, greedy = scheduler(16), Rules(temperature=0)
    start = [1] * 2 * PAGE
    requests = [
        Request([*start, *[2] * 12], 20, greedy),
        Request([*start, *[3] * 5], 20, greedy),
        Request([4] * 20, 20, greedy, seeds=(0, 1)),
    ]
    for request in requests:  # one after the other, so that the second finds what the first has computed
        engine.add(request)
        engine.step()
    engine.step()
    texts = [text for request in requests for text in request.texts]
    names = ("request 1", "request 2", "request 3, text 1", "request 3, text 2")
    held = [text.pages for text in texts]
    picture = Picture(640, 232, "Block tables of four texts and the pool of pages that they list")
    picture.text(8, 18, "block tables", "strong")
    picture.text(350, 18, f"the pool: {engine.pool.count} pages of {PAGE} tokens", "strong")
    for row, (name, numbers) in enumerate(zip(names, held, strict=True)):
        y = 36 + 46 * row
        picture.text(8, y + 20, name, "s")
        for column, page in enumerate(numbers):
            picture.cell(136 + CELL * column, y, CELL, _colour(page, held), page)
        picture.text(144 + CELL * len(numbers), y + 20, f"{len(texts[row].tokens)} tokens", "s m")
    for page in range(engine.pool.count):
        x, y = 350 + 62 * (page % 4), 36 + 46 * (page // 4)
        holders = sum(page in numbers for numbers in held)
        colour = _colour(page, held) if holders else "line-fill"
        picture.cell(x, y, CELL, colour, page)
        picture.text(x + CELL + 2, y + 20, f"×{holders}" if holders else "free", "s m")
    return picture


def _colour(page: int, held: list[list[int]]) -> str:
    """Return the colour of the only text that lists a page, or that of shared pages."""
    owners = [number for number, numbers in enumerate(held) if page in numbers]
    return "muted-mid" if len(owners) > 1 else f"{COLOURS[owners[0]]}-mid"


def timeline() -> Picture:
    """Show what each step fed of six requests, in a cache in which not all of them fit."""
    engine, steps = scheduler(8, chunk=24), 41
    sizes = ((6, 34), (50, 8), (12, 30), (12, 24), (8, 18), (20, 8))
    requests = [
        Request([number + 1] * size, count, Rules(temperature=0))
        for number, (size, count) in enumerate(sizes)
    ]
    arrivals = (0, 2, 3, 5, 6, 8)
    width, left, top = 12, 138, 46
    picture = Picture(640, top + 34 * len(sizes) + 62, "What each step fed of six requests")
    picture.text(8, 18, "steps →", "strong")
    for step in range(steps):
        for request, arrival in zip(requests, arrivals, strict=True):
            if arrival == step:
                engine.add(request)
        engine.step()
        fed = {feed.text.request: feed.count for feed in engine.plan}
        for row, request in enumerate(requests):
            waits = request.texts and request.texts[0].reason is None
            if request not in fed and not waits:
                continue
            x, y = left + width * step, top + 34 * row
            kind = "line-fill" if request not in fed else "b-mid" if fed[request] > 1 else "a-mid"
            picture.rect(x, y, width - 2, 24, kind, 2)
        if step % 10 == 0:
            picture.text(left + width * step, 38, f"{step}", "s m")
    for row, (size, count) in enumerate(sizes):
        picture.text(8, top + 17 + 34 * row, f"{size} + {count} tokens", "s")
    y = top + 34 * len(sizes) + 12
    legend = (
        ("b-mid", "reads a prompt, or again what it lost"),
        ("a-mid", "one token"),
        ("line-fill", "waits"),
    )
    for place, (kind, words) in zip((8, 300, 410), legend, strict=True):
        picture.rect(place, y, 14, 14, kind, 2)
        picture.text(place + 20, y + 12, words, "s")
    lost = engine.counters.preemptions
    told = f"{lost} text{'s' * (lost > 1)} lost pages to an older one"
    picture.text(8, y + 38, f"8 pages of {PAGE}, 24 tokens of prompts a step; {told}", "s m")
    return picture
