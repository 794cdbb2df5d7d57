"""The fast cuts never change a pre-token, whatever the text and wherever it is cut."""

import itertools
import sys

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from bpe.piecetable import PADDING, WHITE_LEADS, find_cuts
from bpe.pretokenize import PATTERNS, Pattern, blocks, cut_pieces, forced_cut, last_cut, split_special
from tests.bpe.peers import NASTY

LETTERS = [
    " ",
    "\t",
    "\n",
    "\r",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\x1c",
    "\x85",
    "a",
    "B",
    "é",
    "中",
    "1",
    ".",
    "/",
    "'s",
    "“",
    "\x00",
]
texts = st.lists(st.sampled_from([*LETTERS, " ", " ", "\n"]) | st.sampled_from(NASTY), max_size=30).map(
    "".join
)
EVERYTHING = "".join(map(chr, range(sys.maxunicode + 1)))
SPECIAL = ("<|end|>", "<| a b |>", "<|")


def whole(name: str, text: str) -> list[str]:
    """Return the oracle: the pattern over the whole text."""
    return regex.findall(PATTERNS[name], text)


def by_pieces(pattern: Pattern, pieces: list[str]) -> list[str]:
    *inner, last = pieces
    return [token for piece in inner for token in pattern.split_inner(piece)] + pattern.split(last)


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=250, deadline=None)
@given(text=texts)
def test_cutting_at_spaces_changes_nothing(name, text):
    pattern = Pattern.of(name)
    first, *rest = cut_pieces(text)
    assert by_pieces(pattern, [first, *(" " + piece for piece in rest)]) == whole(name, text)


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=250, deadline=None)
@given(text=texts)
def test_cutting_at_the_spaces_of_the_table_changes_nothing(name, text):
    encoded = text.encode()
    cuts = [0, *find_cuts(np.frombuffer(encoded + PADDING, np.uint8)).tolist(), len(encoded)]
    pieces = [encoded[start:end].decode() for start, end in itertools.pairwise(cuts)]
    assert by_pieces(Pattern.of(name), pieces) == whole(name, text)


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=150, deadline=None)
@given(chunks=st.lists(texts, max_size=6), size=st.integers(1, 20))
def test_blocks_change_nothing(name, chunks, size):
    parts = list(blocks(chunks, (), size))
    assert "".join(parts) == "".join(chunks)
    assert [token for part in parts for token in whole(name, part)] == whole(name, "".join(chunks))


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(texts | st.sampled_from([*SPECIAL, "|", "<", " a b |>", "|end|>"]), max_size=8),
    size=st.integers(1, 20),
)
def test_blocks_leave_special_tokens_whole(parts, size):
    split = [split_special(block, SPECIAL) for block in blocks(parts, SPECIAL, size)]
    found = [(token, len("".join(part[:i]))) for part in split for i, token in enumerate(part) if i % 2]
    expected = split_special("".join(parts), SPECIAL)[1::2]
    assert [token for token, _ in found] == expected


def test_every_white_space_character_keeps_its_space():
    assert {character.encode()[0] for character in EVERYTHING if character.isspace()} <= set(WHITE_LEADS)


def test_white_space_of_re_holds_that_of_regex():
    assert all(character.isspace() for character in regex.findall(r"\s", EVERYTHING))


def test_cl100k_needs_its_inner_pattern():
    """The one pattern that sees the end of a text: a piece before a cut must not see it."""
    pattern = Pattern.of("cl100k")
    assert pattern.split("a\n\t") == ["a", "\n\t"]
    assert pattern.split_inner("a\n\t") == ["a", "\n", "\t"] == whole("cl100k", "a\n\t b")[:3]


def test_the_longest_special_token_wins():
    assert split_special("<a><a>b", ["<a>", "<a><a>"]) == ["", "<a><a>", "b"]
    assert split_special("x<a>b", ["a>b", "<a>"]) == ["x", "<a>", "b"]
    assert split_special("no token", ["<a>"]) == ["no token"]


def test_no_cut_where_a_special_token_may_still_end():
    assert last_cut("one two three <| a", SPECIAL) == len("one two")
    assert last_cut("one two three <| a b |> x", SPECIAL) == len("one two three")
    assert last_cut("onetwothree") == 0
    assert forced_cut("aaaa<| a b |>", ["<| a b |>"]) == 4


def test_an_own_pattern_loses_nothing():
    assert Pattern.of(r"\d+").split("a1b22c") == ["a", "1", "b", "22", "c"]
    assert Pattern.of(r"(a)|b*").split("xaby") == ["x", "a", "b", "y"]


def test_an_own_pattern_must_be_a_regular_expression():
    with pytest.raises(ValueError, match=r"neither one of gpt2, .* nor a regular expression"):
        Pattern.of("(")


def test_a_text_without_a_cut_is_not_searched_again_and_again():
    chunks = ["a" * 1000] * 1000
    assert list(blocks(chunks, (), 1000)) == ["a" * 1_000_000]
