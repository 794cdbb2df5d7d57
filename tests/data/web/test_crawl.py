"""WARC files: the same records as fastwarc on whole files, and every other record of damaged ones."""

import gzip
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.web.crawl import find_files, pages, warc_pages
from data.web.records import Fault, Page
from data.web.synthetic import record, response, web

RECORDS = [response(page) for page in web(12, seed=1)]


def read(data: bytes, tmp_path, name: str = "a.warc.gz", max_bytes: int = 100_000) -> list[Page | Fault]:
    (tmp_path / name).write_bytes(data)
    return list(pages(str(tmp_path / name), max_bytes))


def http(body: bytes, headers: str = "") -> bytes:
    block = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n{headers}\r\n".encode() + body
    return record("response", "http://a.example", "application/http; msgtype=response", block)


@pytest.mark.parametrize("compress", [gzip.compress, bytes])
def test_records_are_those_of_fastwarc(tmp_path, compress):
    fastwarc = pytest.importorskip("fastwarc")
    data = b"".join(map(compress, RECORDS))
    theirs = [
        (each.headers["WARC-Target-URI"], each.http_charset, each.reader.read())
        for each in fastwarc.ArchiveIterator(io.BytesIO(data), record_types=fastwarc.WarcRecordType.response)
    ]
    ours = [(page.url, page.charset, page.data) for page in read(data, tmp_path)]
    assert ours == theirs


def test_zstd(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    found = read(pyarrow.compress(b"".join(RECORDS), "zstd", asbytes=True), tmp_path, "a.warc.zst")
    assert len(found) == len(RECORDS)


def test_a_record_without_a_length_costs_only_itself(tmp_path):
    broken = RECORDS[3].replace(b"Content-Length:", b"Content-Size:", 1)
    for compress in (gzip.compress, bytes):
        found = read(b"".join(map(compress, [*RECORDS[:3], broken, *RECORDS[4:]])), tmp_path)
        assert [each.record for each in found] == list(range(len(RECORDS)))
        assert [each.reason for each in found if isinstance(each, Fault)] == ["a record without a length"]


def test_a_truncated_archive_is_read_up_to_its_end(tmp_path):
    data = b"".join(map(gzip.compress, RECORDS))
    *whole, last = read(data[: len(data) // 2], tmp_path)
    assert all(isinstance(each, Page) for each in whole)
    assert len(whole) >= 3
    assert isinstance(last, Fault)
    *_, last = read(b"".join(RECORDS)[:-300], tmp_path, "a.warc")
    assert last.reason == "a record that is cut short"


def test_junk_is_passed_over(tmp_path):
    found = read(b"junk\r\n" + RECORDS[0] + b"\0\xff\r\n\r\nmore junk\r\n" + RECORDS[1], tmp_path, "a.warc")
    assert [type(each) for each in found] == [Page, Page]


def test_a_decompression_bomb_is_bounded(tmp_path):
    bomb = gzip.compress(bytes(3_000_000))
    (page,) = read(http(bomb, "Content-Encoding: gzip\r\n"), tmp_path, "a.warc")
    assert page.reason == "larger than max_bytes"
    found = read(gzip.compress(http(bytes(3_000_000))) + gzip.compress(RECORDS[0]), tmp_path)
    assert [type(each) for each in found] == [Fault, Page]
    (page,) = read(http(bomb[:2000], "Content-Encoding: gzip\r\n"), tmp_path, "a.warc", 4_000_000)
    assert 0 < len(page.data) < 3_000_000  # cut short: what is there


def test_bodies_are_unpacked(tmp_path):
    body = b"<p>Hello</p>"
    packed = gzip.compress(body)
    chunked = (
        b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (packed[:9], packed[9:])) + b"0\r\n\r\n"
    )
    for data, headers in [
        (packed, "Content-Encoding: gzip\r\n"),
        (body, "Content-Encoding: gzip\r\n"),
        (chunked, "Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"),
    ]:
        assert read(http(data, headers), tmp_path, "a.warc")[0].data == body


def test_pictures_and_error_pages_are_no_pages(tmp_path):
    picture = http(b"x").replace(b"text/html", b"image/png")
    error = http(b"x").replace(b"200 OK", b"404 No")
    assert read(picture + error, tmp_path, "a.warc") == []


def test_json_lines(tmp_path):
    lines = (
        b'{"text": "One.", "url": "u"}\n\nno json\n{"text": 3}\n{"text": "Two."}\n'
        + b'{"text": "'
        + b"x" * 999
        + b'"}\n'
    )
    found = read(lines, tmp_path, "a.jsonl", 500)
    assert [each.data for each in found if isinstance(each, Page)] == [b"One.", b"Two."]
    assert [each.reason for each in found if isinstance(each, Fault)] == [
        "a line without a field text"
    ] * 2 + ["larger than max_bytes"]


@given(st.binary(max_size=400), st.integers(0, 400), st.integers(0, 400))
def test_any_damage_leaves_a_stream_that_ends(junk, start, stop):
    data = b"".join(RECORDS[:3])
    damaged = data[: start * 8] + junk + data[stop * 8 :]
    for each in warc_pages(io.BufferedReader(io.BytesIO(damaged)), "a", 1_000_000):
        assert isinstance(each, Page | Fault)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no page"):
        find_files((str(tmp_path),))
    (tmp_path / "a.exe").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.exe: no reader for this kind of file"):
        find_files((str(tmp_path / "*.exe"),))
    (tmp_path / "a.txt").write_text("x")
    assert find_files((str(tmp_path),)) == [str(tmp_path / "a.txt")]
