"""A small made-up web: pages with menus, advertisements, duplicates, several languages, personal data and spam, and
the truth about each.

    python -m data web synthetic --pages 500 --out crawl

writes crawl/*.warc.gz, a WET file, a PDF, Markdown, and truth.json: for each page its kind and what should become of
it. Good pages are built-in stories in the dress of a site. The same seed gives the same bytes.
"""

import dataclasses
import gzip
import html
import random
import re
import textwrap
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from common import files
from data.stories import stories

KINDS = {  # share of each kind of page, and the stage that should drop it; "" is kept
    "good": (0.40, ""),
    "table": (0.03, ""),
    "private": (0.05, ""),
    "copy": (0.08, "exact duplicate"),
    "near": (0.12, "near duplicate"),
    "foreign": (0.12, "language"),
    "spam": (0.08, "repetition"),
    "menu": (0.05, "quality"),
    "short": (0.03, "quality"),
    "code": (0.02, "quality"),
    "placeholder": (0.02, "quality"),
}
SITES = ("tales.example", "reading-room.example", "storyhouse.example", "old-books.example")
MENU = ("Home", "About us", "Contact", "Archive", "Sign in", "Subscribe", "Shop", "Help")
FOOTER = "© 2024 All rights reserved. Terms of use. Privacy policy. This site uses cookies."
FOREIGN = {
    "de": (
        "Der Hund lief am Morgen durch den alten Garten und suchte nach seinem Ball.",
        "Am Abend saßen die Kinder vor dem Haus und hörten der Großmutter zu.",
        "Niemand wusste, warum die Brücke über den Fluss so früh geschlossen wurde.",
        "Sie kaufte auf dem Markt frisches Brot, Käse und einen Strauß Blumen.",
        "Der Zug nach München hatte wieder einmal eine Stunde Verspätung.",
        "Im Winter ist der See gefroren, und man kann bis zur Insel gehen.",
    ),
    "fr": (
        "Le matin, le boulanger ouvre sa boutique avant que la ville ne se réveille.",
        "Les enfants jouaient dans la cour pendant que leur mère préparait le dîner.",
        "Personne ne savait pourquoi le vieux pont était fermé depuis hier.",
        "Elle a acheté du pain, du fromage et des fleurs au marché.",
        "Le train pour Lyon est arrivé avec une heure de retard.",
        "En hiver, le lac est gelé et l'on peut marcher jusqu'à l'île.",
    ),
    "es": (
        "Por la mañana el panadero abre su tienda antes de que despierte la ciudad.",
        "Los niños jugaban en el patio mientras su madre preparaba la cena.",
        "Nadie sabía por qué el viejo puente estaba cerrado desde ayer.",
        "Ella compró pan, queso y flores en el mercado del pueblo.",
        "El tren de Sevilla llegó con una hora de retraso.",
        "En invierno el lago se hiela y se puede caminar hasta la isla.",
    ),
}
OFFERS = ("cheap watches", "free casino bonus", "best pills online", "fast loans now")
LOREM = "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore."


@dataclasses.dataclass(frozen=True)
class Made:
    """A made-up page: its HTML, and the truth about it. `text` is its content; `of` the URL of what it copies."""

    url: str
    kind: str
    html: str
    text: str
    of: str = ""
    private: int = 0  # e-mail addresses, phone numbers, IP addresses and card numbers in it
    charset: str = "utf-8"


def web(pages: int, seed: int = 0) -> list[Made]:
    """Return made-up pages, the kinds in their shares and in mixed order; a copy follows its original."""
    draw = random.Random(seed)
    tales = stories(seed + 1000)
    made: list[Made] = []
    originals: list[Made] = []
    kinds = list(KINDS)
    for number in range(pages):
        kind = draw.choices(kinds, [share for share, _ in KINDS.values()])[0]
        if kind in ("copy", "near") and not originals:
            kind = "good"
        url = f"http://{draw.choice(SITES)}/{number}"
        made.append(_page(draw, tales, url, kind, originals))
        if kind == "good":
            originals.append(made[-1])
    return made


def _page(draw: random.Random, tales: Iterator[str], url: str, kind: str, originals: list[Made]) -> Made:
    if kind in ("copy", "near"):
        original = draw.choice(originals)
        text = original.text if kind == "copy" else altered(draw, original.text)
        return Made(url, kind, dressed(draw, text), text, original.url)
    if kind == "foreign":
        language = draw.choice([*FOREIGN])
        text = "\n".join(" ".join(draw.sample(FOREIGN[language], 5)) for _ in range(3))
        charset = draw.choice(("utf-8", "iso-8859-1"))
        return Made(url, kind, dressed(draw, text, language, charset), text, charset=charset)
    text, private = BODIES.get(kind, _story)(draw, tales)
    page = table_page(draw, text) if kind == "table" else dressed(draw, text)
    return Made(url, kind, page, text, private=private)


def _story(draw: random.Random, tales: Iterator[str]) -> tuple[str, int]:
    return "\n".join(next(tales) for _ in range(draw.randint(2, 4))), 0


def _private(draw: random.Random, tales: Iterator[str]) -> tuple[str, int]:
    """Return a story with contact data at its end, and how many there are."""
    text, _ = _story(draw, tales)
    number = f"{draw.randint(200, 999)}-{draw.randint(200, 999)}-{draw.randint(1000, 9999)}"
    address = f"{draw.randint(20, 99)}.{draw.randint(0, 255)}.{draw.randint(0, 255)}.{draw.randint(1, 254)}"
    mail = f"reader{draw.randint(1, 999)}@mail.example.com"
    line = f"Write to {mail} or call {number} and ask for our server at {address}."
    return f"{text}\n{line}", 3


def _spam(draw: random.Random, tales: Iterator[str]) -> tuple[str, int]:
    offer = draw.choice(OFFERS)
    return "\n".join(
        f"Buy {offer} to have the best of {offer} today." for _ in range(draw.randint(20, 40))
    ), 0


def _menu(draw: random.Random, tales: Iterator[str]) -> tuple[str, int]:
    return "\n".join(draw.choice(MENU) + f" {draw.randint(1, 99)}" for _ in range(draw.randint(30, 60))), 0


def _short(draw: random.Random, tales: Iterator[str]) -> tuple[str, int]:
    return f"Page {draw.randint(1, 999)} was moved. Please write to webmaster@mail.example.com.", 0


def _code(draw: random.Random, tales: Iterator[str]) -> tuple[str, int]:
    lines = (
        f"function f{n}(a) {{ return a + {draw.randint(1, 99)}; }} // to be run with the rest."
        for n in range(12)
    )
    return "\n".join(lines), 0


def _placeholder(draw: random.Random, tales: Iterator[str]) -> tuple[str, int]:
    return f"{_story(draw, tales)[0]}\n{LOREM}", 0


BODIES: dict[str, Callable[[random.Random, Iterator[str]], tuple[str, int]]] = {
    "private": _private,
    "spam": _spam,
    "menu": _menu,
    "short": _short,
    "code": _code,
    "placeholder": _placeholder,
}


def altered(draw: random.Random, text: str) -> str:
    """Return the text with a word changed at one or two places: its 5-grams stay 85 to 97 % the same."""
    words = text.split(" ")
    for _ in range(draw.randint(1, max(1, len(words) // 150))):
        words[draw.randrange(len(words))] = draw.choice(("quite", "little", "perhaps", "again"))
    return " ".join(words)


def dressed(draw: random.Random, text: str, language: str = "en", charset: str = "utf-8") -> str:
    """Return a page of a site around a text: menu, advertisement, paragraphs, footer."""
    title = html.escape(" ".join(text.split()[:6]))
    menu = "".join(f'<li><a href="/{n}">{name}</a></li>' for n, name in enumerate(draw.sample(MENU, 6)))
    body = "".join(f"<p>{html.escape(line)}</p>\n" for line in text.split("\n"))
    return (
        f'<!DOCTYPE html><html lang="{language}"><head><meta charset="{charset}"><title>{title}</title>'
        f"<script>var a = {{b: {draw.randint(1, 99)}}};</script></head><body>\n"
        f"<header><nav><ul>{menu}</ul></nav></header>\n"
        f'<aside class="ad">Buy {draw.choice(OFFERS)}! Click here!</aside>\n'
        f"<main><article>\n{body}</article></main>\n<footer><p>{html.escape(FOOTER)}</p></footer>\n</body></html>\n"
    )


def table_page(draw: random.Random, text: str) -> str:
    """Return a page with a text and a table of weather, one row a day."""
    rows = "".join(
        f"<tr><td>day {n}</td><td>{draw.randint(-5, 30)} °C</td><td>{draw.randint(0, 20)} mm</td></tr>"
        for n in range(1, 6)
    )
    table = f"<table><tr><th>Day</th><th>Temperature</th><th>Rain</th></tr>{rows}</table>"
    return dressed(draw, text).replace("</article>", f"{table}</article>")


def record(kind: str, url: str, content_type: str, block: bytes) -> bytes:
    """Return one WARC record."""
    header = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-05-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:00000000-0000-4000-8000-{zlib.crc32(url.encode()):012x}>\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return header.encode() + block + b"\r\n\r\n"


def response(page: Made) -> bytes:
    """Return the WARC record of a page as a server sent it."""
    http = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset={page.charset}\r\n\r\n"
    block = http.encode() + page.html.encode(page.charset, "xmlcharrefreplace")
    return record("response", page.url, "application/http; msgtype=response", block)


def pdf(lines: list[str]) -> bytes:
    """Return a PDF file of one page with lines of plain ASCII text."""
    plain = (re.sub(r"[()\\]", "", line) for line in lines)
    shown = " ".join(f"({line}) Tj T*" for line in plain)
    stream = f"BT /F1 11 Tf 14 TL 40 800 Td {shown} ET".encode("ascii", "replace")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    return out + (
        b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n"
        % (size, table, size, len(out))
    )


def write(out: Path, pages: int, seed: int = 0, per_file: int = 200) -> None:
    """Write the made-up web into a folder: WARC files of `per_file` pages, other kinds of files, truth.json."""
    out.mkdir(parents=True, exist_ok=True)
    made = web(pages, seed)
    for start in range(0, len(made), per_file):
        body = b"".join(gzip.compress(response(page), 6, mtime=0) for page in made[start : start + per_file])
        _write(out / f"crawl-{start // per_file:05d}.warc.gz", body)
    tales = stories(seed + 5000)
    lines = [line for _ in range(3) for line in textwrap.wrap(next(tales), 90) if line.isascii()]
    _write(out / "book.pdf", pdf(lines))
    notes = "\n\n".join(["# Notes on stories", *(next(tales) for _ in range(3))])
    _write(out / "notes.md", notes.encode())
    wet = record(
        "conversion", "http://wet.example/1", "text/plain", "\n".join(next(tales) for _ in range(3)).encode()
    )
    _write(out / "plain.warc.wet.gz", gzip.compress(wet, 6, mtime=0))
    truth = [{"expected": KINDS[page.kind][1], **dataclasses.asdict(page)} for page in made]
    files.write_json(
        out / "truth.json", [{name: row[name] for name in row if name != "html"} for row in truth]
    )


def _write(path: Path, data: bytes) -> None:
    with files.atomic(path) as file:
        file.write(data)
