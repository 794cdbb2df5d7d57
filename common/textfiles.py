"""Text files, plain or compressed (gzip, bzip2, xz, zip, zstd), in blocks: memory does not grow with a line or a file.

    for file in text_files("books.zip"):     # one for each member; a file that is no archive is one text
        for block in file.blocks(): ...      # str, about a megabyte each
        with file.open() as stream: ...      # or its bytes, decompressed

What is not UTF-8 text (UTF-16, binary files, damaged archives) is a ValueError that names the file and the position.
The compression is recognized by a file's first bytes, not by its name.
"""

import codecs
import contextlib
import dataclasses
import fnmatch
import glob
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from common.files import check_start, not_utf8

BLOCK = 1 << 20  # bytes that are read at a time

MAGIC = {  # first bytes -> compression
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",  # an archive without members
    b"\x28\xb5\x2f\xfd": "zstd",
}
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError, OSError)


@dataclasses.dataclass(frozen=True)
class TextFile:
    """One text: a file, or a member of a zip archive."""

    path: str
    member: str = ""

    @property
    def name(self) -> str:
        """Return the path, with the member's name if there is one."""
        return f"{self.path} ({self.member})" if self.member else self.path

    def open(self) -> io.BufferedReader:
        """Open the decompressed bytes for reading; ValueError if their beginning is not text."""
        source, compression = _decompressed(self)
        stream = io.BufferedReader(_Checked(source, self.name, compression), BLOCK)
        try:
            check_start(self.name, stream.peek(BLOCK))
        except ValueError:
            stream.close()
            raise
        return stream

    def blocks(self) -> Iterator[str]:
        """Yield the text, about a megabyte at a time; line ends become \\n, a byte order mark is left out."""
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        position = 0
        with self.open() as stream:
            for block in iter(lambda: stream.read(BLOCK), b""):
                position += len(block)
                yield newlines.decode(self._decode(decoder, block, position))
        yield newlines.decode(self._decode(decoder, b"", position, final=True), final=True)

    def _decode(self, decoder: codecs.IncrementalDecoder, block: bytes, end: int, final: bool = False) -> str:
        """Decode a block that ends at byte `end` of the text."""
        try:
            return decoder.decode(block, final)
        except UnicodeDecodeError as error:
            position = end - len(error.object) + error.start
            raise ValueError(not_utf8(self.name, f"{error.reason} at byte {position:,}")) from error


def text_files(path: str | os.PathLike) -> list[TextFile]:
    """Return the texts of a file: the members of a zip archive in the order of their names, else the file itself."""
    path = os.fspath(path)
    if _compression(path) != "zip":
        return [TextFile(path)]
    with _explained(path, "zip", "its directory"), zipfile.ZipFile(path) as archive:
        return [
            TextFile(path, name) for name in sorted(archive.namelist()) if archive.getinfo(name).file_size
        ]


def matching_files(pattern: str) -> list[str]:
    """Return the files that match a glob pattern (** matches all folders below), sorted by name."""
    return sorted(path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path))


def glob_matches(pattern: str, path: str | os.PathLike) -> bool:
    """True if `matching_files(pattern)` would find a file at `path`, which need not exist.

    >>> glob_matches("books/**/*.txt", "books/a/b.txt"), glob_matches("books/*", "books/a/b.txt")
    (True, False)
    """
    return _parts_match(_parts(pattern), _parts(path))


def _parts(path: str | os.PathLike) -> tuple[str, ...]:
    return tuple(os.path.abspath(path).split(os.sep))


def _parts_match(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    if not pattern or not path:
        return pattern == path
    first, *rest = pattern
    if pattern == ("**",):
        return not any(part.startswith(".") for part in path)
    if first == "**" and _parts_match(tuple(rest), path):
        return True
    if path[0].startswith(".") > first.startswith("."):  # a wildcard finds no hidden files
        return False
    if first == "**":
        return _parts_match(pattern, path[1:])
    return fnmatch.fnmatchcase(path[0], first) and _parts_match(tuple(rest), path[1:])


class _Checked(io.RawIOBase):
    """A stream whose decompression errors name the file and the position."""

    def __init__(self, source: IO[bytes], name: str, compression: str) -> None:
        self._source, self._name, self._compression = source, name, compression
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _explained(self._name, self._compression, f"byte {self._position:,} of its text"):
            data = self._source.read(len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._source.close()
        super().close()


@contextlib.contextmanager
def _explained(name: str, compression: str, place: str) -> Iterator[None]:
    """Turn the errors of the decompressing libraries into a ValueError; the system's own errors pass."""
    try:
        yield
    except DAMAGED as error:
        if not compression or getattr(error, "errno", None):
            raise
        raise ValueError(
            f"{name} is damaged or cut short: {compression} data cannot be read at {place} ({error})"
        ) from error


def _compression(path: str) -> str:
    with open(path, "rb") as file:
        start = file.read(6)
    return next((name for magic, name in MAGIC.items() if start.startswith(magic)), "")


def _decompressed(file: TextFile) -> tuple[IO[bytes], str]:
    """Return the decompressed stream of a file, and the name of the compression or ""."""
    import bz2
    import gzip

    compression = _compression(file.path)
    if compression == "zip":
        with _explained(file.name, "zip", "its directory"), zipfile.ZipFile(file.path) as archive:
            return archive.open(file.member), compression
    if compression == "zstd":
        return _open_zstd(file.path), compression
    opener = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open, "": open}[compression]
    return opener(file.path, "rb"), compression


def _open_zstd(path: str) -> IO[bytes]:
    """Open with Arrow, which unlike other libraries notices a stream that was cut short."""
    try:
        import pyarrow
    except ImportError as error:
        raise ValueError(
            f"{path} is zstd, which needs the library pyarrow ({error}): pip install pyarrow"
        ) from error
    return pyarrow.CompressedInputStream(pyarrow.OSFile(path), "zstd")
