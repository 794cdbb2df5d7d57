"""A tokenizer turns text into ids and back, and keeps its promises about special tokens and streams."""

import json

import numpy as np
import pytest

from bpe import Tokenizer, train

TEXT = "The cat sat on the mat. The cat's hat, 12 3456 times!\n\n  Ünïcödé 😀 日本語\t\r\n end "


@pytest.fixture(scope="module")
def tokenizer():
    return train([TEXT] * 3, 300, special_tokens=("<|endoftext|>", "<|a b|>"), progress=False)


def test_decode_gives_the_text_back(tokenizer):
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_special_tokens_are_text_unless_allowed(tokenizer):
    text = "a<|a b|>b<|endoftext|>"
    ids = tokenizer.encode(text, allowed_special="all")
    assert ids == [ord("a"), 299, ord("b"), 298]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert 299 not in tokenizer.encode(text, allowed_special={"<|endoftext|>"})


def test_stream_equals_the_whole(tokenizer):
    chunks = [TEXT[i : i + 2] for i in range(0, len(TEXT), 2)]
    assert list(tokenizer.encode_iterable(chunks)) == tokenizer.encode(TEXT)
    assert "".join(tokenizer.decode_stream(tokenizer.encode(TEXT))) == TEXT


def test_numpy_and_batch_equal_encode(tokenizer):
    array = tokenizer.encode_to_numpy(TEXT)
    assert array.dtype == np.uint16
    assert array.tolist() == tokenizer.encode(TEXT)
    assert tokenizer.encode_batch([TEXT, ""]) == [tokenizer.encode(TEXT), []]


def test_unknown_id_is_named(tokenizer):
    with pytest.raises(ValueError, match="id 999 at position 1"):
        tokenizer.decode([1, 999])


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.vocab, loaded.merges, loaded.special_tokens) == (
        tokenizer.vocab,
        tokenizer.merges,
        tokenizer.special_tokens,
    )
    assert loaded.encode(TEXT, "all") == tokenizer.encode(TEXT, "all")
    json.loads((tmp_path / "tokenizer.json").read_text())
