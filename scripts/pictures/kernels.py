"""Pictures of the kernels: memory traffic, tiles, sectors and banks, and a chart of each ladder."""

import math
import re
from collections.abc import Callable
from pathlib import Path

from scripts.pictures.svg import Picture

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kernels" / "ladder.md"
LEFT = 206  # where the bars of a ladder begin
SCORES = ((1.0, 3.0), (2.0, 5.0), (4.0, 0.0))  # the worked example of docs/kernels/attention.md


def memory() -> Picture:
    """Show the passes over memory of GELU(x + bias) as two kernels and as one."""
    picture = Picture(640, 196, "Two kernels move a tensor four times, a fused one twice")
    for left, title, steps in (
        (8, "separate: 4 passes over memory", ["x + bias", "GELU"]),
        (392, "fused: 2 passes", ["GELU(x + bias)"]),
    ):
        width = 172 * len(steps) + (24 if len(steps) == 2 else 68)
        picture.text(left, 18, title, "strong")
        picture.box(left, 34, width, 38, "muted", "memory")
        for number, name in enumerate(steps):
            x = left + 14 + 184 * number + (20 if len(steps) == 1 else 0)
            wide = 160 if len(steps) == 2 else 172
            picture.box(x, 132, wide, 46, "a" if len(steps) == 1 else "b", name, "registers")
            picture.arrow(x + 36, 73, x + 36, 130)
            picture.text(x + 44, 106, "read", "s m")
            picture.arrow(x + wide - 36, 131, x + wide - 36, 74)
            picture.text(x + wide - 44, 106, "write", "s m", "end")
    return picture


def tiles() -> Picture:
    """Show the tiles of causal attention, and the running maximum and sum along one row of them."""
    picture = Picture(640, 250, "Attention tile by tile, with the running maximum and sum of one row")
    size = 44
    picture.text(8, 18, "scores, in tiles", "strong")
    for row in range(4):
        for column in range(4):
            kind = "line-fill" if column > row else "b-mid" if row == 2 else "a-soft"
            picture.rect(30 + size * column, 34 + size * row, size - 3, size - 3, kind, 4)
    for column in range(4):
        picture.text(50 + size * column, 226, f"k{column + 1}", "s m", "middle")
    for row in range(4):
        picture.text(22, 60 + size * row, f"q{row + 1}", "s m", "end")
    picture.text(30, 245, "never stored whole", "s m")
    picture.text(246, 18, "one row, tile after tile", "strong")
    for column, name in enumerate(("scores", "maximum m", "sum ℓ of e^(S−m)")):
        picture.text((246, 336, 446)[column], 54, name, "s m")
    m, total = -math.inf, 0.0
    for number, scores in enumerate(SCORES):
        y = 70 + 54 * number
        before, m = m, max(m, *scores)
        rescaled = 0.0 if number == 0 else math.exp(before - m) * total
        new = sum(math.exp(score - m) for score in scores)
        total = rescaled + new
        for place, score in enumerate(scores):
            picture.rect(246 + 36 * place, y, 32, 32, "b-mid", 4)
            picture.text(262 + 36 * place, y + 21, f"{score:g}", "", "middle")
        picture.text(350, y + 21, f"{m:g}", "strong", "middle")
        terms = f"{new:.3f}" if number == 0 else f"{rescaled:.3f} + {new:.3f} = {total:.3f}"
        picture.text(446, y + 21, terms, "")
        if number:
            picture.text(446, y + 39, f"old sum × e^({before:g}−{m:g})", "s m")
    picture.text(246, 245, f"lse = {m:g} + ln {total:.3f} = {m + math.log(total):.3f}", "")
    return picture


def coalescing() -> Picture:
    """Show which sectors of 32 bytes the loads of 16 lanes fetch, side by side and 32 bytes apart."""
    picture = Picture(640, 232, "16 lanes that read neighbours fetch 2 sectors; 32 bytes apart they fetch 16")
    for number, (stride, title) in enumerate(((1, "neighbours"), (8, "32 bytes apart"))):
        y = 22 + 112 * number
        fetched = 16 * stride // 8
        picture.text(8, y, title, "strong")
        picture.text(632, y, f"{fetched} sectors, {fetched * 32} bytes for 64", "s m", "end")
        for sector in range(16):
            x = 8 + 39 * sector
            picture.rect(x, y + 56, 37.5, 18, "b-soft" if sector < fetched else "line-fill", 3)
        for lane in range(16):
            word = lane * stride
            x = 8 + 39 * (word // 8) + 4.6 * (word % 8) + 2.6
            at = 27.5 + 39 * lane
            picture.path([(at, y + 20), (x, y + 56)], "muted-line thin")
            picture.dot(at, y + 18, 5, "a")
            picture.rect(x - 1.8, y + 57, 3.6, 16, "b", 1)
    picture.dot(13, 226, 5, "a")
    picture.text(24, 230, "lane", "s m")
    picture.rect(72, 218, 30, 14, "b-soft", 3)
    picture.rect(80, 218, 3.6, 14, "b", 1)
    picture.text(110, 230, "a sector of 32 bytes is fetched whole, also for one word of 4", "s m")
    return picture


def banks() -> Picture:
    """Show a tile of 8 rows of 128 bytes in shared memory, plain and swizzled, with one column of it marked."""
    picture = Picture(640, 320, "One column of a tile: all in the same banks, or by swizzle in all of them")
    for number, title in enumerate(("as written", "chunk c of row r at place c xor r")):
        left = 30 + 318 * number
        picture.text(left, 18, title, "strong")
        for row in range(8):
            picture.text(left - 8, 61 + 27 * row, row, "s m", "end")
            for place in range(8):
                chunk = place ^ row if number else place
                picture.cell(left + 33 * place, 42 + 27 * row, 27, "b" if chunk == 2 else "a-soft", "")
                kind = "s page strong" if chunk == 2 else "s m"
                picture.text(left + 33 * place + 13.5, 60.5 + 27 * row, chunk, kind, "middle")
        for place in range(8):
            picture.text(left + 33 * place + 13.5, 36, f"{4 * place}", "s m", "middle")
        result = (
            "8 rows, the same 4 banks: 8 wavefronts" if not number else "8 rows, all 32 banks: 1 wavefront"
        )
        picture.text(left, 278, result, "")
    picture.text(
        30, 297, "above: the first of the 4 banks below it; a number: which 16 bytes of the row", "s m"
    )
    picture.text(30, 314, "orange: what one load of a fragment (ldmatrix) wants at once", "s m")
    return picture


def ladder(op: str) -> Callable[[], Picture]:
    """Return the function that draws the chart of an op's ladder."""
    return lambda: _ladder(op)


def rows_of_page(op: str) -> list[tuple[str, dict[str, int]]]:
    """Return the rungs of an op with their counts, as the tables of docs/kernels/ladder.md have them."""
    room, direction = op.rsplit("_", 1)
    pattern = rf"^\| \[`{direction}_(\d)_(\w+)`\]\(\S*/{room}/\S*\) \|[^|]*\| ([\d,–]+) \| ([\d,–]+) \| ([\d,–]+) \|$"
    found = re.findall(pattern, PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    names = ("sectors", "wavefronts", "mma")
    counts = [
        {
            name: int(count.replace(",", ""))
            for name, count in zip(names, row[2:], strict=True)
            if count != "–"
        }
        for row in found
    ]
    return [(f"{row[0]} {row[1].replace('_', ' ')}", count) for row, count in zip(found, counts, strict=True)]


def _ladder(op: str) -> Picture:
    """Draw bars for sectors, wavefronts and tensor-core products of each rung, on a logarithmic axis."""
    rungs = rows_of_page(op)
    kinds = {"sectors": "a", "wavefronts": "b", "mma": "c"}
    used = [kind for kind in kinds if any(kind in count for _, count in rungs)]
    step = 16 * len(used) + 14
    largest = max(max(count.values()) for _, count in rungs)
    picture = Picture(640, 40 + step * len(rungs), f"The ladder of {op.replace('_', ' ')}, counted")
    for number, kind in enumerate(used):
        picture.rect(LEFT + 110 * number, 6, 12, 12, kinds[kind], 2)
        picture.text(LEFT + 18 + 110 * number, 16, kind, "s m")
    picture.text(632, 16, "logarithmic", "s m", "end")
    for row, (name, count) in enumerate(rungs):
        y = 34 + step * row
        picture.text(LEFT - 8, y + 8 * len(used) + 4, name, "s", "end")
        for place, kind in enumerate(used):
            if kind in count:
                width = 345 * math.log10(count[kind] / 100) / math.log10(largest / 100)
                picture.rect(LEFT, y + 16 * place, width, 13, kinds[kind], 2)
                picture.text(LEFT + 6 + width, y + 16 * place + 11, f"{count[kind]:,}", "s m")
    return picture
