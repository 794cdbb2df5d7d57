"""The schemes that BPE is compared with, and the comparison."""

import pytest

from bpe.compare import ByteTokenizer, CharTokenizer, WordTokenizer, compare, measure
from data.stories import corpus as stories

TEXT = "The dog's ball, naïve 😀\n\tThe end."


@pytest.mark.parametrize(
    "make", [ByteTokenizer, lambda: CharTokenizer.train(TEXT), lambda: WordTokenizer.train(TEXT)]
)
def test_known_text_comes_back(make):
    scheme = make()
    ids = scheme.encode(TEXT)
    assert scheme.decode(ids) == TEXT
    assert 0 <= min(ids) <= max(ids) < scheme.vocab_size


def test_words_are_kept_whole():
    scheme = WordTokenizer.train(TEXT)
    pieces = [scheme.decode([id]) for id in scheme.encode(TEXT)]
    assert pieces[:6] == ["The", " ", "dog's", " ", "ball", ","]


def test_only_words_and_characters_can_be_unknown():
    assert CharTokenizer.train("ab").encode("abc") == [1, 2, 0]
    assert WordTokenizer.train("a b").decode(WordTokenizer.train("a b").encode("a c")) == "a <unk>"
    assert WordTokenizer.train("b a a a", vocab_size=3).units == ["<unk>", " ", "a"]
    assert ByteTokenizer().decode([0xC3]) == "\ufffd"


def test_what_is_measured_is_true():
    row = measure("character", CharTokenizer.train("ab\n"), "ab\nabé\n")
    assert (row.tokens, row.longest, row.vocab_size) == (7, 4, 4)
    assert row.bytes_per_token == 8 / 7
    assert row.unknown_share == 1 / 7
    assert row.example == "a|b|⏎"


def test_bpe_has_the_shortest_sequences_without_unknowns():
    rows = {row.name: row for row in compare("".join(stories(60_000)), 1000)}
    trained = rows["BPE, trained here"]
    assert trained.vocab_size == 1000
    assert trained.unknown_share == rows["byte"].unknown_share == 0
    assert trained.tokens < rows["word"].tokens < rows["character"].tokens <= rows["byte"].tokens
    assert rows["BPE, GPT-2's"].vocab_size == 50257


def test_a_text_too_short_to_compare_is_refused():
    with pytest.raises(ValueError, match="too short to be compared"):
        compare("a", 300)
