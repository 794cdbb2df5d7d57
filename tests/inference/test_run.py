"""Which tokenizer belongs to weights: Hugging Face's ids say if two tokenizers are the same."""

import pytest
import tokenizers

from bpe import Tokenizer
from inference.run import same_tokenizer

MERGES = [(b"a", b"b"), (b"ab", b"a")]
END = ["<|endoftext|>"]
PLAIN = Tokenizer(MERGES, END)
TEXT = "aba <x>ab e\u0301 A<|endoftext|>"
OTHERS = {
    "NFC": Tokenizer(MERGES, END, nfc=True),
    "merges in another order": Tokenizer([(b"b", b"a"), (b"a", b"ba")], END),
    "another pattern": Tokenizer(MERGES, END, pattern="regex:[a-z]"),
    "an added token": Tokenizer(MERGES, END, added_tokens={"<x>": 259}),
    "a special token": PLAIN.with_special_tokens(["<x>"]),
}


def saved(tokenizer: Tokenizer, folder) -> list[int]:
    """Save a tokenizer; return the ids that Hugging Face's reader of the file gives."""
    folder.mkdir()
    tokenizer.save(folder / "tokenizer.json")
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids


@pytest.mark.parametrize("name", OTHERS)
def test_tokenizers_that_give_other_ids_are_told_apart(tmp_path, name):
    assert saved(PLAIN, tmp_path / "plain") != saved(OTHERS[name], tmp_path / "other")
    assert not same_tokenizer(tmp_path / "plain", tmp_path / "other")


def test_the_same_tokenizer_in_other_files_is_recognised(tmp_path):
    saved(PLAIN, tmp_path / "plain")
    (tmp_path / "gpt2").mkdir()
    PLAIN.save_gpt2(tmp_path / "gpt2")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "plain" / "tokenizer.json"))
    (tmp_path / "theirs").mkdir()
    theirs.save(str(tmp_path / "theirs" / "tokenizer.json"))
    assert same_tokenizer(tmp_path / "plain", tmp_path / "gpt2")
    assert same_tokenizer(tmp_path / "theirs", tmp_path / "plain")
