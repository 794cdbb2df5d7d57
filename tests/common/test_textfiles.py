"""Text files are read as the standard library wrote them; what is damaged or not text is one line with the place."""

import bz2
import glob
import gzip
import io
import lzma
import zipfile

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import textfiles
from common.textfiles import TextFile, glob_matches, text_files

TEXT = "".join(f"Zeile {i}: naïve “café” 🙂\n" for i in range(3000))


def compress(kind, data):
    """The bytes as another program compresses them."""
    if kind in ("gzip", "bzip2", "xz"):
        return {"gzip": gzip, "bzip2": bz2, "xz": lzma}[kind].compress(data)
    if kind == "zstd":
        sink = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()
    box = io.BytesIO()
    with zipfile.ZipFile(box, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b.txt", data)
        archive.writestr("a/a.txt", b"first by name")
        archive.writestr("a/", b"")
    return box.getvalue()


def read(path):
    return ["".join(file.blocks()) for file in text_files(path)]


KINDS = ("gzip", "bzip2", "xz", "zip", "zstd")


@pytest.mark.parametrize("kind", KINDS)
def test_compressed_text_is_read_whatever_its_name(tmp_path, kind):
    path = tmp_path / "text.dat"
    path.write_bytes(compress(kind, TEXT.encode()))
    assert read(path) == (["first by name", TEXT] if kind == "zip" else [TEXT])


@given(st.text("a\r\né🙂\ufeff", max_size=40), st.integers(1, 9))
def test_blocks_join_to_what_the_standard_library_reads(tmp_path_factory, text, block):
    path = tmp_path_factory.getbasetemp() / "blocks.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(textfiles, "BLOCK", block)
        assert "".join(TextFile(str(path)).blocks()) == path.read_text("utf-8-sig")  # universal newlines


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["cut", "cut by a byte", "flipped"])
def test_damaged_data_names_file_and_place(tmp_path, kind, damage):
    whole = compress(kind, TEXT.encode())
    half = len(whole) // 2
    if damage == "flipped":
        if kind == "zstd":  # Arrow writes no checksum: the flip must break the format itself
            half = 4
        whole = whole[:half] + bytes([whole[half] ^ 0xFF]) + whole[half + 1 :]
    path = tmp_path / "text.dat"
    path.write_bytes(whole[:half] if damage == "cut" else whole[:-1] if damage == "cut by a byte" else whole)
    with pytest.raises(
        ValueError, match=r"text\.dat.* (is damaged or cut short: .* at |is not UTF-8 .* at byte)"
    ):
        read(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("text", ["Once upon a time.", "Жили были дед и баба.", "昔々、あるところに"])
def test_utf16_is_refused_with_and_without_its_mark(tmp_path, encoding, text):
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=r"text\.txt is not (UTF-8|text)"):
        read(path)
    path.write_bytes(gzip.compress(text.encode(encoding)))
    with pytest.raises(ValueError, match=r"text\.txt is not (UTF-8|text)"):
        read(path)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("block", [5, 1 << 20])
def test_the_place_of_a_wrong_byte_is_that_of_the_file(tmp_path, monkeypatch, block, mark):
    monkeypatch.setattr(textfiles, "BLOCK", block)
    path, good = tmp_path / "text.txt", f"{mark}é€🙂 and more, "
    path.write_bytes(good.encode() + b"caf\xe9 au lait")
    with pytest.raises(ValueError, match=rf"not UTF-8 \(.* at byte {len(good.encode()) + 3}\)"):
        read(path)


def test_memory_does_not_grow_with_a_line(tmp_path):
    path = tmp_path / "line.txt"
    path.write_bytes(b"word " * 1_000_000)
    assert max(map(len, TextFile(str(path)).blocks())) <= textfiles.BLOCK


NAMES = st.sampled_from(["a", "b.txt", ".hidden", "c[1].txt"])
PATTERNS = st.sampled_from(["a", "*", "**", "*.txt", "?", "c[[]1].txt", ".*"])


@given(st.lists(NAMES, min_size=1, max_size=3), st.lists(PATTERNS, min_size=1, max_size=3))
def test_what_a_pattern_would_find_is_what_glob_finds(tmp_path_factory, names, patterns):
    folder = tmp_path_factory.mktemp("glob")
    path = folder.joinpath(*names)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    pattern = str(folder.joinpath(*patterns))
    assert glob_matches(pattern, path) == (str(path) in glob.glob(pattern, recursive=True))
