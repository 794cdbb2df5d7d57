"""A token file that does not fit its meta is refused with the reason."""

import json

import numpy as np
import pytest

from data.tokenfile import TokenFile, read_meta


@pytest.fixture
def folder(tmp_path, write_tokens):
    return write_tokens(tmp_path / "corpus", np.arange(5000) % 1000)


def change_meta(folder, **changes):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **changes}))


def test_what_was_written_is_what_is_read(folder):
    file = TokenFile.open(folder, "train")
    assert isinstance(file.tokens, np.memmap) and file.tokens.dtype == np.uint16
    assert file.tokens.tolist() == (np.arange(5000) % 1000).tolist()
    assert len(file) == 5000 and file.vocab_size == 1000 and file.meta == read_meta(folder)


def test_a_large_vocabulary_takes_four_bytes(tmp_path, write_tokens):
    tokens = np.array([0, 65_536, 99_999])
    file = TokenFile.open(write_tokens(tmp_path, tokens, vocab_size=100_000), "train")
    assert file.tokens.dtype == np.uint32 and file.tokens.tolist() == tokens.tolist()


def damage(kind, folder):
    """Damage a folder; return the words that its refusal must have."""
    path = folder / "train.bin"
    whole = path.read_bytes()
    if kind == "odd":
        path.write_bytes(whole[:-1])
        return "9999 bytes, which is not a whole number of uint16"
    if kind == "truncated":
        path.write_bytes(whole[:-2])
        return "holds 4999 tokens but meta.json says 5000: it is cut short"
    if kind == "foreign":
        path.write_bytes(whole * 2)
        return "holds 10000 tokens but meta.json says 5000: it is another file"
    if kind == "beyond":
        path.write_bytes(whole[:200] + np.uint16(1000).tobytes() + whole[202:])
        return "holds the id 1000 at token 100, beyond the vocabulary of 1000"
    if kind == "empty":
        path.write_bytes(b"")
        change_meta(folder, tokens={"train": 0, "val": 1})
        return "is empty"
    if kind == "tokenizer":
        (folder / "tokenizer.json").write_text('{"another": 1}')
        return "is not the tokenizer that made these token files"
    if kind == "version":
        change_meta(folder, format_version=99)
        return "format version 99"
    if kind == "dtype":
        change_meta(folder, dtype="float32")
        return "dtype 'float32'"
    if kind == "not json":
        (folder / "meta.json").write_text("{")
        return "not valid JSON"
    (folder / "meta.json").write_text("[1]")
    return "does not describe token files"


KINDS = (
    "odd",
    "truncated",
    "foreign",
    "beyond",
    "empty",
    "tokenizer",
    "version",
    "dtype",
    "not json",
    "no meta",
)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused_with_the_reason(folder, kind):
    reason = damage(kind, folder)
    with pytest.raises(ValueError) as refusal:
        TokenFile.open(folder, "train")
    assert reason in str(refusal.value) and str(folder) in str(refusal.value)


@pytest.mark.parametrize("name", ["meta.json", "train.bin", "tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        TokenFile.open(folder, "train")


def test_an_unknown_split_names_those_there_are(folder):
    with pytest.raises(ValueError, match="no split 'test': it has train, val"):
        TokenFile.open(folder, "test")


def test_an_id_in_the_last_of_many_chunks_is_found(folder, monkeypatch):
    monkeypatch.setattr("data.tokenfile.CHUNK", 64)
    path = folder / "train.bin"
    path.write_bytes(path.read_bytes()[:-2] + np.uint16(1001).tobytes())
    with pytest.raises(ValueError, match="the id 1001 at token 4999"):
        TokenFile.open(folder, "train")


def test_bytes_per_token(folder):
    change_meta(folder, bytes={"train": 20_000, "val": 3})
    assert read_meta(folder).bytes_per_token("train") == 4.0
