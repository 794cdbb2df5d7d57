"""The page in a real browser: every view draws, nothing is fetched, nothing that is typed can run.

Needs playwright and a Chromium; without them these tests are skipped by name. Screenshots of every view at three sizes
are kept in pytest's temporary folder (-m slow -k screenshots).
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lens.__main__ import main

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VIEWS = {
    "tokens": ".tokencard",
    "stack": ".detail canvas",
    "attention": ".headmap canvas",
    "lens": "table.lens td",
    "mlp": ".bars li",
    "interventions": ".switch",
    "sampling": ".bars button",
    "film": ".card",
    "embeddings": "canvas.map",
    "chat": ".talkform",
}
SIZES = ((390, 844), (1440, 900), (3840, 2160))
HOSTILE = "<script>alert(1)</script>\"' onload=x \u2028 <img src=x onerror=alert(2)> \u202e&lt;"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"there is no Chromium for playwright: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(babble, corpus, chat_run, tmp_path_factory) -> dict[str, Path]:
    """Return the pages of two runs: one as the quickstart's, one with every modern variant, a film and a chat."""
    folder = tmp_path_factory.mktemp("pages")
    main([str(babble), "--out", str(folder / "plain.html"), "--index", str(corpus)])
    main([str(chat_run), "--out", str(folder / "modern.html"), "--precision", "int8"])
    return {name: folder / f"{name}.html" for name in ("plain", "modern")}


@pytest.fixture
def opened(browser):
    """Open a page; at the end of the test nothing was said on the console, asked for, or thrown."""
    wrong: list[str] = []
    open_pages = []

    def call(path: Path, ready: str = "#strip .token", **options: Any) -> Any:
        page = browser.new_page(**options)
        open_pages.append(page)
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: request.url.startswith(("file:", "blob:", "data:")) or wrong.append(request.url),
        )
        page.goto(path.as_uri())
        page.wait_for_selector(ready)
        return page

    yield call
    for page in open_pages:
        page.close()
    assert wrong == []


def show(page: Any, view: str) -> None:
    """Open a view and wait until it is drawn."""
    page.click(f"#tab-{view}")
    page.wait_for_selector(f"#view {VIEWS[view]}")


def until(page: Any, condition: str, **options: Any) -> None:
    """Wait until a condition holds; playwright's own waiting evaluates text in the page, which its policy forbids."""
    for _ in range(1000):
        if page.evaluate(condition, **options):
            return
        page.wait_for_timeout(20)
    pytest.fail(f"this never came true: {condition}")


@pytest.mark.parametrize("name", ["plain", "modern"])
def test_every_view_draws(name, pages, opened):
    page = opened(pages[name])
    titles = {}
    for tab in page.query_selector_all("#tabs button"):
        view = tab.get_attribute("data-view")
        show(page, view)
        titles[view] = page.inner_text("#view h2")
        assert page.inner_text("#view .body").strip()
        assert not page.query_selector_all("#view .wrong:not(:empty)")
        for canvas in page.query_selector_all("#view canvas"):
            assert canvas.evaluate("c => c.width * c.height > 0")
    assert titles.keys() == VIEWS.keys() - ({"chat"} if name == "plain" else set())


def test_hostile_text_is_shown_and_never_run(pages, opened):
    page = opened(pages["plain"])
    page.fill("#prompt", HOSTILE[:40])
    until(page, "document.querySelectorAll('#strip .token').length > 5")
    page.fill("#prompt", HOSTILE)
    until(page, "document.querySelector('#said').textContent.includes('first')")
    scripts = page.evaluate("document.querySelectorAll('script').length")
    for view in VIEWS.keys() - {"chat"}:
        show(page, view)
        assert page.query_selector_all("#view img, #view script, #strip img, #strip script") == []
    assert page.evaluate("document.querySelectorAll('script').length") == scripts
    show(page, "tokens")
    assert "<s" in "".join(page.locator("#view .tokencard .text").all_inner_texts())


def test_wrong_prompts_are_answered_in_place(pages, opened):
    page = opened(pages["plain"])
    page.uncheck("#begin")
    for text, answer in (
        ("", "The prompt is empty"),
        ("word " * 200, "the context has room for 48"),
        ("x" * 20001, "the lens reads 20000"),
    ):
        page.fill("#prompt", text)
        until(page, "answer => document.querySelector('#said').textContent.includes(answer)", arg=answer)
    page.fill("#prompt", "日\ud7ff🙂")  # in the vocabulary as bytes only
    until(page, "document.querySelector('#said').textContent === ''")
    assert "\\xe6" in page.inner_text("#strip")


def test_arrow_keys_move_through_views_and_tokens(pages, opened):
    page = opened(pages["plain"])
    page.focus("#tab-tokens")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("#view .station")
    assert page.evaluate("document.activeElement.id") == "tab-stack"
    page.focus("#strip .at")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    place = "[...document.querySelector('#strip .reading').children].indexOf(document.activeElement)"
    assert page.evaluate(place) == 1
    nameless = """[...document.querySelectorAll('input, select, textarea, button, [role=img]')].filter(
        (e) => !(e.getAttribute('aria-label') || e.textContent.trim() || e.closest('label'))).length"""
    for view in VIEWS.keys() - {"chat"}:
        show(page, view)
        assert page.evaluate(nameless) == 0, view


def test_light_and_dark_follow_the_system_until_one_is_chosen(pages, opened):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = opened(pages["plain"], color_scheme="light").evaluate(ground)
    page = opened(pages["plain"], color_scheme="dark")
    dark = page.evaluate(ground)
    page.click("#theme")
    chosen = page.evaluate(ground)
    page.click("#theme")
    assert (chosen, page.evaluate(ground)) == (light, dark) and light != dark


def test_a_text_grows_and_shrinks(pages, opened):
    page = opened(pages["plain"])
    show(page, "sampling")
    for _ in range(3):
        count = len(page.query_selector_all(".drawn"))
        page.click("[data-key=step]")
        until(page, "n => document.querySelectorAll('.drawn').length > n", arg=count)
    page.click("[data-key=undo]")
    until(page, "document.querySelectorAll('.drawn').length === 2")
    page.locator("#view .bars button").nth(1).click()
    until(page, "document.querySelectorAll('.drawn').length === 3")
    page.click("[data-key=run]")
    until(page, "document.querySelectorAll('.drawn').length > 8")
    page.click("[data-key=restart]")
    until(page, "document.querySelectorAll('.drawn').length === 0")
    page.click("[data-key=beam]")
    page.wait_for_selector(".node.best")


def test_a_part_that_is_off_moves_the_distribution(pages, opened):
    page = opened(pages["modern"])
    show(page, "interventions")
    figure = page.locator("#view .figures dd").first
    assert figure.inner_text() == "0 nats"
    page.click('[data-key="mlp 1"]')
    until(page, "document.querySelector('#view .figures dd').textContent !== '0 nats'")
    page.click("[data-key='all on']")
    page.click("[data-key=sweep]")
    until(page, "[...document.querySelectorAll('.switch')].every(e => /\\d/.test(e.textContent))")
    page.check("[data-key=patching]")
    page.fill("[data-key='other prompt']", "a dog")
    until(page, "document.querySelector('#view .figures dd').textContent !== '0 nats'")


def test_the_film_shows_each_kept_step(pages, opened):
    page = opened(pages["modern"])
    show(page, "film")
    assert page.inner_text(".filmbar output") == "step 10"
    page.focus("[data-key=film]")
    page.keyboard.press("ArrowRight")
    until(page, "document.querySelector('.filmbar output').textContent === 'step 20'")
    page.wait_for_selector("#view .heatbox canvas")


def test_a_conversation(pages, opened):
    page = opened(pages["modern"])
    show(page, "chat")
    page.fill("[data-key=message]", "<b>Hi</b>")
    page.click("[data-key=send]")
    page.wait_for_selector(".talk .assistant:not(:empty)")
    assert page.inner_text(".talk .user") == "<b>Hi</b>"


@pytest.mark.parametrize(
    ("find", "replace", "answer"),
    [
        (r'"version":1', '"version":9', "has version 9"),
        (r'\{"format"', "{format", "its head is not JSON"),
        (r'class="data">.{8}', 'class="data">', "the weights have"),
        (r'class="data">.', 'class="data">§', "not base64"),
        (r'"at":0', '"at":2', "does not fit into the payload"),
    ],
)
def test_a_damaged_page_says_so(find, replace, answer, pages, opened, tmp_path):
    text = pages["plain"].read_text(encoding="utf-8")
    assert re.search(find, text)
    damaged = tmp_path / "damaged.html"
    damaged.write_text(re.sub(find, replace, text, count=1), encoding="utf-8")
    page = opened(damaged, ready="#said.wrong")
    assert answer in page.inner_text("#said")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}")
def test_screenshots(size, scheme, pages, opened, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "screenshots"
    folder.mkdir(exist_ok=True)
    for name in pages:
        page = opened(
            pages[name], viewport=dict(zip(("width", "height"), size, strict=True)), color_scheme=scheme
        )
        for tab in page.query_selector_all("#tabs button"):
            view = tab.get_attribute("data-view")
            show(page, view)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
            page.screenshot(path=folder / f"{name}-{view}-{size[0]}-{scheme}.png")
