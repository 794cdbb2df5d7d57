"""python -m bpe: files and pipes, and mistakes in one line."""

import inspect
import io
import subprocess
import sys
from pathlib import Path

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
    assert "<script>" in capsys.readouterr().out
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
    source = inspect.getsource(COMMANDS[command][0]).splitlines()
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
