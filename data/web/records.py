"""What passes through the pipeline: a page as it was found, a document as it is kept, or a fault with its reason."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Page(NamedTuple):
    """A page as it was found: its bytes, and where they come from."""

    data: bytes
    media: str  # html, text, markdown, pdf or csv
    file: str  # name of the file, for provenance
    record: int = 0  # number of the record in the file, from 0
    url: str = ""
    date: str = ""
    charset: str = ""  # as the server named it
    title: str = ""
    numbers: tuple[tuple[str, float], ...] = ()  # the numeric fields of a JSON line


class Fault(NamedTuple):
    """A record that could not be read, and why; `record` is -1 where the file ends early."""

    reason: str
    file: str
    record: int = -1
    url: str = ""


@dataclasses.dataclass
class Document:
    """A text with its provenance: one line of a JSON-lines file.

    `scores` holds one number for each measure that was taken, `masked` how many of each kind of personal data.
    """

    text: str
    file: str
    record: int = 0
    url: str = ""
    title: str = ""
    date: str = ""
    media: str = ""
    encoding: str = ""
    language: str = ""
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    masked: dict[str, int] = dataclasses.field(default_factory=dict)

    def as_json(self) -> str:
        """Return the document as one line of JSON, without its line end.

        >>> Document("Hi.", "a.warc", 3).as_json()
        '{"text": "Hi.", "file": "a.warc", "record": 3}'
        """
        fields = {name: value for name, value in vars(self).items() if value or name == "record"}
        return json.dumps(fields, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> "Document":
        """Return the document of a line that `as_json` wrote."""
        return cls(**json.loads(line))

    @property
    def num_bytes(self) -> int:
        """Return the size of the text in UTF-8."""
        return len(self.text.encode())


def read_documents(path: str | Path) -> Iterator[Document]:
    """Yield the documents of a JSON-lines file of this pipeline."""
    with open(path, encoding="utf-8", newline="\n") as file:
        yield from map(Document.from_json, file)


class MissingLibrary(ValueError):
    """An optional library is needed and not installed; nothing can go on without it."""

    @classmethod
    def named(cls, name: str, extra: str, error: Exception) -> "MissingLibrary":
        """Return the error that says what to install."""
        return cls(f"this needs the library {name} ({error}): pip install 'slm[{extra}]'")
