"""Files and directories are whole or not there."""

import os
import threading

import pytest

from common import files


def test_a_file_is_replaced_only_when_the_block_ends_well(tmp_path):
    path = tmp_path / "sub" / "file.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError, match="half way"), files.atomic(path, "w") as file:
        file.write("new")
        raise RuntimeError("half way")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_text_is_utf8_with_its_own_line_ends(tmp_path):
    files.write_text(tmp_path / "t", "é\r\n\n")
    assert (tmp_path / "t").read_bytes() == b"\xc3\xa9\r\n\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of POSIX")
def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    """Like /dev/null, which a rename would turn into a file for everyone."""
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    with files.atomic(pipe, "w") as file:
        assert [p.name for p in tmp_path.iterdir()] == ["pipe"]
        file.write("through")
    reader.join(10)
    assert read == ["through"]
    assert pipe.is_fifo()


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "file.txt")
    for text in ("first", "second"):
        files.write_text(link, text)
        assert (tmp_path / "disk" / "file.txt").read_text() == text
    assert link.is_symlink()
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["file.txt"]


def test_a_directory_in_the_way_is_named(tmp_path):
    with pytest.raises(IsADirectoryError) as error:
        files.write_text(tmp_path, "text")
    assert error.value.filename == str(tmp_path)


def test_text_that_is_no_utf8_is_named(tmp_path):
    (tmp_path / "t").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"t is not UTF-8 \(unexpected end of data\): convert it"):
        files.read_text(tmp_path / "t")


def test_json_comes_back_and_damage_is_named(tmp_path):
    files.write_json(tmp_path / "a.json", {"é": [1, None]})
    assert files.read_json(tmp_path / "a.json") == {"é": [1, None]}
    for damage in (b'{"a": \xff', b"[" * 100_000):
        (tmp_path / "b.json").write_bytes(damage)
        with pytest.raises(ValueError, match=r"b\.json is not valid JSON"):
            files.read_json(tmp_path / "b.json")


def test_a_directory_is_exchanged_as_a_whole(tmp_path):
    target = tmp_path / "best"
    for text in ("first", "second"):
        with files.atomic_directory(target) as aside:
            (aside / "weights").write_text(text)
    assert (target / "weights").read_text() == "second"
    with pytest.raises(RuntimeError), files.atomic_directory(target) as aside:
        (aside / "weights").write_text("third")
        raise RuntimeError
    assert (target / "weights").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_between_the_two_renames_the_old_directory_is_found(tmp_path):
    with files.atomic_directory(tmp_path / "best") as aside:
        (aside / "weights").write_text("old")
    (tmp_path / "best").rename(tmp_path / ".best.old")
    assert (files.whole_directory(tmp_path / "best") / "weights").read_text() == "old"
    with files.atomic_directory(tmp_path / "best") as aside:
        (aside / "weights").write_text("new")
    assert (files.whole_directory(tmp_path / "best") / "weights").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["best"]
