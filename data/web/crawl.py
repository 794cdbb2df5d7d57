"""Files to pages: WARC and WET (plain, gzip, zstd), HTML, Markdown, text, PDF, CSV and JSON lines.

Pages are streamed, so memory does not grow with a file; a page larger than `max_bytes` is passed over, not loaded.
Damage is a `Fault` in the stream, never an exception: a record without a length or with a broken header is skipped up
to the next record, a file that ends early ends there. (fastwarc, the usual reader, stops at the first such record and
does not say when the last one was cut; the tests hold this reader against it on whole files.)
"""

import contextlib
import gzip
import io
import json
import lzma
import os
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from common.textfiles import matching_files
from data.web.records import Fault, MissingLibrary, Page

SUFFIXES = {
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".md": "markdown",
    ".markdown": "markdown",
    ".txt": "text",
    ".pdf": "pdf",
    ".csv": "csv",
}
ARCHIVES = (".warc", ".wet")
LINES = (".jsonl", ".ndjson")
COMPRESSED = (".gz", ".zst")
MEDIA = {  # of a Content-Type
    "text/html": "html",
    "application/xhtml+xml": "html",
    "text/plain": "text",
    "text/markdown": "markdown",
    "application/pdf": "pdf",
    "text/csv": "csv",
}
LONGEST_HEADER = 1 << 16  # bytes of one header line, and number of lines that are read as one header at most
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError)
TYPE_AND_CHARSET = re.compile(r"\s*([\w.+-]+/[\w.+-]+)(?:.*?charset=[\"']?([\w-]+))?", re.IGNORECASE)


def find_files(patterns: tuple[str, ...]) -> list[str]:
    """Return the files that patterns match; a folder means every file below it whose name says that it can be read.

    FileNotFoundError if a pattern matches nothing, ValueError for a file of an unknown kind.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        paths = matching_files(os.path.join(pattern, "**") if os.path.isdir(pattern) else pattern)
        if os.path.isdir(pattern):
            paths = [path for path in paths if kind_of(path)]
        if not paths:
            raise FileNotFoundError(
                f"{pattern} holds no page: give WARC, WET, HTML, Markdown, text, PDF or CSV files"
            )
        for path in paths:
            if not kind_of(path):
                known = ", ".join([*ARCHIVES, *LINES, *SUFFIXES])
                raise ValueError(
                    f"{path}: no reader for this kind of file: use {known} (and .gz or .zst after it)"
                )
            found[path] = None
    return list(found)


def kind_of(path: str) -> str:
    """Return warc, jsonl or the media of a file, by its name; "" if it is unknown.

    >>> kind_of("CC-MAIN-2024.warc.gz"), kind_of("x.wet.zst"), kind_of("notes.md"), kind_of("a.exe")
    ('warc', 'warc', 'markdown', '')
    """
    name = os.path.basename(path).lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    suffix = os.path.splitext(name)[1]
    if suffix in ARCHIVES:
        return "warc"
    return "jsonl" if suffix in LINES else SUFFIXES.get(suffix, "")


def pages(path: str, max_bytes: int = 16_000_000) -> Iterator[Page | Fault]:
    """Yield the pages of a file and what could not be read of it."""
    kind, name = kind_of(path), os.path.basename(path)
    try:
        with open_stream(path) as stream:
            if kind == "warc":
                yield from warc_pages(stream, name, max_bytes)
            elif kind == "jsonl":
                yield from line_pages(stream, name, max_bytes)
            else:
                data = stream.read(max_bytes + 1)
                title = Path(name).stem
                yield too_large(name, 0) if len(data) > max_bytes else Page(data, kind, name, title=title)
    except DAMAGED as error:
        yield Fault(f"unreadable file ({type(error).__name__})", name)


@contextlib.contextmanager
def open_stream(path: str) -> Iterator[IO[bytes]]:
    """Open a file, decompressed by what its first bytes say."""
    with open(path, "rb") as raw:
        start = raw.peek(4)[:4]
        if start.startswith(b"\x1f\x8b"):
            yield gzip.GzipFile(
                fileobj=raw
            )  # unlike a larger buffer around it, it gives all it has before an error
        elif start == b"\x28\xb5\x2f\xfd":
            try:
                import pyarrow
            except ImportError as error:
                raise MissingLibrary.named("pyarrow", "data", error) from error
            yield io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), 1 << 16)
        else:
            yield raw


def too_large(name: str, record: int, url: str = "") -> Fault:
    """Return the fault of a page that is larger than pages may be."""
    return Fault("larger than max_bytes", name, record, url)


def line_pages(stream: IO[bytes], name: str, max_bytes: int) -> Iterator[Page | Fault]:
    """Yield the field "text" of each line as a page of plain text, with "url", "title" and "date" where they are
    text, and all numbers.
    """
    for record, line in enumerate(iter(lambda: stream.readline(max_bytes + 1), b"")):
        if len(line) > max_bytes:
            while line and not line.endswith(b"\n"):
                line = stream.readline(max_bytes + 1)
            yield too_large(name, record)
            continue
        try:
            row = json.loads(line)
            text = row["text"].encode()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if line.strip():
                yield Fault("a line without a field text", name, record)
            continue
        url, title, date = (
            row[key] if isinstance(row.get(key), str) else "" for key in ("url", "title", "date")
        )
        yield Page(text, "text", name, record, url, date, "utf-8", title, numbers_of(row))


def numbers_of(row: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    """Return the finite numbers of a JSON line, and those that an earlier pipeline noted in its field "scores".

    >>> numbers_of({"text": "Hi.", "record": 3, "bits": 2, "ok": True, "scores": {"language": 0.9}})
    (('language', 0.9), ('bits', 2.0))
    """
    scores = row.get("scores")
    found = {**scores, **row} if isinstance(scores, dict) else row
    return tuple(
        (key, float(value))
        for key, value in found.items()
        if type(value) in (int, float) and abs(value) <= sys.float_info.max and key != "record"
    )


def warc_pages(stream: IO[bytes], name: str, max_bytes: int) -> Iterator[Page | Fault]:
    """Yield the pages of a WARC or WET stream: responses and conversions whose content can be text."""
    record = -1
    while (headers := next_header(stream)) is not None:
        record += 1
        url = headers.get("warc-target-uri", "").strip("<>")
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            yield Fault("a record without a length", name, record, url)
            continue
        size, kind = int(length), headers.get("warc-type", "").lower()
        if kind not in ("response", "conversion", "resource"):
            skip(stream, size)
            continue
        data = stream.read(min(size, max_bytes + LONGEST_HEADER))
        if len(data) < size and not skip(stream, size - len(data)):
            yield Fault("a record that is cut short", name, record, url)
            return
        page = page_of_record(
            data, headers, Page(b"", "", name, record, url, headers.get("warc-date", "")), max_bytes
        )
        if page is not None:
            yield page


def next_header(stream: IO[bytes]) -> dict[str, str] | None:
    """Return the header of the next record, names in lower case; None at the end. Anything before it is passed over."""
    while line := stream.readline(LONGEST_HEADER):
        if line.startswith(b"WARC/"):
            return header_lines(stream)
    return None


def header_lines(stream: IO[bytes]) -> dict[str, str]:
    """Return the lines "name: value" up to an empty one, names in lower case."""
    headers: dict[str, str] = {}
    for _ in range(LONGEST_HEADER):
        line = stream.readline(LONGEST_HEADER)
        if not line.strip():
            break
        key, _, value = line.decode("utf-8", "replace").partition(":")
        headers[key.strip().lower()] = value.strip()
    return headers


def skip(stream: IO[bytes], size: int) -> bool:
    """Read past `size` bytes in small blocks; return False if the stream ends before."""
    while size:
        block = len(stream.read(min(size, 1 << 16)))
        if not block:
            return False
        size -= block
    return True


def page_of_record(data: bytes, headers: dict[str, str], page: Page, max_bytes: int) -> Page | Fault | None:
    """Return the page of a record, a fault, or None if it is of a kind without text (an image, an error page)."""
    content_type = headers.get("content-type", "")
    if content_type.startswith("application/http"):
        stream = io.BytesIO(data)
        status = stream.readline(LONGEST_HEADER).split()
        http = header_lines(stream)
        if len(status) < 2 or not status[0].startswith(b"HTTP/"):
            return Fault("no HTTP header", page.file, page.record, page.url)
        if status[1] != b"200":
            return None
        content_type = http.get("content-type", "text/html")
        body = decoded_body(stream.read(), http, max_bytes)
        if isinstance(body, str):
            return Fault(body, page.file, page.record, page.url)
        data = body
    found = TYPE_AND_CHARSET.match(content_type)
    media = MEDIA.get(found[1].lower()) if found else None
    if media is None:
        return None
    if len(data) > max_bytes:
        return too_large(page.file, page.record, page.url)
    return page._replace(data=data, media=media, charset=found[2] or "")


def decoded_body(body: bytes, http: dict[str, str], max_bytes: int) -> bytes | str:
    """Undo chunks and compression of an HTTP body; return at most max_bytes + 1 bytes, or a str that says what is
    wrong.

    Crawlers often store a decoded body below the headers of the encoded one: what does not begin as they say is taken
    as it is.
    """
    if "chunked" in http.get("transfer-encoding", "") and re.match(rb"[0-9a-fA-F]+[^\r\n]{0,99}\r\n", body):
        body = unchunked(body)
    encoding = http.get("content-encoding", "")
    if encoding in ("gzip", "x-gzip") and body.startswith(b"\x1f\x8b"):
        try:
            return zlib.decompressobj(wbits=31).decompress(body, max_bytes + 1)
        except zlib.error:
            return "damaged gzip body"
    return body


def unchunked(body: bytes) -> bytes:
    """Join the chunks of an HTTP body; what is not a chunk ends it.

    >>> unchunked(b"3\\r\\nabc\\r\\n2;x=y\\r\\nde\\r\\n0\\r\\n\\r\\n")
    b'abcde'
    """
    parts, position = [], 0
    while found := re.compile(rb"([0-9a-fA-F]{1,8})[^\r\n]*\r\n").match(body, position):
        size = int(found[1], 16)
        if not size:
            break
        parts.append(body[found.end() : found.end() + size])
        position = found.end() + size + 2
    return b"".join(parts)
