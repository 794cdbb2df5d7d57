"""The texts of one column of JSON lines, CSV and Parquet files, row by row.

    jsonl     an object on each line, or one array of objects; read by Python's json
    csv       a header, commas, double quotes; read by Python's csv: every value is text, nothing is converted
    parquet   read by Arrow

Only the requested column matters: others may hold anything. A missing value is an empty document. A value that is
not text is left out and counted, and a warning names the first such row.
"""

import csv
import io
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from common.files import not_utf8
from common.textfiles import TextFile, text_files
from data.splitting import Segment, split_long

if TYPE_CHECKING:
    import pyarrow

ROWS = 1000  # rows that are read at a time, and looked at to find the column
NOT_TEXT = "not text"  # why a document is left out
KINDS = {
    str: "text",
    type(None): "null",
    bool: "bool",
    int: "int64",
    float: "double",
    list: "list",
    dict: "struct",
}
WRONG_BYTE = re.compile("[\udc80-\udcff]")  # as "surrogateescape" decodes it
END_OF_FILE = "\0end of file"  # a line after the last: inside quotes, it ends up in a field

Row = tuple[int, Mapping[str, Any]]  # the line of the file where a row begins, its values by column


class ColumnError(ValueError):
    """The requested column is missing or holds no text."""


class Warnings:
    """What went wrong in single rows: how often, and where first."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._count: Counter[str] = Counter()

    def add(self, problem: str, place: str) -> None:
        """Count a problem; `place` is kept if it is the first of its kind."""
        self._first.setdefault(problem, place)
        self._count[problem] += 1

    def clear(self) -> None:
        """Forget everything, before a file is read again."""
        self._first.clear()
        self._count.clear()

    def lines(self) -> list[str]:
        """Return a line for each kind of problem.

        >>> warnings = Warnings()
        >>> warnings.add("holds a number", "a.csv: line 2"), warnings.add("holds a number", "a.csv: line 4")
        (None, None)
        >>> warnings.lines()
        ['a.csv: line 2 holds a number (the first of 2)']
        """
        each = ((place, problem, self._count[problem]) for problem, place in self._first.items())
        return [f"{place} {what}" + (f" (the first of {n:,})" if n > 1 else "") for place, what, n in each]


def table_segments(kind: str, path: str, column: str | None, warnings: Warnings) -> Iterator[Segment]:
    """Yield the texts of one column of a file; ValueError names the line that cannot be read."""
    if kind == "parquet":
        yield from _parquet_segments(path, column)
        return
    read = {"jsonl": json_rows, "csv": csv_rows}[kind]
    for file in text_files(path):
        kind_of = _csv_kind if kind == "csv" else _kind
        name = find_column(f"{kind}:{file.name}", (row for _, row in read(file)), column, kind_of)
        for line, row in read(file):
            yield from _segments(row.get(name), name, f"{file.name}: line {line:,}", warnings)


def _segments(value: Any, column: str, place: str, warnings: Warnings) -> list[Segment]:
    """Return the document that a value is."""
    if value is None:
        return [Segment(b"")]
    if not isinstance(value, str):
        warnings.add(f"holds {_kind(value)}, not text, in column {column!r}", place)
        return [Segment(b"", fault=NOT_TEXT)]
    try:
        return split_long(value.encode())
    except UnicodeEncodeError:
        warnings.add("holds half of a surrogate pair, which is replaced by U+FFFD", place)
        return split_long(value.encode(errors="surrogatepass"))


def _lines(file: TextFile, newline: str) -> Iterator[str]:
    """Yield the lines of a file with their ends; ValueError names the first that is not UTF-8."""
    with file.open() as stream:
        try:
            yield from io.TextIOWrapper(stream, "utf-8-sig", newline=newline)
        except UnicodeDecodeError as error:
            raise ValueError(_wrong_line(file, newline)) from error


def _wrong_line(file: TextFile, newline: str) -> str:
    """Return the message for a file that is not UTF-8: read again, slowly, to find the line."""
    with file.open() as stream:
        lines = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline)
        number, wrong = next(
            (i, found) for i, line in enumerate(lines, 1) if (found := WRONG_BYTE.search(line))
        )
    reason = f"byte 0x{ord(wrong[0]) - 0xDC00:02x} in column {wrong.start() + 1}"
    return not_utf8(f"{file.name}: line {number:,}", reason)


def json_rows(file: TextFile) -> Iterator[Row]:
    """Yield the objects of JSON lines, or of one JSON array."""
    lines = _lines(file, "\n")
    for number, line in enumerate(lines, start=1):
        if number == 1 and line.lstrip().startswith("["):
            for row in _parsed(file, number, "".join([line, *lines])):
                yield number, _object(file, number, row)
        elif line.strip():
            yield number, _object(file, number, _parsed(file, number, line.rstrip("\r\n")))


def _parsed(file: TextFile, line: int, text: str) -> Any:
    """Return the value of JSON that begins in this line; a ValueError names the line that cannot be read."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line, reason = line + error.lineno - 1, f"{error.msg} in column {error.colno}"
    except (ValueError, RecursionError) as error:  # an integer of too many digits, too many brackets
        reason = str(error)
    raise ValueError(f"{file.name} cannot be read as jsonl: line {line:,}: {reason}")


def _object(file: TextFile, line: int, row: Any) -> Mapping[str, Any]:
    if isinstance(row, dict):
        return row
    raise ValueError(f"{file.name} cannot be read as jsonl: line {line:,} holds {_kind(row)}, not an object")


def csv_rows(file: TextFile) -> Iterator[Row]:
    """Yield the rows of a CSV file by the names in its first line; a row may hold fewer values than that."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(itertools.chain(_lines(file, ""), [END_OF_FILE]))
    header: list[str] = []
    line, before = 1, 0  # the first line of the row, and the lines before the next one
    try:
        for row in reader:
            line, before = before + 1, reader.line_num
            if row and row[-1].endswith(END_OF_FILE):
                _check_closed(file, line, row)
            elif not header:
                header = [_distinct(name, row[:i]) for i, name in enumerate(row)]
            elif len(row) > len(header):
                raise csv.Error(f"{len(row)} fields, where the header has {len(header)}")
            elif row:
                yield line, dict(zip(header, row, strict=False))
    except csv.Error as error:
        raise ValueError(f"{file.name} cannot be read as csv: line {line:,}: {error}") from error


def _check_closed(file: TextFile, line: int, row: list[str]) -> None:
    if row != [END_OF_FILE]:
        raise ValueError(
            f"{file.name} cannot be read as csv: the quotes opened in line {line:,} are never closed"
        )


def _distinct(name: str, before: list[str]) -> str:
    """Number the second and later columns of one name, as pandas does."""
    return f"{name}.{before.count(name)}" if name in before else name


def find_column(
    where: str, rows: Iterable[Mapping[str, Any]], column: str | None, kind_of: Callable[[Any], str]
) -> str:
    """Return the column to read: `column`, else "text", else the only one that holds text.

    Rows are read until the column holds text, so that one which begins with other values is not refused.
    """
    kinds: dict[str, str] = {}
    for number, row in enumerate(rows):
        for name, value in row.items():
            if kinds.get(name, "null") in ("null", "int64", "double"):
                kinds[name] = kind_of(value)
        wanted = column or ("text" if "text" in kinds else None)
        if kinds.get(wanted) == "text":
            return wanted
        if wanted is None and number >= ROWS:
            break
    return pick_column(where, kinds, column) if kinds else column or "text"  # no rows: nothing to read


def _kind(value: Any) -> str:
    return KINDS.get(type(value), "other")


def _csv_kind(value: str) -> str:
    """Return what a field looks like; a column of numbers alone is hardly the text.

    >>> [_csv_kind(value) for value in ("", "12", "1e3", "one")]
    ['null', 'int64', 'double', 'text']
    """
    for kind, read in (("int64", int), ("double", float)):
        try:
            read(value)
        except ValueError:
            continue
        return kind
    return "text" if value else "null"


def pick_column(where: str, kinds: Mapping[str, str], column: str | None) -> str:
    """Return the column to read, given what each holds; ColumnError names those that hold text."""
    texts = [name for name, kind in kinds.items() if kind == "text"]
    if column is None:
        column = "text" if "text" in texts else texts[0] if len(texts) == 1 else None
    if column in texts or kinds.get(column) == "null":
        return column
    if not texts:
        raise ColumnError(f"{where} has no column with text, only {', '.join(kinds)}: use another file")
    if column is None:
        problem = "has several columns that could be the text"
    elif column not in kinds:
        problem = f"has no column {column!r}"
    else:
        problem = f"holds {kinds[column]}, not text, in column {column!r}"
    raise ColumnError(f"{where} {problem}: name one of {', '.join(texts)} after a #")


def _parquet_segments(path: str, column: str | None) -> Iterator[Segment]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"parquet: needs the library pyarrow ({error}): pip install pyarrow") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            name = pick_column(f"parquet:{path}", column_kinds(file.schema_arrow), column)
            for batch in file.iter_batches(ROWS, columns=[name]):
                yield from arrow_segments(batch.column(0))
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise ValueError(f"{path} cannot be read as parquet: {error}") from error


def column_kinds(schema: "pyarrow.Schema") -> dict[str, str]:
    """Return what each column of an Arrow schema holds."""
    import pyarrow as pa

    def kind(type_: "pyarrow.DataType") -> str:
        values = type_.value_type if pa.types.is_dictionary(type_) else type_  # such as a category of pandas
        texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
        return "text" if any(is_text(values) for is_text in texts) else str(type_)

    return {field.name: kind(field.type) for field in schema}


def arrow_segments(column: "pyarrow.Array | pyarrow.ChunkedArray") -> Iterator[Segment]:
    """Yield the texts of an Arrow column, which may hold bytes that are not UTF-8."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    for text in column.cast(pa.large_binary()).to_pylist():
        yield from split_long(text or b"")
