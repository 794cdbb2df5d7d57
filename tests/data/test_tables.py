"""Columns of tables are read as Python's json and csv and as pandas read them, whatever the other columns hold."""

import csv
import gzip
import io
import json

import pandas
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.encode import Encoder
from data.sources import Reading, open_source


def texts_of(spec):
    return [segment.text.decode() for segment in open_source(spec, Reading()).documents()]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_other_columns_may_change_their_type_far_into_a_file(tmp_path):
    rows = [
        {"text": f"Tale {i} " + "x" * 1200, "n": i if i < 9500 else "many"} for i in range(10_000)
    ]  # 12 MB
    path = write_rows(tmp_path / "tales.jsonl", rows)
    assert texts_of(f"jsonl:{path}") == [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_times_stay_as_they_are_written(tmp_path):
    times = [f"2024-01-{day:02}T10:00:00Z" for day in range(1, 29)]
    path = write_rows(tmp_path / "times.jsonl", [{"text": time} for time in times])
    assert texts_of(f"jsonl:{path}") == times
    path = tmp_path / "times.csv"
    path.write_text("text\n" + "\n".join(times))
    assert texts_of(f"csv:{path}") == times


def test_what_is_no_text_is_left_out_counted_and_named(tmp_path):
    values = ["one", 2, None, ["three"], 4.5, "five", 6]
    source = open_source(
        f"jsonl:{write_rows(tmp_path / 'odd.jsonl', [{'text': v} for v in values])}", Reading()
    )
    for _ in range(2):  # the second reading counts afresh
        result = [Encoder(None).read(segment) for segment in source.documents()]
        assert [text.decode() for text, reason, _ in result if not reason] == ["one", "five"]
        assert [reason for _, reason, _ in result if reason] == [
            "not text",
            "empty",
            "not text",
            "not text",
            "not text",
        ]
        assert [line.partition("odd.jsonl: ")[2] for line in source.warnings()] == [
            "line 2 holds int64, not text, in column 'text' (the first of 2)",
            "line 4 holds list, not text, in column 'text'",
            "line 5 holds double, not text, in column 'text'",
        ]


def test_half_a_surrogate_pair_becomes_the_replacement_character(tmp_path):
    escaped = ["a \\ud83d b", "\\udc00", "whole \\ud83d\\ude42", "é"]
    path = tmp_path / "tales.jsonl"
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in escaped))
    expected = [
        json.loads(f'"{text}"').encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        for text in escaped
    ]
    source = open_source(f"jsonl:{path}", Reading())
    read = [Encoder(None).read(segment) for segment in source.documents()]
    assert [text.decode() for text, _, _ in read] == expected
    assert [rules for _, _, rules in read] == [["surrogate"], ["surrogate"], [], []]
    assert "line 1 holds half of a surrogate pair" in source.warnings()[0]


@pytest.mark.parametrize("start", [0, 5_000, 20_000])
def test_a_block_of_numbers_in_a_column_of_text_is_text(tmp_path, start):
    values = [f"word {i}" for i in range(30_000)]
    values[start : start + 10_000] = [f"{i:05}" for i in range(10_000)]
    path = tmp_path / "tales.csv"
    pandas.DataFrame({"n": 1, "text": values}).to_csv(path, index=False)
    expected = pandas.read_csv(path, dtype=str, keep_default_na=False)["text"].tolist()
    assert texts_of(f"csv:{path}#text") == texts_of(f"csv:{path}") == expected == values


fields = st.text(st.sampled_from('ab,"\n\r é;0'), max_size=6)


@given(st.lists(st.tuples(fields, fields), max_size=8))
def test_any_quoting_is_read_as_csv_reads_it(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "quoting.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("other", "text"), ("x", "some text"), *rows])
    with open(path, newline="", encoding="utf-8") as file:
        expected = [row[1] for row in csv.reader(file)][1:]
    assert texts_of(f"csv:{path}#text") == expected


def test_a_field_larger_than_csv_allows_by_default_is_read(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("text\n" + "word " * 50_000)
    assert texts_of(f"csv:{path}") == ["word " * 50_000]


def test_columns_of_one_name_are_numbered_as_in_pandas(tmp_path):
    path = tmp_path / "twice.csv"
    path.write_text("text,text\nfirst,second\n")
    frame = pandas.read_csv(path)
    for name in frame.columns:
        assert texts_of(f"csv:{path}#{name}") == frame[name].tolist()


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_of_objects_is_read_too(tmp_path, indent):
    path = tmp_path / "tales.jsonl"
    path.write_text(json.dumps([{"n": i, "text": f"tale {i}"} for i in range(5)], indent=indent))
    assert texts_of(f"jsonl:{path}") == [f"tale {i}" for i in range(5)]


def test_a_byte_order_mark_and_blank_lines_are_no_rows(tmp_path):
    for kind, content in (
        ("jsonl", '{"text": "one"}\n\n{"text": "two"}\r\n'),
        ("csv", "text\none\n\ntwo\r\n"),
    ):
        path = tmp_path / f"tales.{kind}"
        path.write_text("\ufeff" + content, newline="")
        assert texts_of(f"{kind}:{path}") == ["one", "two"]


def test_compressed_tables_are_read(tmp_path):
    path = tmp_path / "tales.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n{"text": "two"}\n'))
    assert texts_of(f"jsonl:{path}") == ["one", "two"]


GOOD = 2001  # rows before the wrong one: more than are read at a time


@pytest.mark.parametrize(
    ("kind", "wrong", "reason"),
    [
        ("jsonl", '{"text": "open', "Unterminated string"),
        ("jsonl", '["a list"]', "holds list, not an object"),
        ("jsonl", '{"text": "caf\udce9"}', "not UTF-8"),
        ("jsonl", '{"text": ' + "[" * 100_000, ""),
        ("jsonl", '{"text": "fine", "n": ' + "9" * 4_301 + "}", "4300 digits"),
        ("csv", "1,2,3", "3 fields, where the header has 2"),
        ("csv", '1,"never closed', "quotes opened in line 2,002 are never closed"),
        ("csv", "1,caf\udce9", "not UTF-8"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_by_its_line(tmp_path, kind, wrong, reason):
    rows = {"jsonl": ['{"text": "fine"}'] * GOOD, "csv": ["n,text", *["1,fine"] * (GOOD - 1)]}[kind]
    path = tmp_path / f"tales.{kind}"
    path.write_text("\n".join([*rows, wrong, rows[-1]]), errors="surrogateescape")
    with pytest.raises(ValueError, match="line 2,002") as refusal:
        texts_of(f"{kind}:{path}#text")
    assert reason in str(refusal.value) and str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_utf16_tables_are_refused(tmp_path):
    for kind, content in (("jsonl", '{"text": "one"}\n'), ("csv", "text\none\n")):
        for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
            path = tmp_path / f"tales.{kind}"
            path.write_bytes(content.encode(encoding))
            with pytest.raises(ValueError, match="UTF-16"):
                texts_of(f"{kind}:{path}")


def test_pandas_agrees_on_missing_values(tmp_path):
    content = 'n,text\n1,one\n2\n3,\n4,"NA"\n'
    path = tmp_path / "tales.csv"
    path.write_text(content)
    frame = pandas.read_csv(io.StringIO(content), dtype=str, keep_default_na=False)
    assert texts_of(f"csv:{path}#text") == ["" if pandas.isna(text) else text for text in frame["text"]]


@pytest.mark.parametrize("dtype", ["category", "string", "object"])
def test_parquet_of_pandas_is_text_however_it_stores_it(tmp_path, dtype):
    path = tmp_path / "tales.parquet"
    pandas.DataFrame({"n": 1, "text": pandas.Series(["One.", "Two.", "One."], dtype=dtype)}).to_parquet(path)
    assert texts_of(f"parquet:{path}#text") == pandas.read_parquet(path)["text"].tolist()


def test_parquet_views_of_strings_are_text(tmp_path):
    path = tmp_path / "tales.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"text": pyarrow.array(["One.", None], pyarrow.string_view())}), path
    )
    assert texts_of(f"parquet:{path}") == ["One.", ""]
