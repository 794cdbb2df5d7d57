"""python -m bpe: files and pipes, and mistakes in one line."""

import bz2
import gzip
import inspect
import io
import lzma
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bpe import Tokenizer
from bpe.__main__ import COMMANDS, main
from data.stories import corpus as stories

TEXT = "Hello  world\r\n\n 😀 naïve <|endoftext|>\n"


@pytest.fixture
def trained(tmp_path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text("".join(stories(20_000)))
    main(["train", "--input", str(path), "--vocab-size", "400", "--out", str(tmp_path / "tokenizer.json")])
    return tmp_path


def test_train_says_what_was_made(trained, capsys):
    out = str(trained / "tokenizer.json")
    main(["train", "--input", str(trained / "stories.txt"), "--vocab-size", "400", "--out", out])
    assert capsys.readouterr().out == f"{trained}/tokenizer.json: 400 ids, 143 of them merges\n"
    assert Tokenizer.load(trained / "tokenizer.json").special_tokens == {"<|endoftext|>": 399}


def test_files_are_encoded_and_decoded(trained):
    (trained / "text").write_bytes(TEXT.encode())
    tokenizer = str(trained / "tokenizer.json")
    main(["encode", str(trained / "text"), "--tokenizer", tokenizer, "--out", str(trained / "ids")])
    ids = list(map(int, (trained / "ids").read_text().split()))
    assert ids == Tokenizer.load(tokenizer).encode(TEXT)
    main(["decode", str(trained / "ids"), "--tokenizer", str(trained), "--out", str(trained / "back")])
    assert (trained / "back").read_bytes() == TEXT.encode()
    main(
        [
            "encode",
            str(trained / "text"),
            "--tokenizer",
            tokenizer,
            "--allow-special",
            "--out",
            str(trained / "ids"),
        ]
    )
    assert "399" in (trained / "ids").read_text().split()


def test_pipes(trained):
    tokenizer = str(trained / "tokenizer.json")
    command = [sys.executable, "-m", "bpe"]
    encode = subprocess.run(
        [*command, "encode", "--tokenizer", tokenizer], input=TEXT.encode(), capture_output=True
    )
    decode = subprocess.run(
        [*command, "decode", "--tokenizer", tokenizer], input=encode.stdout, capture_output=True
    )
    assert decode.stdout == TEXT.encode()


def test_ids_may_be_cut_between_reads(trained, monkeypatch):
    monkeypatch.setattr("bpe.__main__.BLOCK", 2)
    (trained / "ids").write_text(" 104\n101 108 108 111")
    main(["decode", str(trained / "ids"), "--tokenizer", str(trained), "--out", str(trained / "back")])
    assert (trained / "back").read_text() == "hello"


def test_compare_prints_every_scheme(trained, capsys):
    main(["compare", str(trained / "stories.txt"), "--vocab-size", "400"])
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("byte", "character", "word", "trained", "GPT-2's", "unknown"))


def test_view_takes_a_text_or_a_file(trained, capsys):
    tokenizer = str(trained / "tokenizer.json")
    main(["view", "<script>", "--tokenizer", tokenizer])
    assert "<script>" in capsys.readouterr().out.replace("│", "")
    main(
        [
            "view",
            str(trained / "stories.txt"),
            "--tokenizer",
            tokenizer,
            "gpt2",
            "--html",
            str(trained / "page.html"),
        ]
    )
    assert (trained / "page.html").read_text().count("<section>") == 2


def test_view_reads_so_many_bytes_and_no_half_character(tmp_path, capsys):
    (tmp_path / "text").write_bytes("ééé".encode())
    main(["view", str(tmp_path / "text"), "--max-bytes", "5"])
    assert "2 characters, 4 bytes" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out.lower()
    classes = [kind for kind in COMMANDS[command][0].__mro__ if kind is not object]
    source = [line for kind in classes for line in inspect.getsource(kind).splitlines()]
    for name in COMMANDS[command][0].__dataclass_fields__:
        assert name.replace("_", "-") in shown
        line = next(number for number, line in enumerate(source) if line.strip().startswith(f"{name}:"))
        assert source[line + 1].strip().startswith('"""')


def test_help_lists_the_commands(capsys):
    main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in COMMANDS)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "say what to do: python -m bpe train"),
        (["unknown"], "say what to do"),
        (["train"], "required"),
        (["train", "--input", "/nowhere/a", "--vocab-size", "300"], "/nowhere/a is not a file"),
        (["train", "--input", "README", "--vocab-size", "many"], "vocab-size"),
        (["encode", "/nowhere/a"], "/nowhere/a: No such file"),
        (["decode", "--tokenizer", "/nowhere/a"], "/nowhere/a: No such file"),
        (["compare", "/nowhere/a"], "/nowhere/a: No such file"),
        (["compare", "README.md", "--max-bytes", "-1"], "max_bytes is -1"),
        (["view", "text", "--tokenizer", "/nowhere/a"], "/nowhere/a: No such file"),
        (["view", "text", "--rows", "-3"], "rows is -3"),
    ],
)
def test_mistakes_are_one_line(words, error, refused):
    assert error in refused(main, *words)


@pytest.mark.parametrize(
    ("ids", "error"), [("1 x", "'x' is no token id"), ("1 -1", "'-1'"), ("999999", "id 999999")]
)
def test_wrong_ids_leave_no_file(ids, error, trained, refused):
    (trained / "ids").write_text(ids)
    out = trained / "out"
    assert error in refused(
        main, "decode", str(trained / "ids"), "--tokenizer", str(trained), "--out", str(out)
    )
    assert not out.exists()


def test_bytes_that_are_no_utf8_become_replacement_characters(trained, monkeypatch, capfd):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xffb")))
    main(["encode", "--tokenizer", str(trained), "--out", str(trained / "ids")])
    ids = map(int, (trained / "ids").read_text().split())
    assert Tokenizer.load(trained / "tokenizer.json").decode(ids) == "a\ufffdb"


# Where text comes from


@pytest.fixture
def story(tmp_path) -> Path:
    """Return a folder with the same text as one file, as two files, and compressed."""
    text = ("".join(stories(30_000)) + "naïve 日本語 \r\n\r\n").encode()
    half = text.index(b"\n\n", len(text) // 2) + 2
    (tmp_path / "whole.txt").write_bytes(text)
    for folder, name, data in (
        ("two", "a.txt", text[:half]),
        ("two", "b.txt", text[half:]),
        ("mixed", "a.txt.gz", gzip.compress(text[:half])),
        ("mixed", "deep/b.txt", text[half:]),
        ("mixed", ".hidden", b"not \0 text"),
        ("packed", "text.gz", gzip.compress(text)),
        ("packed", "text.bz2", bz2.compress(text)),
        ("packed", "text.xz", lzma.compress(text)),
    ):
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(data)
    return tmp_path


def learnt(folder: Path, *words: str) -> list[tuple[bytes, bytes]]:
    out = folder / "learnt.json"
    main(["train", *words, "--vocab-size", "500", "--out", str(out)])
    return Tokenizer.load(out).merges


@pytest.mark.parametrize(
    "source",
    ["packed/text.gz", "packed/text.bz2", "packed/text.xz", "two", "mixed", "two/*.txt", "**/[ab].txt"],
)
def test_train_learns_the_same_from_the_text_in_any_form(story, source):
    expected = learnt(story, "--input", str(story / "whole.txt"))
    if source == "**/[ab].txt":
        (story / "mixed" / "deep" / "b.txt").unlink()
    assert learnt(story, "--input", str(story / source)) == expected


@pytest.mark.parametrize("size", [None, 5000])
def test_train_learns_the_same_from_standard_input(story, size, monkeypatch):
    limit = ["--max-bytes", str(size)] if size else []
    text = (story / "whole.txt").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
    monkeypatch.setattr("bpe.counting.BLOCK", 1000)  # so that characters and words are cut between reads
    expected = learnt(story, "--input", str(story / "whole.txt"), *limit)
    assert learnt(story, "--input", "-", *limit) == expected
    assert learnt(story, "--input", str(story / "packed/text.gz"), *limit) == expected


BAD = {
    "cut.gz": (gzip.compress(TEXT.encode() * 1000)[:-30], "is damaged or cut short"),
    "utf16": (TEXT.encode("utf-16"), "is not UTF-8 but UTF-16"),
    "utf16le": (TEXT.encode("utf-16-le"), "byte 1 is 0; if it is UTF-16 without a byte order mark"),
    "latin1": (
        b"a " * 100 + "naïve".encode("latin-1"),
        "is not UTF-8 (invalid continuation byte at byte 202)",
    ),
    "latin1.gz": (
        gzip.compress(b"a " * 100 + b"\xefve"),
        "is not UTF-8 (invalid continuation byte at byte 200)",
    ),
    "binary": (bytes(range(64)) * 10, "is not text: byte 0 is 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_train_refuses_what_is_not_text(name, tmp_path, refused):
    data, error = BAD[name]
    path = tmp_path / name
    path.write_bytes(data)
    out = tmp_path / "tokenizer.json"
    shown = refused(main, "train", "--input", str(path), "--vocab-size", "260", "--out", str(out))
    assert error in shown
    assert str(path) in shown
    assert not out.exists()


def test_train_refuses_bad_standard_input(tmp_path, refused, monkeypatch):
    out = str(tmp_path / "tokenizer.json")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode("utf-16-le"))))
    assert "standard input is not text" in refused(
        main, "train", "--input", "-", "--vocab-size", "260", "--out", out
    )
    shown = refused(main, "train", "--input", "-", str(tmp_path), "--vocab-size", "260", "--out", out)
    assert "give no other input with it" in shown


def test_encode_and_view_refuse_utf16_without_a_mark(trained, refused):
    path = trained / "utf16"
    path.write_bytes(TEXT.encode("utf-16-le"))
    for words in (
        ["encode", str(path), "--tokenizer", str(trained)],
        ["view", str(path), "--tokenizer", str(trained)],
    ):
        assert f"{path} is not text" in refused(main, *words)


def test_a_folder_without_files_is_named(tmp_path, refused):
    (tmp_path / "empty").mkdir()
    for source, error in (
        ("empty", "holds no file"),
        ("*.none", "matches no file"),
        ("nothing", "is not a file"),
    ):
        shown = refused(main, "train", "--input", str(tmp_path / source), "--vocab-size", "260")
        assert f"{source} {error}" in shown


# Arrays and special tokens


@pytest.mark.parametrize("text", ["", TEXT * 50])
@pytest.mark.parametrize("name", ["ids.npy", "IDS.NPY"])
def test_ids_are_written_as_an_array_and_read_from_one(trained, text, name):
    (trained / "text").write_bytes(text.encode())
    out = trained / name
    main(["encode", str(trained / "text"), "--tokenizer", str(trained), "--out", str(out)])
    ids = np.load(out)
    assert ids.dtype == np.uint16
    assert ids.tolist() == Tokenizer.load(trained).encode(text)
    main(["decode", str(out), "--tokenizer", str(trained), "--out", str(trained / "back")])
    assert (trained / "back").read_bytes() == text.encode()


@pytest.mark.parametrize("ids", [[[1, 2]], [0.5]])
def test_an_array_of_something_else_is_refused(trained, refused, ids):
    np.save(trained / "ids.npy", ids)
    complaint = refused(main, "decode", str(trained / "ids.npy"), "--tokenizer", str(trained))
    assert "give whole numbers in one" in complaint


@pytest.mark.parametrize("source", ["two/a.txt", "two", "two/*", "**/*.txt"])
def test_the_input_is_not_overwritten(tmp_path, refused, source):
    text = tmp_path / "two" / "a.txt"
    text.parent.mkdir()
    text.write_text("some text")
    words = ["--input", str(tmp_path / source), "--vocab-size", "258", "--out", str(text)]
    assert "is a file of --input" in refused(main, "train", *words)
    assert text.read_text() == "some text"


def test_special_tokens_are_added_and_skipped(trained, capfdbinary):
    out = str(trained / "chat.json")
    words = ["add", str(trained), "--special-tokens", "<|user|>", "<|end|>", "--end-of-text", "<|end|>"]
    main([*words, "--out", out])
    tokenizer = Tokenizer.load(out)
    assert (tokenizer.special_tokens["<|user|>"], tokenizer.end_of_text) == (400, "<|end|>")
    (trained / "ids").write_text("400 104 105 401")
    capfdbinary.readouterr()
    main(["decode", str(trained / "ids"), "--tokenizer", out, "--skip-special"])
    assert capfdbinary.readouterr().out == b"hi"


def test_train_chooses_the_end_of_text(story, refused):
    words = ["--input", str(story / "two"), "--special-tokens", "<|user|>", "<|end|>", "--end-of-text"]
    learnt(story, *words, "<|end|>")
    assert Tokenizer.load(story / "learnt.json").end_of_text == "<|end|>"
    out = story / "none.json"
    assert "end_of_text is 'x'" in refused(
        main, "train", *words, "x", "--vocab-size", "300", "--out", str(out)
    )
    assert not out.exists()
