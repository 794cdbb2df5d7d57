"""python -m data, as a user types it."""

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
        ([], "say what to do: python -m data prepare | info | stories"),
        (["prepaire"], "say what to do"),
        (["prepare", "--vocab-size", "300", "--out", "{}/x", "--source", "text:{}/none"], "matches no file"),
        (
            ["prepare", "--vocab-size", "10", "--out", "{}/x", "--stories-bytes", "999"],
            "256 bytes and 1 special",
        ),
        (["prepare", "--out", "{}/x"], "either --vocab-size N"),
        (["prepare", "--tokenizer", "{}/no.json", "--out", "{}/x"], "no.json"),
        (["prepare", "--vocab-size", "300", "--out", "{}/file"], "file"),
        (["stories", "--count", "0"], "--count must be at least 1"),
        (["stories", "--seed", "-1"], "seed"),
        (["stories", "--check", "{}/none"], "none"),
        (["stories", "--check", "{}/file"], "is empty"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, refused, argv, reason):
    (tmp_path / "file").touch()
    assert reason in refused(main, *(word.replace("{}", str(tmp_path)) for word in argv))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_help_explains_every_command(capsys):
    main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"  {name}" in printed for name in ("prepare", "info", "stories"))
