"""Pages to text: resiliparse's own extraction byte for byte, encodings, tables, PDF."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.web.extract import Refused, csv_text, decode, extract, html_text, sentence, tidy
from data.web.records import Page
from data.web.synthetic import pdf, table_page

resiliparse = pytest.importorskip("resiliparse.extract.html2text")

NOVEL = """<!DOCTYPE html><html lang="en"><head><title>Moby &amp; Dick</title></head><body>
<nav><a href="/">Home</a> <a href="/shop">Shop</a></nav>
<main><h1>Herman Melville</h1><p>Availing himself of the mild, summer-cool weather.</p>
<ul><li>It is a novel of the sea.</li><li>There is a whale in it.</li></ul><pre>x = 1
  y = 2</pre></main><footer>Privacy policy</footer></body></html>"""


def test_html_is_resiliparse_byte_for_byte():
    without_list = NOVEL.replace("<ul>", "<div>").replace("</ul>", "</div>")
    for page, main in ((NOVEL, False), (without_list, True), (without_list, False)):
        expected = resiliparse.extract_plain_text(page, main_content=main)
        assert html_text(page, "keep", main, "resiliparse") == (expected, "Moby & Dick")


def test_trafilatura_by_choice():
    trafilatura = pytest.importorskip("trafilatura", exc_type=ImportError)
    article = NOVEL.replace("weather.", "weather. " + "The whale was seen again, far to the south. " * 10)
    text, title = html_text(article, "keep", True, "trafilatura")
    assert text == trafilatura.extract(article)
    assert "Shop" not in text
    assert title == "Herman Melville"


def test_a_list_of_links_is_a_menu():
    page = "<main><p>Text.</p><ul><li><a href=x>One</a></li><li>Two <ul><li>and a half</li></ul></li></ul></main>"
    assert "and a half" in html_text(page, "keep", True, "resiliparse")[0]
    assert (
        html_text(page.replace("Two", "<a>Two and many more words</a>"), "keep", True, "resiliparse")[0]
        == "Text."
    )


def test_main_content_keeps_lists_and_code_and_drops_menus():
    document = extract(Page(NOVEL.encode(), "html", "a.html", 3, "http://a.example"))
    assert "It is a novel of the sea." in document.text
    assert "x = 1\n  y = 2" in document.text
    assert "Shop" not in document.text
    assert "Privacy" not in document.text
    assert (document.title, document.language, document.record) == ("Moby & Dick", "en", 3)


def test_rows_of_a_table_become_sentences():
    import random

    page = table_page(random.Random(0), "The weather was fine.")
    rows = extract(Page(page.encode(), "html", "a"), tables="rows").text
    assert "Day: day 1, Temperature: " in rows
    assert rows.index("fine.") < rows.index("day 1") < rows.index("day 5")
    dropped = extract(Page(page.encode(), "html", "a"), tables="drop").text
    assert "Temperature" not in dropped
    assert "fine." in dropped


@given(st.lists(st.text(max_size=5)), st.lists(st.text(max_size=5)))
def test_a_sentence_holds_every_value(header, row):
    text = sentence(header, row)
    assert all(value in text for value in row if value)


@given(st.binary(max_size=300))
def test_any_bytes_are_text_or_refused(data):
    for media in ("text", "csv", "markdown", "html"):
        try:
            document = extract(Page(data, media, "a"))
        except Refused as refused:
            assert str(refused)
        else:
            assert document.text == tidy(document.text) != ""
            document.text.encode(errors="strict")


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [("utf-8", ""), ("latin-1", "utf-8"), ("utf-16", ""), ("cp1252", "nonsense"), ("utf-8-sig", "")],
)
def test_wrong_charsets_do_no_harm(encoding, declared):
    text = "Größe und Übermut: die Bäume stehen schön am Fluß, und fünf Möwen fliegen darüber. " * 3
    assert decode(text.encode(encoding), declared)[0] == text


def test_a_codec_that_is_no_charset_is_passed_over():
    assert decode(b"plain", "hex") == ("plain", "utf-8")
    assert decode(b"plain", "zlib") == ("plain", "utf-8")


def test_binary_called_text_is_refused():
    with pytest.raises(Refused, match="binary"):
        decode(b"PK\x03\x04" + bytes(range(32)) * 50)
    with pytest.raises(Refused, match="no text"):
        extract(Page(b"<html><body></body></html>", "html", "a"))


def test_pdf():
    pytest.importorskip("pypdf")
    document = extract(Page(pdf(["The owl hunts.", "It sleeps by day."]), "pdf", "book.pdf", title="book"))
    assert document.text == "The owl hunts.\nIt sleeps by day."
    assert document.title == "book"
    for damaged in (b"%PDF-1.4 nothing", pdf(["x"])[:200], b""):
        with pytest.raises(Refused):
            extract(Page(damaged, "pdf", "a"))


@given(
    st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=6), min_size=1, max_size=3)
    )
)
def test_csv_holds_every_value(rows):
    import csv
    import io

    box = io.StringIO()
    csv.writer(box).writerows([["a", "b", "c"], *rows])
    text = csv_text(box.getvalue())
    assert all(" ".join(cell.split()) in text for row in rows for cell in row)
