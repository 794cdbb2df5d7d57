"""Tokens are shown as they are, and text that looks like HTML stays text."""

import html.parser
import io

from rich.console import Console

from bpe import Tokenizer
from bpe.__main__ import main
from bpe.view import html_page, render_terminal, spans, summary

EVIL = "<script>alert(\"1\")</script>&amp; <b title='x'> [bold]é\n"
PLAIN = Tokenizer([(b"a", b"l")], ["<|end|>"])


class Reader(html.parser.HTMLParser):
    """Collects the tags, the titles and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.titles, self.text = set(), [], ""
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "span":
            self.inside = True
            self.titles.append(dict(attributes)["title"])

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        self.text += data * self.inside


def test_spans_hold_every_byte():
    found = spans(PLAIN, EVIL + "<|end|>")
    assert b"".join(span.token for span in found) == (EVIL + "<|end|>").encode()
    assert found[-1].shown == "<|end|>"


def test_the_page_shows_markup_and_does_not_run_it():
    page = html_page(EVIL, {"<i>mine</i>": PLAIN})
    reader = Reader(page)
    assert reader.tags == {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "section",
        "h2",
        "p",
        "pre",
        "span",
    }
    assert reader.text == EVIL.replace("é", r"\xc3\xa9").replace("\n", "⏎\n")
    assert "http" not in page
    assert any("id 256" in title and "61 6c" in title for title in reader.titles)


def test_a_notebook_shows_markup_and_does_not_run_it():
    shown = spans(PLAIN, EVIL + "pale<|end|>")
    reader = Reader(shown._repr_html_())
    assert reader.tags == {"pre", "span"}
    assert reader.text == "".join(span.shown for span in shown)
    assert len(reader.titles) == len(shown) == len(PLAIN.encode(EVIL + "pale")) + 1
    assert str(shown).endswith("p│al│e│<|end|>")


def test_two_tokenizers_stand_side_by_side():
    other = Tokenizer([])
    page = html_page("all", {"one": PLAIN, "two": other})
    assert page.count("<section>") == 2
    assert "2 tokens, 1.50 bytes per token" in page
    assert "3 tokens, 1.00 bytes per token" in page


def test_the_terminal_shows_text_ids_and_bytes():
    console = Console(file=io.StringIO(), width=100)
    console.print(render_terminal(EVIL, {"mine": PLAIN}, rows=5, coloured=True))
    shown = console.file.getvalue()
    assert '<script>alert("1")</script>' in shown
    assert "[bold]" in shown
    assert "… and" in shown
    assert "3c" in shown


def test_the_empty_text_has_no_ratio():
    assert summary("", []) == "0 characters, 0 bytes, 0 tokens"


def test_tokens_are_told_apart_without_colours(capsys, monkeypatch):
    monkeypatch.setattr("bpe.__main__.open_tokenizer", lambda name: PLAIN)
    main(["view", "pale", "--tokenizer", "mine"])
    assert "p│al│e" in capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    main(["view", "pale", "--tokenizer", "mine"])
    assert "p│al│e" not in capsys.readouterr().out
