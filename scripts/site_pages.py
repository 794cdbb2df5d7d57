"""What the site needs beyond docs/: README as its front page, pages for the files that pages link to, and formulas.

`make docs` builds it; mkdocs.yml names this file, and mkdocs calls the functions named on_…. A link to a file of the
repository becomes one to a page that shows it, so the site works without a network and wherever it is put.
"""

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")  # those that are not in docs/
LINK = re.compile(r"(?<=\]\()[^)\s#]+")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
# A browser without a font for mathematics, such as a phone's, draws an msqrt without its sign.
ROOT_SIGN = '<mrow><mo stretchy="false" rspace="0">√</mo><mrow style="border-top: 0.06em solid">'
LANGUAGES = {".cuh": "cuda", ".h": "cpp", ".cff": "yaml"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside docs/ and, for each file or folder that any page links to, a page that shows it."""
    texts = {path: (ROOT / path).read_text("utf-8") for path in PAGES}
    texts |= {str(file.relative_to(ROOT)): notebook(file) for file in (ROOT / "notebooks").glob("*.py")}
    for path, text in texts.items():
        files.append(File.generated(config, site_path(path), content=text))
    texts |= {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    linked = {target(path, link) for path, text in texts.items() for link in LINK.findall(text)} - {None}
    for path in sorted(linked.union(*map(inside, linked))):
        if site_path(path).startswith("source/"):
            content = folder(path) if (ROOT / path).is_dir() else source(path)
            files.append(File.generated(config, site_path(path), content=content))
    worker = Path(__file__).with_name("iframe-worker.js")
    files.append(File.generated(config, worker.name, abs_src_path=str(worker)))
    return files


def target(page: str, link: str) -> str | None:
    """Return the path in the repository that `link` on `page` leads to, or None if that is no file and no folder.

    >>> target("docs/kernels/README.md", "../../bpe/view.py"), target("README.md", "https://pytorch.org")
    ('bpe/view.py', None)
    """
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return path if (ROOT / path).exists() else None


def site_path(path: str) -> str:
    """Return where the site has a file or folder of the repository.

    >>> [site_path(path) for path in ("README.md", "docs/data.md", "notebooks/2_model.py", "bpe/view.py")]
    ['index.md', 'data.md', 'notebooks/2_model.md', 'source/bpe/view.py.md']
    """
    if path in PAGES:
        return "index.md" if path == "README.md" else path
    if path.startswith("notebooks/"):
        return path.replace(".py", ".md")
    if path.startswith("docs/"):
        return path.removeprefix("docs/") + ("/README.md" if (ROOT / path).is_dir() else "")
    return f"source/{path}/index.md" if (ROOT / path).is_dir() else f"source/{path}.md"


def inside(path: str) -> list[str]:
    """Return the files of text in a folder; none in a file."""
    found = (ROOT / path).glob("[!.]*") if (ROOT / path).is_dir() else []
    return sorted(str(file.relative_to(ROOT)) for file in found if file.is_file() and file.suffix != ".so")


def notebook(path: Path) -> str:
    """Return a file with cells as Markdown."""
    cells = [cell.partition("\n") for cell in path.read_text("utf-8").split("# %%")[1:]]
    return "\n\n".join(
        re.sub("^# ?", "", body, flags=re.MULTILINE)
        if "markdown" in kind
        else f"```python\n{body.strip()}\n```"
        for kind, _, body in cells
    )


def folder(path: str) -> str:
    """Return a page that lists the files of a folder."""
    names = map(posixpath.basename, inside(path))
    return _page(path, "\n".join(f"- [{name}]({name}.md)" for name in names))


def source(path: str) -> str:
    """Return a page that shows a text file."""
    suffix = Path(path).suffix
    text = (ROOT / path).read_text("utf-8")
    return _page(path, f"~~~~~~ {LANGUAGES.get(suffix, suffix[1:] or 'text')}\n{text}\n~~~~~~")


def _page(path: str, body: str) -> str:
    return f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n{body}\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn the links of a page into links to pages of the site."""
    here = page.file.src_uri
    if here.startswith("source/"):
        return markdown
    outside = (*PAGES, here.replace(".md", ".py"))
    path = next((path for path in outside if site_path(path) == here), f"docs/{here}")

    def on_the_site(link: re.Match) -> str:
        there = target(path, link[0])
        return posixpath.relpath(site_path(there), posixpath.dirname(here) or ".") if there else link[0]

    return LINK.sub(on_the_site, markdown)


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    """Turn formulas into MathML, which a browser draws without a script; a wide one is scrolled, not the page."""

    def drawn(formula: re.Match) -> str:
        kind = "inline" if formula[1] == "span" else "block"
        mathml = convert(html.unescape(formula[2]), display=kind)
        mathml = mathml.replace("<msqrt>", ROOT_SIGN).replace("</msqrt>", "</mrow></mrow>")
        return mathml if kind == "inline" else f'<div style="overflow-x: auto">{mathml}</div>'

    return FORMULA.sub(drawn, content)
