"""A photograph of the lens on a trained model, by Chromium: python -m scripts.pictures --only lens."""

import shutil
import tempfile
from pathlib import Path

from common import files
from inference.text import TextModel
from lens.assemble import page
from lens.export import export

SIZE = {"width": 1200, "height": 900}
CHOSEN = "Once there was a little girl named Lily. One sunny"  # its last token is the one that is looked at
PROMPT = f"{CHOSEN} day, she wanted to go"


def logit_lens(run: Path) -> bytes:
    """Return the view "Logit lens" of a run as a PNG; ValueError without playwright or a Chromium."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise ValueError("it is a photograph of a browser: pip install playwright, and a Chromium") from error
    place = len(TextModel.load(run, "cpu").encode(CHOSEN)) - 1
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "lens.html"
        files.write_text(file, page(*export(run, "float16", film=0, index=None)))
        try:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        except Error as error:
            raise ValueError(f"there is no Chromium: {str(error).splitlines()[0]}") from error
        tab = browser.new_page(viewport=SIZE)
        tab.goto(file.as_uri())
        tab.wait_for_selector("#strip .token")
        tab.click("#tab-lens")
        tab.fill("#prompt", PROMPT)
        tab.wait_for_timeout(2000)  # the page's policy forbids playwright to wait for a condition
        tab.locator("#strip .token").nth(place).click()
        tab.mouse.move(0, 0)  # away from the token's tip
        tab.wait_for_timeout(1000)
        photograph = tab.screenshot()
        browser.close()
    return photograph
