"""Pictures of text on its way to the model: the pipeline, merges, tokens, batches."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from bpe.trainer import learn_merges
from inference.run import load_tokenizer
from scripts.pictures.svg import Picture

WORDS = {b" tea": 4, b" meat": 3, b" team": 2, b" steam": 1}  # the worked example of docs/bpe.md
SENTENCES = ("Once there was a gentle girl named Lily.", "She photographed a hippopotamus, 1,234 times.")
DOCUMENTS = {
    "a": 5,
    "b": 3,
    "c": 7,
    "d": 2,
    "muted": 6,
}  # colour of each document, and its tokens with the end


def pipeline() -> Picture:
    """Show how text becomes tokens, a model and its loss, and what a model is then good for."""
    picture = Picture(640, 238, "From raw text to a model that tells stories, with the folder of each step")
    steps = [
        ("text", "Once there was a", "data/", "muted"),
        ("tokens", "399 377 285 258", "bpe/", "a"),
        ("model", "a GPT", "model/, kernels/", "b"),
        ("loss", "−ln p(next token)", "training/", "c"),
    ]
    uses = [
        ("sample", "tell stories", "inference/"),
        ("align", "follow wishes", "alignment/"),
        ("look inside", "a page", "lens/"),
        ("serve", "OpenAI's API", "serving/"),
    ]
    for number, (name, inside, room, colour) in enumerate(steps):
        x = 6 + 166 * number
        picture.box(x, 26, 130, 56, colour, name, inside, kind="strong")
        picture.text(x + 65, 16, room, "s m mono", "middle")
        if number:
            picture.arrow(x - 36, 54, x - 3, 54)
    picture.path([(569, 83), (569, 104), (430, 104), (430, 92)], "c-line")
    picture.arrow(430, 104, 430, 84, "c")
    picture.text(500, 121, "gradient", "s m", "middle")
    picture.path([(384, 83), (384, 146)], "b-line")
    picture.path([(71, 146), (569, 146)], "b-line")
    for number, (name, inside, room) in enumerate(uses):
        x = 6 + 166 * number
        picture.arrow(x + 65, 146, x + 65, 162, "b")
        picture.box(x, 163, 130, 50, "d", name, inside, kind="strong")
        picture.text(x + 65, 231, room, "s m mono", "middle")
    return picture


def merges() -> Picture:
    """Show the worked example of docs/bpe.md as trees: what each merge joins, and in which order."""
    learned = learn_merges(WORDS, 6)
    rank = {pair: number for number, pair in enumerate(learned, 1)}
    picture = Picture(640, 312, "Four words, each as a tree of the merges that made it")
    left = 12.0
    for word, count in WORDS.items():
        width = 27.0 * len(word)
        picture.text(left + width / 2, 308, f"{count} ×", "s m", "middle")
        _tree(picture, word, left, rank)
        left += width + 24
    return picture


def _tree(picture: Picture, word: bytes, left: float, rank: Mapping[tuple[bytes, bytes], int]) -> None:
    """Draw a word: its bytes at the bottom, and each merge above what it joins, as high as its rank."""
    symbols = [(bytes([byte]), left + 27 * (place + 0.5), 270.0) for place, byte in enumerate(word)]
    joints = []
    while True:
        fitting = [
            (rank[a[0], b[0]], place)
            for place, (a, b) in enumerate(pairwise(symbols))
            if (a[0], b[0]) in rank
        ]
        if not fitting:
            break
        number, place = min(fitting)
        (a, xa, ya), (b, xb, yb) = symbols[place : place + 2]
        x, y = (xa + xb) / 2, 266 - 40.0 * number
        picture.path([(xa, ya - 13), (xa, y), (xb, y), (xb, yb - 13)], "muted-line")
        joints.append((number, a + b, x, y))
        symbols[place : place + 2] = [(a + b, x, y)]
    for place, byte in enumerate(word):
        picture.text(left + 27 * (place + 0.5), 275, chr(byte).replace(" ", "·"), "mono", "middle")
    for number, token, x, y in joints:
        shown = token.decode().replace(" ", "·")
        width = 16 + 9 * len(shown)
        picture.rect(x - width / 2, y - 14, width, 28, "page", 6)
        picture.box(x - width / 2, y - 14, width, 28, "abcd"[(number - 1) % 4], shown, kind="mono")
        picture.text(x + width / 2 + 4, y - 3, number, "s m")


def tokens(run: Path) -> Picture:
    """Show two sentences as tokens of a trained vocabulary, coloured in turn, with their ids."""
    tokenizer = load_tokenizer(run)
    picture = Picture(640, 204, "Two sentences as coloured tokens with their ids")
    for row, sentence in enumerate(SENTENCES):
        ids = tokenizer.encode(sentence)
        shown = [tokenizer.decode([token]).replace(" ", "·") for token in ids]
        widths = [max(8.4 * len(piece) + 5, 25) for piece in shown]
        scale = min(1, 624 / sum(widths))
        x, y = 8.0, 32 + 104.0 * row
        picture.text(8, y - 12, f"{len(sentence.encode())} bytes are {len(ids)} tokens", "s m")
        for number, (token, piece, width) in enumerate(zip(ids, shown, widths, strict=True)):
            width *= scale
            picture.rect(x, y, width - 2, 30, f"{'abcd'[number % 4]}-soft", 4)
            picture.text(x + width / 2 - 1, y + 20, piece, "s mono", "middle")
            picture.text(x + width / 2 - 1, y + (46 if number % 2 else 60), token, "s m", "middle")
            x += width
    return picture


def batches() -> Picture:
    """Show the same five documents as random windows, as packed rows and as padded rows of eight tokens."""
    picture = Picture(640, 282, "Five documents cut into windows, packed into rows, and padded")
    stream = [(colour, place == size - 1) for colour, size in DOCUMENTS.items() for place in range(size)]
    documents = [[token for token in stream if token[0] == colour] for colour in DOCUMENTS]
    picture.text(320, 18, "the token file: five documents, each with its end •", "s m", "middle")
    _row(picture, 21, 26, 26, stream)
    one, two, three, four, five = documents
    panels = {
        ("windows", "begin and end anywhere"): [stream[start : start + 8] for start in (2, 9, 14)],
        ("packed", "whole documents, few gaps"): [one + two, three, four + five],
        ("padded", "one document a row"): [one, two, three, four, five],
    }
    for number, ((name, how), rows) in enumerate(panels.items()):
        x = 6 + 220 * number
        picture.text(x, 94, name, "strong")
        picture.text(x, 112, how, "s m")
        for place, row in enumerate(rows):
            _row(picture, x, 122 + 27 * place, 23.5, [*row, *[None] * (8 - len(row))])
        used = sum(map(len, rows))
        picture.text(x, 122 + 27 * len(rows) + 18, f"{used} of {8 * len(rows)} places used", "s m")
    return picture


def _row(picture: Picture, x: float, y: float, size: float, row: Sequence[tuple[str, bool] | None]) -> None:
    """Draw a row of tokens, (document, is its end) or None for padding."""
    for place, token in enumerate(row):
        colour = "line" if token is None else f"{token[0]}-mid"
        picture.cell(x + size * place, y, size, colour, "•" if token and token[1] else "")
