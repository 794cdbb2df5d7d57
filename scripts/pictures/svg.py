"""A page to draw on: shapes and text in SVG, in a handful of classes that look right in light and in dark.

    picture = Picture(640, 200, "what it shows")
    picture.box(10, 10, 100, 40, "a", "label")
    files.write_text("picture.svg", picture.svg())

The background is transparent. Colours are `a` to `d` (blue, orange, green, purple; Okabe and Ito's hues, which
colour-blind readers tell apart), `ink`, `muted` and `line`. As a class "a" is a solid fill, "a-soft" a pale one,
"a-line" a stroke. Text has two sizes: 15 and, with the class "s", 13.
"""

from collections.abc import Sequence
from html import escape

STYLE = """
svg{--ink:#1f2328;--muted:#59636e;--line:#c5ccd3;--page:#fff;--a:#0969c8;--b:#c2570c;--c:#0b7a5e;--d:#9a3f97}
@media(prefers-color-scheme:dark){
svg{--ink:#e6edf3;--muted:#9aa4af;--line:#444c56;--page:#0d1117;--a:#6cb6ff;--b:#f2a65a;--c:#4fc9a4;--d:#dd95da}}
text{font:15px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;fill:var(--ink)}
.s{font-size:13px}.strong{font-weight:600}.m{fill:var(--muted)}.page{fill:var(--page)}
.mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}.up{font-style:italic}
.ink{fill:var(--ink)}.muted{fill:var(--muted)}.muted-mid{fill:var(--muted);fill-opacity:.4}.muted-soft{fill:var(--muted);fill-opacity:.12}.line-fill{fill:var(--line);fill-opacity:.3}
.grid-soft{fill:var(--line);fill-opacity:.22}.tiny{font-size:11px}
.ink-line{stroke:var(--ink)}.muted-line{stroke:var(--muted)}.line{stroke:var(--line)}
.ink-line,.muted-line,.line,.a-line,.b-line,.c-line,.d-line{fill:none;stroke-width:1.5}
.wide{stroke-width:2.5;stroke-linejoin:round}.thin{stroke-width:1}.stream{stroke-width:5;stroke-linecap:round}
"""
COLOURS = "".join(
    f".{x},.{x}-text{{fill:var(--{x})}}.{x}-soft{{fill:var(--{x});fill-opacity:.18}}"
    f".{x}-mid{{fill:var(--{x});fill-opacity:.5}}.{x}-line{{stroke:var(--{x})}}"
    for x in "abcd"
)
HEAD = '<path class="{}" d="M0,0L-9,-4.5L-9,4.5Z" transform="translate({:g},{:g})rotate({:g})"/>'


class Picture:
    """Shapes in the order in which they are drawn; coordinates are pixels from the upper left corner."""

    def __init__(self, width: int, height: int, title: str):
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def svg(self) -> str:
        """Return the whole file; the same shapes give the same bytes."""
        style = (STYLE + COLOURS).replace("\n", "")
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img">\n'
            f"<title>{escape(self.title)}</title>\n<style>{style}</style>\n"
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )

    def text(
        self, x: float, y: float, words: object, kind: str = "", anchor: str = "start", turn: float = 0
    ) -> None:
        """Write one line, y being its baseline; anchor is start, middle or end, turn is clockwise, in degrees."""
        more = f' text-anchor="{anchor}"' * (anchor != "start")
        more += f' transform="rotate({turn:g} {x:g} {y:g})"' * (turn != 0)
        shown = escape(str(words), quote=False)
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}"{more}{_class(kind)} xml:space="preserve">{shown}</text>'
        )

    def rect(
        self, x: float, y: float, w: float, h: float, kind: str, r: float = 0, opacity: float = 1
    ) -> None:
        """Draw a rectangle with corners of radius r."""
        more = f' rx="{r:g}"' * (r > 0) + f' opacity="{opacity:.3g}"' * (opacity < 1)
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}"{more}{_class(kind)}/>')

    def box(self, x: float, y: float, w: float, h: float, colour: str, *lines: str, kind: str = "") -> None:
        """Draw a pale box with an edge, and lines of text in its middle."""
        self.rect(x, y, w, h, f"{colour}-soft", 6)
        self.rect(x, y, w, h, f"{colour}-line", 6)
        for number, words in enumerate(lines):
            small = kind if number == 0 else "s m"
            self.text(x + w / 2, y + h / 2 + 5 + 18 * (number - (len(lines) - 1) / 2), words, small, "middle")

    def cell(self, x: float, y: float, size: float, colour: str, words: object = "", kind: str = "s") -> None:
        """Draw a square of a grid, 2 pixels smaller than `size`, with a few characters in it."""
        self.rect(x + 1, y + 1, size - 2, size - 2, colour, 3)
        if words != "":
            self.text(x + size / 2, y + size / 2 + 4.5, words, kind, "middle")

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """Draw straight lines through the points."""
        joined = "L".join(f"{x:.4g},{y:.4g}" for x, y in points)
        self.parts.append(f'<path d="M{joined}"{_class(kind)}/>')

    def curve(self, data: str, kind: str) -> None:
        """Draw what SVG's path language says."""
        self.parts.append(f'<path d="{data}"{_class(kind)}/>')

    def dot(self, x: float, y: float, r: float, kind: str) -> None:
        """Draw a circle."""
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{r:g}"{_class(kind)}/>')

    def arrow(
        self, x0: float, y0: float, x1: float, y1: float, colour: str = "muted", kind: str = ""
    ) -> None:
        """Draw a horizontal or vertical arrow."""
        turn = {(1, 0): 0, (-1, 0): 180, (0, 1): 90, (0, -1): 270}[_sign(x1 - x0), _sign(y1 - y0)]
        back = (x1 - 8 * _sign(x1 - x0), y1 - 8 * _sign(y1 - y0))
        self.path([(x0, y0), back], f"{colour}-line {kind}")
        self.parts.append(HEAD.format(colour, x1, y1, turn))


class Axes:
    """A rectangle of a picture in which numbers have places, with ticks along its edges."""

    def __init__(self, picture: Picture, box: tuple[float, float, float, float], x: tuple, y: tuple):
        self.picture, self.box, self.x, self.y = picture, box, x, y

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the place of a number pair, in pixels."""
        left, top, width, height = self.box
        return (
            left + width * (x - self.x[0]) / (self.x[1] - self.x[0]),
            top + height * (1 - (y - self.y[0]) / (self.y[1] - self.y[0])),
        )

    def ticks(self, x: dict[float, str], y: dict[float, str]) -> None:
        """Draw a grid line and a label at each number."""
        left, top, width, height = self.box
        for value, label in y.items():
            at = self.at(self.x[0], value)[1]
            self.picture.path([(left, at), (left + width, at)], "line")
            self.picture.text(left - 8, at + 4.5, label, "s m", "end")
        for value, label in x.items():
            at = self.at(value, self.y[0])[0]
            self.picture.path([(at, top + height), (at, top + height + 5)], "line")
            self.picture.text(at, top + height + 20, label, "s m", "middle")

    def plot(self, xs: Sequence[float], ys: Sequence[float], kind: str) -> None:
        """Draw a line through the points."""
        self.picture.path([self.at(x, y) for x, y in zip(xs, ys, strict=True)], kind)


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)
