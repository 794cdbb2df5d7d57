"""python -m data, as a user types it."""

import bz2
import gzip
import json
import lzma
from itertools import islice

import pytest

from data.__main__ import main
from data.stories import stories
from data.tokenfile import TokenFile, read_meta


def test_prepare_says_what_was_made(tmp_path, capsys):
    main(["prepare", "--stories-bytes", "50000", "--vocab-size", "300", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    meta = read_meta(tmp_path)
    assert meta.vocab_size == 300 and meta.source == ["stories"]
    for split in ("train", "val"):
        assert f"{split}.bin: {meta.tokens[split]:,} tokens, {meta.documents[split]:,} documents" in printed


def test_a_small_text_file_needs_no_other_option(tmp_path):
    path = tmp_path / "play.txt"
    speeches = [f"Citizen {i}:\nWe are resolved, {i} times.\nSpeak, speak.\n\n" for i in range(4000)]
    path.write_text("".join(speeches))
    main(["prepare", "--source", f"text:{path}", "--vocab-size", "300", "--out", str(tmp_path / "out")])
    meta = read_meta(tmp_path / "out")
    for split in ("train", "val"):  # one text, of which passages are set aside
        ids = TokenFile.open(tmp_path / "out", split).tokens
        assert meta.documents[split] == (ids == meta.end_of_text).sum() > 0
    assert 0.1 <= meta.bytes["val"] / sum(meta.bytes.values()) < 0.2
    assert sum(meta.bytes.values()) == len(path.read_text().rstrip())


def test_a_repeated_source_is_read_as_well(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} tells tale {i}." for i in range(50)))
    words = ["--source", f"text:{tmp_path}/a.txt", "--source", f"text:{tmp_path}/b.txt"]
    words += ["--split-documents", "line", "--vocab-size", "270", "--out", str(tmp_path / "out")]
    main(["prepare", *words])
    assert sum(read_meta(tmp_path / "out").documents.values()) == 100


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv"])
@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_input_that_was_cut_is_one_line(tmp_path, refused, kind, compress):
    path = tmp_path / "tales"
    path.write_bytes(compress(b'{"text": "one tale"}\n' * 20_000)[:-20])
    out = tmp_path / "out"
    said = refused(main, "prepare", "--source", f"{kind}:{path}", "--vocab-size", "270", "--out", str(out))
    assert f"{path} is damaged or cut short: " in said and " at byte " in said
    assert not out.exists()


def test_odd_rows_are_named_on_the_screen_and_counted(tmp_path, capsys):
    path = tmp_path / "tales.jsonl"
    path.write_text("".join(json.dumps({"text": i if i % 9 == 4 else f"tale {i}"}) + "\n" for i in range(90)))
    main(["prepare", "--source", f"jsonl:{path}", "--vocab-size", "270", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    place = f"warning: {path}: line 5 holds int64, not text, in column 'text' (the first of 10)"
    assert place in printed.err and "removed: 10 documents (not text)" in printed.out
    assert read_meta(tmp_path / "out").removed == {"not text": 10}


def test_stories_are_printed_and_checked(tmp_path, capsys):
    main(["stories", "--seed", "4", "--count", "2"])
    printed = capsys.readouterr().out
    told = list(islice(stories(4), 2))
    assert [part.strip() for part in printed.split("<|endoftext|>")][:2] == told
    (tmp_path / "told.txt").write_text(f"{printed}<|endoftext|>He saw he qwerty.<|endoftext|>")
    main(["stories", "--check", str(tmp_path / "told.txt")])
    checked = capsys.readouterr().out
    assert "story 3: " in checked and "2 of 3 stories are coherent" in checked


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "say what to do: python -m data web | prepare | info | stories"),
        (["prepaire"], "say what to do"),
        (["prepare", "--vocab-size", "300", "--out", "{}/x", "--source", "text:{}/none"], "matches no file"),
        (
            ["prepare", "--vocab-size", "10", "--out", "{}/x", "--stories-bytes", "999"],
            "256 bytes and 1 special",
        ),
        (["prepare", "--out", "{}/x"], "either --vocab-size N"),
        (["prepare", "--out", "{}/x", "--vocab-size", "300", "--val-fraction", "0"], "must be above 0"),
        (["prepare", "--out", "{}/x", "--vocab-size", "257", "--special-tokens", "pad"], "at least 258"),
        (["prepare", "--out", "{}/x", "--vocab-size", "300", "--special-tokens", "pad", "pad"], "twice"),
        (["prepare", "--tokenizer", "{}/no.json", "--out", "{}/x"], "no.json"),
        (["prepare", "--vocab-size", "300", "--out", "{}/file"], "file"),
        (["stories", "--count", "0"], "--count must be at least 1"),
        (["stories", "--seed", "-1"], "seed"),
        (["stories", "--check", "{}/none"], "none"),
        (["stories", "--check", "{}/file"], "is empty"),
        (["stories", "--check", "{}/utf16"], "is not text: byte 1 is 0"),
        (
            ["prepare", "--out", "{}/x", "--vocab-size", "300", "--source", "text:{}/utf16"],
            "is not text: byte 1 is 0",
        ),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, refused, argv, reason):
    (tmp_path / "file").touch()
    (tmp_path / "utf16").write_bytes("Once upon a time.".encode("utf-16-le"))
    assert reason in refused(main, *(word.replace("{}", str(tmp_path)) for word in argv))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "utf16"]


def test_help_explains_every_command(capsys):
    main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"  {name}" in printed for name in ("prepare", "info", "stories"))
