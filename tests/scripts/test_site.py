"""`make docs`: the site shows what the pages say, every link in it leads somewhere, and it fetches nothing."""

import doctest
import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = {
    ROOT / "README.md": "index.html",
    **{ROOT / name: name.replace(".md", ".html") for name in ("CONTRIBUTING.md", "CHANGELOG.md")},
    **{
        page: str(page.relative_to(ROOT / "docs")).replace("README.md", "index.md").replace(".md", ".html")
        for page in sorted((ROOT / "docs").rglob("*.md"))
    },
}
COUNTED = ("h2", "h3", "ul", "ol", "li", "table", "tr", "td", "pre", "code", "img", "strong", "em")
SHOWN = re.compile(r"<article.*?</article>", re.DOTALL)

pytest.importorskip("material", reason="make docs installs mkdocs-material")
pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """The tags, names, links and fetched files of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.names, self.links, self.fetched = [], set(), [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.names.add(given.get("id"))
        self.links += [given["href"]] if tag == "a" and given.get("href") else []
        self.fetched += [given[name] for name in ("src", "href") if tag != "a" and given.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_the_parts_that_another_renderer_finds(site, page):
    html = SHOWN.search((site / PAGES[page]).read_text("utf-8"))[0]
    text = re.sub(
        r"\$+[^$`]+\$+", "", page.read_text("utf-8")
    )  # markdown-it would take a formula's _ for emphasis
    theirs = MarkdownIt("commonmark").enable("table").render(text)
    found = [Page(text).tags for text in (html, theirs)]
    counts = [{tag: tags.count(tag) for tag in COUNTED} for tags in found]
    assert counts[0] == counts[1]


def test_every_link_and_every_file_is_there_and_nothing_is_fetched_from_elsewhere(site):
    written = [path for path in site.rglob("*.html") if path.name != "404.html"]  # whose links begin with /
    code = [path for path in written if path.name != "index.html" and site / "source" in path.parents]
    pages = {path: Page(path.read_text("utf-8")) for path in written if path not in code[1:]}
    for path, page in pages.items():
        assert not [link for link in page.fetched if "//" in link], path
        for link in page.links + page.fetched:
            if re.match(r"https?:|data:|mailto:", link):
                continue
            name, _, anchor = link.partition("#")
            there = (path.parent / unquote(name)).resolve() if name else path
            assert there.is_file(), (path, link)
            assert not anchor or there.suffix != ".html" or unquote(anchor) in pages[there].names, (
                path,
                link,
            )


def test_formulas_are_drawn(site):
    html = (site / "kernels" / "attention.html").read_text("utf-8")
    assert html.count("<math ") > 100
    assert "arithmatex" not in html
    assert not re.search(r"<math(?:(?!</math>).)*(\\|&amp;)", html, re.DOTALL)


def test_examples_in_the_code_run():
    assert doctest.testmod(importlib.import_module("scripts.site_pages")).failed == 0


def test_a_formula_needs_no_font_for_mathematics(site):
    html = (site / "kernels/layer_norm.html").read_text("utf-8")
    assert html.count("<math") > 20 and "√" in html and "msqrt" not in html
