"""A page to text: HTML by resiliparse (or trafilatura), PDF by pypdf, Markdown and plain text as they are, tables as
sentences.

HTML and PDF libraries are imported where they are used. A page that is no text raises `Refused` with the reason.
"""

import codecs
import csv
import io
import logging
import re
from typing import TYPE_CHECKING, Literal

from common.files import UTF16, ZEROS
from data.web.records import Document, MissingLibrary, Page

if TYPE_CHECKING:
    from resiliparse.parse.html import ElementNode, HTMLTree

Tables = Literal["keep", "rows", "drop"]
Extractor = Literal["resiliparse", "trafilatura"]

LOST = 0.01  # fraction of U+FFFD above which a text was not decoded
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
HEADING = re.compile(r"^#{1,6} +(.+?)[ #]*$", re.MULTILINE)
BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
LANGUAGE = re.compile(rb"<html[^>]*\blang=[\"']?([A-Za-z-]{2,20})", re.IGNORECASE)
SPACES = re.compile(r"[ \t]+$", re.MULTILINE)
BLANK_LINES = re.compile(r"\n{3,}")


class Refused(ValueError):
    """A page that cannot become text; the message is the reason that the report counts."""


def extract(
    page: Page, tables: Tables = "keep", main_content: bool = True, extractor: Extractor = "resiliparse"
) -> Document:
    """Return the text of a page with its provenance.

    >>> extract(Page(b"# Owls\\n\\nThey hunt at night.", "markdown", "a.md")).title
    'Owls'
    """
    document = Document("", page.file, page.record, page.url, page.title, page.date, page.media)
    document.scores = dict(page.numbers)
    if page.media == "pdf":
        document.text, document.title = pdf_text(page.data, page.title)
    else:
        text, document.encoding = decode(page.data, page.charset, page.media == "html")
        if page.media == "html":
            document.language = language_of_html(page.data)
            document.text, document.title = html_text(text, tables, main_content, extractor)
        elif page.media == "csv":
            document.text = csv_text(text)
        else:
            document.text = text
            heading = HEADING.search(text) if page.media == "markdown" else None
            document.title = heading[1] if heading else page.title
    document.text = tidy(document.text)
    if not document.text:
        raise Refused("no text")
    return document


def tidy(text: str) -> str:
    """Return text with \\n as line end, no blanks at line ends, one blank line at most, and no control characters."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return BLANK_LINES.sub("\n\n", SPACES.sub("", CONTROL.sub("", text))).strip()


def decode(data: bytes, charset: str = "", html: bool = False) -> tuple[str, str]:
    """Return a text and its encoding: a byte order mark, else what the server or the page says if it holds, else a
    guess.

    Raise Refused for bytes that are no text in any of these.

    >>> decode("Größe".encode("latin-1"), "utf-8")
    ('Größe', 'cp1252')
    """
    for bom, name in BOMS.items():
        if data.startswith(bom):
            return checked(data[len(bom) :].decode(name, "replace")), name
    if data[: 1 << 16].count(0) * ZEROS >= max(len(data[: 1 << 16]), 1) and not data.startswith(UTF16):
        raise Refused("binary, not text")
    for name in (charset, "utf-8", declared_in_html(data) if html else ""):
        try:
            return checked(data.decode(name)), codecs.lookup(name).name
        except (LookupError, UnicodeError, ValueError):  # unknown, wrong, or a codec that gives no text
            continue
    name = guessed(data)
    return checked(data.decode(name, "replace")), name


def declared_in_html(data: bytes) -> str:
    """Return the charset that the first kilobyte of a page declares, or ""."""
    found = re.search(rb"<meta[^>]+charset=[\"']?([\w-]+)", data[:1024], re.IGNORECASE)
    return found[1].decode("ascii") if found else ""


def guessed(data: bytes) -> str:
    """Return the encoding that the bytes look like: resiliparse's detector if it is installed, else Windows-1252."""
    try:
        from resiliparse.parse.encoding import detect_encoding
    except ImportError:
        return "cp1252"
    name = detect_encoding(data) or "cp1252"
    try:
        return codecs.lookup(name).name
    except LookupError:
        return "cp1252"


def checked(text: str) -> str:
    """Return a decoded text; Refused if its characters are not those of text."""
    if text.count("\ufffd") > LOST * len(text):
        raise Refused("wrong charset")
    if len(CONTROL.findall(text[: 1 << 16])) > LOST * len(text[: 1 << 16]):
        raise Refused("binary, not text")
    return text


def language_of_html(data: bytes) -> str:
    """Return the language that a page claims, such as "en", or ""."""
    found = LANGUAGE.search(data[:4096])
    return found[1].decode().lower()[:2] if found else ""


def html_text(text: str, tables: Tables, main_content: bool, extractor: Extractor) -> tuple[str, str]:
    """Return text and title of an HTML page."""
    if extractor == "trafilatura":
        return trafilatura_text(text, tables)
    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.html import HTMLTree
    except ImportError as error:
        raise MissingLibrary.named("resiliparse", "web", error) from error
    tree = HTMLTree.parse(text)
    if tables != "keep" and "<table" in text.lower():
        replace_tables(tree, tables)
    if main_content and "<ul" in text.lower():
        keep_lists(tree)
    return extract_plain_text(tree, main_content=main_content), (tree.title or "").strip()


def trafilatura_text(text: str, tables: Tables) -> tuple[str, str]:
    """Return text and title by trafilatura, which is slower and drops more of what surrounds the content."""
    try:
        import trafilatura
    except ImportError as error:
        raise MissingLibrary.named("trafilatura", "trafilatura", error) from error
    found = trafilatura.bare_extraction(text, include_tables=tables != "drop", with_metadata=True)
    if found is None:
        raise Refused("no text")
    return found.text or "", found.title or ""


def keep_lists(tree: "HTMLTree") -> None:
    """Make each list that is content a <menu>, which reads the same.

    Of the main content resiliparse drops every <ul>, as if all of them were navigation. A list is content if it is
    not in a part of the page that is navigation and less than half of its text is links.
    """
    for found in list(tree.document.query_selector_all("ul")):
        linked = sum(len(link.text or "") for link in found.query_selector_all("a"))
        if (
            found.parent is None
            or found.closest("nav, header, footer, aside")
            or 2 * linked >= len(found.text or "")
        ):
            continue
        menu = tree.create_element("menu")
        for child in list(found.child_nodes):
            menu.append_child(child)
        found.parent.replace_child(menu, found)


def replace_tables(tree: "HTMLTree", tables: Tables) -> None:
    """Replace each table that holds data by a paragraph for each row, or drop it.

    A table without a header cell is layout, and stays.
    """
    for table in list(tree.document.query_selector_all("table")):
        header, *rows = [cells_of(row) for row in table.query_selector_all("tr")] or [[]]
        if not table.query_selector("th") or table.query_selector("table") or table.parent is None:
            continue
        if tables == "rows":
            paragraphs = [tree.create_element("p") for _ in rows]
            for paragraph, row in zip(paragraphs, rows, strict=True):
                paragraph.text = sentence(header, row)
                table.parent.insert_before(paragraph, table)
        table.decompose()


def cells_of(row: "ElementNode") -> list[str]:
    """Return the texts of a row's cells, blanks joined."""
    return [" ".join((cell.text or "").split()) for cell in row.query_selector_all("th, td")]


def sentence(header: list[str], row: list[str]) -> str:
    """Return a row as "column: value" pairs; empty values are left out, cells beyond the header have no column.

    >>> sentence(["Name", "Age", "Town"], ["Ada", "", "London"])
    'Name: Ada, Town: London.'
    """
    names = header + [""] * (len(row) - len(header))
    pairs = [f"{name}: {value}" if name else value for name, value in zip(names, row, strict=False) if value]
    return ", ".join(pairs) + "." if pairs else ""


def csv_text(text: str) -> str:
    """Return a CSV file as one sentence a row, by the names in its first line.

    >>> csv_text("animal,legs\\nowl,2\\ncat,4\\n")
    'animal: owl, legs: 2.\\nanimal: cat, legs: 4.'
    """
    csv.field_size_limit(1 << 24)
    try:
        header, *rows = csv.reader(io.StringIO(text, newline="")) or [[]]
    except csv.Error as error:
        raise Refused("damaged CSV") from error
    except ValueError:
        return ""
    return "\n".join(
        filter(None, (sentence(header, [" ".join(cell.split()) for cell in row]) for row in rows))
    )


def pdf_text(data: bytes, title: str) -> tuple[str, str]:
    """Return the text of a PDF file, pages joined by blank lines, and its title."""
    try:
        import pypdf
    except ImportError as error:
        raise MissingLibrary.named("pypdf", "web", error) from error
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # the report counts what is damaged
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        text = "\n\n".join(page.extract_text() for page in reader.pages)
        named = reader.metadata.title if reader.metadata else None
    except Exception as error:  # pypdf raises errors of many kinds for damaged files
        raise Refused("damaged PDF") from error
    return text, str(named or title)
