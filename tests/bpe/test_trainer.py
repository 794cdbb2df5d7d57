"""The incremental trainer learns what basics/bpe.py learns, however the corpus is counted."""

import gzip
import logging
import random
from collections import Counter
from pathlib import Path

import pytest
import regex
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

import bpe.counting
from basics import bpe as basics
from bpe import Tokenizer, train
from bpe.counting import PieceCounts, count_pretokens, drop_rarest
from bpe.pretokenize import PATTERNS, Pattern
from bpe.trainer import learn_merges
from data.stories import corpus as stories

words = (
    st.text("ab", max_size=12)
    | st.text("abcé ", max_size=8)
    | st.binary(max_size=5).map(lambda b: b.decode("latin-1"))
)


@settings(max_examples=300, deadline=None)
@given(
    counts=st.dictionaries(words.map(str.encode), st.integers(1, 4), max_size=12), n_merges=st.integers(0, 40)
)
def test_merges_equal_the_trainer_of_basics(counts, n_merges):
    merges = learn_merges(counts, n_merges)
    assert merges == basics.train(counts, n_merges)
    assert len({left + right for left, right in merges}) == len(merges)  # no token is made twice


def test_merges_of_stories_equal_the_trainer_of_basics():
    text = "".join(stories(30_000))
    counts = Counter(token.encode() for token in regex.findall(PATTERNS["gpt2"], text))
    assert learn_merges(counts, 200) == basics.train(counts, 200)


def test_the_worked_example():
    """The tables of docs/bpe.md."""
    merges = learn_merges({b" tea": 4, b" meat": 3, b" team": 2, b" steam": 1}, 6)
    assert [left + right for left, right in merges] == [b"ea", b"tea", b" tea", b"mea", b"meat", b" meat"]
    assert Tokenizer(merges).encode(" meat steams tea") == [261, 32, 115, 257, 109, 115, 258]


def test_of_equal_pairs_the_greatest_is_merged():
    assert learn_merges({b"ab": 1, b"cd": 1, b"ca": 1}, 1) == [(b"c", b"d")]
    assert learn_merges({b"ab\xff": 1}, 1) == [(b"b", b"\xff")]
    # "aa" against its prefix "a": the longer one is greater
    assert learn_merges({b"aab": 2, b"ab": 2, b"aa": 5}, 2) == [(b"a", b"a"), (b"aa", b"b")]


HARD = (
    "The cat.\n\nA dog <|end|>  x\u3000 y\t\n é 中文字 naïve\r\n<|end|>\n  'tis I'LL 123 4567 😀😀 a/\n/b .\n.\n "
    * 30
)


@pytest.mark.parametrize("name", PATTERNS)
def test_counts_do_not_depend_on_the_blocks(name, tmp_path):
    path = tmp_path / "text"
    path.write_text(HARD, encoding="utf-8", newline="")
    parts = HARD.split("<|end|>")
    expected = Counter(token.encode() for part in parts for token in regex.findall(PATTERNS[name], part))
    for block in (100, 101, 102, 333, 1000, 1 << 22):
        for source in (path, [HARD]):
            assert count_pretokens(source, Pattern.of(name), ["<|end|>"], block=block) == expected


def test_a_special_token_with_spaces_is_not_cut_by_blocks(tmp_path):
    text = "a b<| x y |>c d" * 200
    (tmp_path / "text").write_text(text)
    expected = count_pretokens(text.split("<| x y |>"), Pattern.of("gpt2"))
    for block in range(60, 90):
        assert count_pretokens(tmp_path / "text", Pattern.of("gpt2"), ["<| x y |>"], block=block) == expected


def test_characters_of_several_bytes_are_counted_the_same_in_any_blocks(tmp_path):
    choose = random.Random(0)
    path = tmp_path / "bytes"
    codes = [*range(1, 256), 0x20, 0x20, 0x41, 0x0A, 0x4E2D, 0x1F600]
    path.write_text("".join(map(chr, choose.choices(codes, k=20_000))), encoding="utf-8", newline="")
    whole = count_pretokens(path, Pattern.of("gpt2"))
    assert count_pretokens(path, Pattern.of("gpt2"), block=777) == whole


def test_the_number_of_workers_changes_nothing(tmp_path):
    text = "".join(stories(200_000))
    (tmp_path / "text").write_text(text)
    alone = train(tmp_path / "text", 400, num_workers=1, progress=False)
    assert train(tmp_path / "text", 400, num_workers=2, progress=False).merges == alone.merges
    assert train([text], 400, num_workers=2, progress=False).merges == alone.merges


def test_several_files_and_max_bytes(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(f"{name}{name} word")
    merges = train([tmp_path / "a", tmp_path / "b"], 259, special_tokens=(), progress=False).merges
    assert merges[0] == (b"w", b"o")
    only_a = train([tmp_path / "a", tmp_path / "b"], 257, special_tokens=(), max_bytes=2, progress=False)
    assert only_a.merges == [(b"a", b"a")]
    assert train(["aa", "bb bb"], 257, special_tokens=(), max_bytes=2, progress=False).merges == [
        (b"a", b"a")
    ]


def test_token_counts_equal_those_of_hugging_face(tmp_path):
    """Its rule for ties differs, so merges may; the number of tokens must not by more than 0.1 %."""
    text = "".join(stories(400_000))
    path = tmp_path / "text"
    path.write_text(text)
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)
    theirs.train([str(path)], trainer)
    ours = train(path, 1000, special_tokens=(), progress=False)
    tokens = len(theirs.encode(text).ids)
    assert abs(len(ours.encode(text)) - tokens) <= 0.001 * tokens


# Hostile corpora


def test_the_rarest_pieces_are_dropped_when_there_are_too_many(monkeypatch, caplog):
    monkeypatch.setattr(bpe.counting, "MAX_PIECES", 1000)
    texts = (f" frequent w{i} frequent w{i + 1}x" for i in range(0, 20_000, 2))
    counts = count_pretokens(texts, Pattern.of("gpt2"), block=10_000)
    assert len(counts) < 3000
    assert counts[b" frequent"] == 20_000
    assert "rare pieces were dropped" in caplog.text


def test_dropping_does_not_depend_on_workers(monkeypatch):
    monkeypatch.setattr(bpe.counting, "MAX_PIECES", 1000)
    texts = [f" w{i * i % 3001} w{i}" for i in range(6000)]
    alone = count_pretokens(texts, Pattern.of("gpt2"), block=5000, num_workers=1)
    assert count_pretokens(texts, Pattern.of("gpt2"), block=5000, num_workers=2) == alone


def test_drop_rarest_keeps_to_both_bounds():
    counts = Counter({f"word{i}": 1 + i // 10 for i in range(100)})
    assert drop_rarest(counts, 25, 10_000) == 75
    assert set(counts) == {f"word{i}" for i in [*range(70, 75), *range(80, 100)]}
    assert drop_rarest(counts, 25, 60) == 15
    assert drop_rarest(counts, 25, 60) == 0


def test_one_giant_line_without_a_space_is_cut_with_a_notice(tmp_path, caplog):
    path = tmp_path / "line"
    path.write_text("ab" * 500_000)
    counts = count_pretokens(path, Pattern.of("gpt2"), block=100_000)
    assert max(map(len, counts)) <= bpe.counting.LONGEST_WORD
    assert sum(len(word) * count for word, count in counts.items()) == 1_000_000
    assert "no place to cut" in caplog.text
    assert (
        sum(
            len(w) * c
            for w, c in count_pretokens(["ab" * 500_000], Pattern.of("gpt2"), block=100_000).items()
        )
        == 1_000_000
    )


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_byte_order_mark_is_no_text(tmp_path, compress):
    path = tmp_path / "text"
    path.write_bytes(compress("\ufeffone \ufefftwo".encode()))
    assert count_pretokens(path, Pattern.of("gpt2")) == dict.fromkeys([b"one", " \ufeff".encode(), b"two"], 1)
    path.write_bytes(compress(b"\xef\xbb\xbfab\xff"))
    with pytest.raises(ValueError, match="byte 5"):
        count_pretokens(path, Pattern.of("gpt2"))


def test_random_bytes_can_be_learnt_from():
    text = random.Random(0).randbytes(300_000).decode("utf-8", "replace")
    assert train([text], 300, progress=False).vocab_size == 300


# Mistakes


@pytest.mark.parametrize("source", [[], [""], ["", ""]])
def test_an_empty_corpus_is_refused(source):
    with pytest.raises(ValueError, match="the corpus is empty"):
        train(source, 300, progress=False)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="the corpus is empty"):
        train(tmp_path / "empty", 300, progress=False)


def test_a_vocabulary_smaller_than_its_bytes_is_refused():
    with pytest.raises(ValueError, match="at least 257"):
        train(["text"], 256, progress=False)


def test_a_small_corpus_stops_early_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        tokenizer = train(["abab"], 1000, special_tokens=(), progress=False)
    assert tokenizer.merges == [(b"a", b"b"), (b"ab", b"ab")]
    assert "no pair is left after 2 merges, so there are 258 ids" in caplog.text


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (Path("/nowhere/text"), "is not a file"),
        ("/nowhere/text", "is not a file"),
        ([Path("/nowhere/text")], "is not a file"),
    ],
)
def test_a_missing_file_is_named(source, error):
    with pytest.raises(FileNotFoundError, match=error):
        train(source, 300, progress=False)


def test_other_mistakes_are_named():
    with pytest.raises(ValueError, match="holds bytes, not str"):
        train([b"text"], 300, progress=False)
    with pytest.raises(ValueError, match="num_workers is 0"):
        train(["text"], 300, num_workers=0, progress=False)
    with pytest.raises(ValueError, match="max_bytes is 0"):
        train(["text"], 300, max_bytes=0, progress=False)
    with pytest.raises(ValueError, match="give a list or a tuple"):
        train(["text"], 300, special_tokens="<s>", progress=False)
    with pytest.raises(ValueError, match="holds a name twice"):
        train(["text"], 300, special_tokens=("<s>", "<s>"), progress=False)


def test_special_tokens_are_not_learnt_from():
    tokenizer = train(["a<s>a<s>a<s>"], 259, special_tokens=("<s>",), progress=False)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.merges == []


def test_very_long_words_are_counted_in_slices():
    counts = PieceCounts()
    counts.add_text("x" * 10_000, Pattern.of("gpt2"))
    assert counts.pretokens(Pattern.of("gpt2")) == {b"x" * 4096: 2, b"x" * 1808: 1}


@pytest.mark.parametrize("name", ["", "a", "Ġ", "\ud800"])
def test_a_special_token_that_cannot_be_saved_is_refused_before_anything_is_read(name):
    def texts():
        raise AssertionError("the corpus was read")
        yield ""

    with pytest.raises(
        ValueError, match=r"a special token is the empty string|the special token .* another name"
    ):
        train(texts(), 300, special_tokens=[name], progress=False)
