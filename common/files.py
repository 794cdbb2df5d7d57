"""Atomic files, written under a temporary name in the same directory, flushed and renamed; and reading UTF-8 text."""

import codecs
import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

ZEROS = 100  # a file in which 1 byte in 100 or more is zero is UTF-16 or binary
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@contextlib.contextmanager
def atomic(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file for writing and rename it onto `path` if the block ends without an error.

    On an error nothing is left behind and an older file at `path` is kept. A symbolic link remains one: its target is
    replaced. A path that is not a regular file, such as /dev/null or a pipe, is written to directly.
    """
    path = Path(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        with open(path, mode, **text) as file:
            yield file
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(aside, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with atomic(path, "w") as file:
        file.write(text)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path: str | Path) -> str:
    """Read a UTF-8 file, line ends as \\n; raise a ValueError that names it if it is not UTF-8 text."""
    data = Path(path).read_bytes()
    check_start(str(path), data)
    try:
        return data.decode().replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(str(path), error.reason)) from error


def read_json(path: str | Path) -> Any:
    """Read a JSON file; raise a ValueError that names it if it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): make it again or restore it") from error


def check_start(name: str, start: bytes) -> None:
    """Raise ValueError if a text that starts with these bytes is UTF-16 or a binary file."""
    if start.startswith(UTF16):
        raise ValueError(f"{name} is not UTF-8 but UTF-16: convert it with iconv -f UTF-16 -t UTF-8")
    if start.count(0) * ZEROS >= max(len(start), 1):
        raise ValueError(
            f"{name} is not text: byte {start.index(0):,} is 0; if it is UTF-16 without a byte order mark, "
            f"convert it with iconv -f UTF-16LE -t UTF-8"
        )


def not_utf8(name: str, reason: str) -> str:
    """Return the message for a text that is not UTF-8."""
    return f"{name} is not UTF-8 ({reason}): convert it, for example with iconv"


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty directory that replaces `path` if the block ends without an error.

    Between the two renames the older directory is at `.NAME.old`, where `whole_directory` finds it.
    """
    path = Path(path)
    aside, old = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(path, old)
        os.rename(aside, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def whole_directory(path: str | Path) -> Path:
    """Return the newest complete version of a directory written by `atomic_directory`."""
    path = Path(path)
    old = path.with_name(f".{path.name}.old")
    return old if old.is_dir() and not path.is_dir() else path
