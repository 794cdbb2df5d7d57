"""Payload and lens/page become one HTML file: no network, no library, and no script that is not one of these.

The modules of lens/page import each other, so that node and an editor read them as they are. Here they are joined in
the order of READ and SHOW, without their import lines and the word export. A content security policy names the hashes
of the script and the styles: nothing else can run, whatever a prompt or a token holds.
"""

import base64
import html
import json
import re
from hashlib import sha256
from pathlib import Path

from common import files
from lens.export import Head, to_json

PAGE = Path(__file__).with_name("page")
# What runs in the worker: numbers alone. Each file imports from those before it.
READ = ("payload", "tokenizer", "maths", "model", "sampling", "analysis", "worker")
# What runs on the page: drawing alone.
SHOW = (
    *("dom", "colour", "charts", "state"),
    *("views/tokens", "views/stack", "views/attention", "views/lens", "views/mlp", "views/interventions"),
    *("views/sampling", "views/film", "views/embeddings", "views/chat", "main"),
)
CHUNK = 3 << 20  # bytes of payload in one element, so that no task of the page takes long


def joined(names: tuple[str, ...]) -> str:
    """Return the modules as one strict script."""
    texts = [plain(files.read_text(PAGE / f"{name}.js")) for name in names]
    return '"use strict";\n(() => {\n' + "\n".join(texts) + "\n})();\n"


def plain(module: str) -> str:
    """Return a module without its imports and the word export.

    >>> plain('import { a } from "./a.js";\\nexport const b = a;\\n')
    'const b = a;\\n'
    """
    text = re.sub(r'^import [^;]*? from "\.[\w/.]*";\n', "", module, flags=re.MULTILINE)
    return re.sub(r"^export ", "", text, flags=re.MULTILINE)


def page(head: Head, data: bytes, root: str | None = None) -> str:
    """Return the page for a payload; `root` is the way from its folder to the source, for links, if there is one."""
    style, dark = (files.read_text(PAGE / f"{name}.css") for name in ("page", "dark"))
    script = joined(SHOW)
    parts = {
        "policy": policy(script, style, dark),
        "title": html.escape(head["name"]),
        "style": style,
        "dark": dark,
        "head": to_json({**head, "root": root, "bytes": len(data)}),
        "worker": json.dumps(joined(READ)).replace("<", "\\u003c"),
        "script": script,
        "data": "\n".join(_chunks(data)),
    }
    template = files.read_text(PAGE / "page.html")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def policy(script: str, *styles: str) -> str:
    """Return the content security policy: this script, these styles, a worker made of text on this page."""
    return (
        f"default-src 'none'; script-src {_sources(script)}; style-src {_sources(*styles)}; "
        "worker-src blob:; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _sources(*texts: str) -> str:
    """Return the sources of a policy that allow just these texts: their hashes."""
    return " ".join(f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'" for text in texts)


def _chunks(data: bytes) -> list[str]:
    """Return the elements that hold the bytes, in base64."""
    return [
        f'<script type="text/plain" class="data">{base64.b64encode(data[at : at + CHUNK]).decode()}</script>'
        for at in range(0, len(data), CHUNK)
    ]
