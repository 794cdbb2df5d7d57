"""Sources, read for real through the datasets library from files that the tests write with other libraries."""

import csv
import gzip
import json
import socket
import sys
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import hub
from data.sources import Reading, mix, open_source
from data.stories import corpus

TEXTS = ["First tale, with “quotes” and é.", "Second\n\ntale in two parts.", 'Third "tale", the last\none.']


def texts_of(spec, **reading):
    return [segment.text.decode() for segment in open_source(spec, Reading(**reading)).documents()]


def write(path, texts, column="text"):
    """Write texts, numbered, in the format that the file's ending names."""
    rows = [{"id": i, column: text} for i, text in enumerate(texts)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, ["id", column])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("\n<|endoftext|>\n".join(texts))
    return path


KINDS = ("text", "jsonl", "parquet", "csv")


@pytest.mark.parametrize("kind", KINDS)
def test_files_give_their_documents(tmp_path, kind):
    path = write(tmp_path / f"tales.{kind}", TEXTS)
    source = open_source(f"{kind}:{path}", Reading())
    assert [segment.text.decode() for segment in source.documents()] == TEXTS
    assert [segment.text.decode() for segment in source.documents()] == TEXTS  # and again from the start
    assert source.num_bytes == path.stat().st_size


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_read_without_a_word_to_the_network(tmp_path, monkeypatch, kind):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **named: asked.append(address) or [])
    assert texts_of(f"{kind}:{write(tmp_path / f'tales.{kind}', TEXTS)}") == TEXTS
    assert not asked


@pytest.mark.parametrize("kind", KINDS)
def test_a_pattern_gives_its_files_in_the_order_of_their_names(tmp_path, kind):
    for name, text in (("b[1]", "in b"), ("a", "in a"), ("c", "in c")):
        write(tmp_path / f"{name}.{kind}", [text])
    assert texts_of(f"{kind}:{tmp_path}/*.{kind}") == ["in a", "in b", "in c"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_a_column_can_be_named(tmp_path, kind):
    path = write(tmp_path / f"tales.{kind}", TEXTS, column="story")
    assert (
        texts_of(f"{kind}:{path}#story") == texts_of(f"{kind}:{path}") == TEXTS
    )  # the only column with text


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_a_column_that_cannot_be_the_text_names_those_that_can(tmp_path, kind):
    path = write(tmp_path / f"tales.{kind}", TEXTS, column="story")
    with pytest.raises(ValueError, match="no column 'body': name one of story after a #"):
        texts_of(f"{kind}:{path}#body")
    with pytest.raises(ValueError, match="holds int64, not text, in column 'id': name one of story"):
        texts_of(f"{kind}:{path}#id")


@pytest.mark.parametrize("column", ["", "#id", "#text"])
def test_a_table_without_text_says_so(tmp_path, column):
    path = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"id": [1], "n": [2.5]}), path)
    with pytest.raises(ValueError, match=r"numbers\.parquet has no column with text, only id, n"):
        texts_of(f"parquet:{path}{column}")


def test_two_columns_with_text_need_a_name(tmp_path):
    path = tmp_path / "tales.parquet"
    pq.write_table(pa.table({"title": ["A"], "story": ["Once."]}), path)
    with pytest.raises(ValueError, match="several columns that could be the text: name one of title, story"):
        texts_of(f"parquet:{path}")


def test_missing_values_are_empty_documents_not_holes(tmp_path):
    path = tmp_path / "tales.parquet"
    pq.write_table(pa.table({"text": ["one", None, "", "two"]}), path)
    assert texts_of(f"parquet:{path}") == ["one", "", "", "two"]
    path = tmp_path / "tales.csv"
    path.write_text("text\none\nNA\nnull\n")
    assert texts_of(f"csv:{path}") == ["one", "NA", "null"]  # words, not missing values


def test_compressed_text_is_read(tmp_path):
    path = tmp_path / "tales.txt.gz"
    path.write_bytes(gzip.compress("<|endoftext|>".join(TEXTS).encode()))
    assert texts_of(f"text:{path}") == TEXTS


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("line", ["one", "two", "three"]),
        ("break", ["one\n\ntwo", "three"]),
        ("whole", ["one\n\ntwo\nthree"]),
        ("separator", ["one\n\ntwo\nthree"]),
    ],
)
def test_text_is_split_as_asked(tmp_path, mode, expected):
    path = tmp_path / "tale.txt"
    path.write_text("one\n\ntwo\nthree\n")
    assert texts_of(f"text:{path}", split_documents=mode) == expected


def test_a_separator_can_be_named(tmp_path):
    path = tmp_path / "tale.txt"
    path.write_text("one\n----\ntwo, three\n----\n")
    assert texts_of(f"text:{path}", split_documents="separator", separator="----") == ["one", "two, three"]


def test_a_large_file_is_read_in_blocks(tmp_path):
    lines = [f"line {i} {'x' * (i % 300)}." for i in range(30_000)]  # 4.8 MB: several blocks
    path = tmp_path / "tale.txt"
    path.write_text("\n".join(lines))
    assert texts_of(f"text:{path}", split_documents="line") == lines
    passages = list(open_source(f"text:{path}", Reading(split_documents="whole")).documents())
    assert b"".join(segment.text for segment in passages).decode() == "\n".join(lines)
    assert [segment.ends for segment in passages] == [False] * (len(passages) - 1) + [True]
    assert max(len(segment.text) for segment in passages) <= 1 << 14


def test_an_archive_without_members_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "none.zip", "w"):
        pass
    with pytest.raises(ValueError, match=r"none\.zip is an archive without members"):
        texts_of(f"text:{tmp_path}/none.zip")


def test_text_that_is_no_utf8_is_refused(tmp_path):
    path = tmp_path / "tale.txt"
    path.write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"tale\.txt is not UTF-8 .*: convert it"):
        texts_of(f"text:{path}", split_documents="line")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_file_of_another_format_is_refused_by_name(tmp_path, kind):
    path = tmp_path / f"tale.{kind}"
    path.write_text('{"text": "fine"}\n{"text": not so\n')
    with pytest.raises(ValueError, match=rf"tale\.{kind} cannot be read as {kind}"):
        texts_of(f"{kind}:{path}")


@pytest.mark.parametrize(
    ("spec", "error", "reason"),
    [
        ("text:{}/none*.txt", FileNotFoundError, "matches no file"),
        ("text:{}", FileNotFoundError, "is a folder"),
        ("text:{}/empty.txt", ValueError, r"empty\.txt is empty"),
        ("stories!", ValueError, "unknown source 'stories!': use stories, tinystories"),
        ("text:", ValueError, "unknown source"),
        ("hf:a:b:c:d", ValueError, "not of the form"),
    ],
)
def test_impossible_sources_are_refused(tmp_path, spec, error, reason):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(error, match=reason):
        texts_of(spec.format(tmp_path))


def test_the_built_in_corpus():
    assert texts_of("stories", stories_bytes=5000, seed=3) == list(corpus(5000, seed=3))


def test_a_mixture_keeps_its_shares_throughout_and_ends_with_the_first_source(tmp_path):
    a = write(tmp_path / "a.txt", [f"a{'x' * (i % 50)}" for i in range(400)])
    b = write(tmp_path / "b.txt", [f"b{'y' * (i % 90)}" for i in range(4000)])
    sources = [open_source(f"text:{path}", Reading()) for path in (a, b)]
    mixed = [segment.text for segment in mix(sources, (1, 3))]
    assert sum(text.startswith(b"a") for text in mixed) == 400
    for end in range(200, len(mixed), 200):
        size = {letter: sum(len(t) for t in mixed[:end] if t.startswith(letter)) for letter in (b"a", b"b")}
        assert abs(size[b"b"] - 3 * size[b"a"]) <= 3 * 91 + 91
    assert [t for t in mixed if t.startswith(b"a")] == [segment.text for segment in sources[0].documents()]


def test_without_the_library_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    hub.library.cache_clear()
    with pytest.raises(ValueError, match="pip install datasets"):
        texts_of("tinystories")
    path = write(tmp_path / "tales.parquet", TEXTS)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        texts_of(f"parquet:{path}")
    for kind in ("text", "jsonl", "csv"):  # need no library
        assert texts_of(f"{kind}:{write(tmp_path / f'tales.{kind}', TEXTS)}") == TEXTS
    assert texts_of("stories", stories_bytes=500)


def test_names_of_the_hub():
    assert hub.parse("a/b") == hub.Name("a/b", None, "train", None)
    assert hub.parse("a/b:en") == hub.Name("a/b", "en", "train", None)
    assert hub.parse("a/b:test#body") == hub.Name("a/b", None, "test", "body")
    assert hub.parse("a/b:en:test#body") == hub.Name("a/b", "en", "test", "body")


@pytest.mark.parametrize("spec", ["tinystories", "tinystories-v2", "hf:nobody/nothing:train#text"])
@pytest.mark.parametrize("why", ["--local-files-only", "HF_HUB_OFFLINE", "does not answer"])
def test_without_network_it_says_what_was_tried_and_what_works(monkeypatch, tmp_path, spec, why):
    hub.library()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", why == "HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens at the discard port
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError) as refusal:
        texts_of(spec, local_files_only=why == "--local-files-only")
    for words in (why, "http://127.0.0.1:9", "cache", "--source stories", "local files"):
        assert words in str(refusal.value)
