"""A tokenizer turns text into ids and back, and keeps its promises about special tokens, streams and memory."""

import copy
import pickle
import random
import re
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import bpe.tokenizer
from basics import bpe as basics
from bpe import Tokenizer, piecetable, train
from bpe.merging import BatchMerger, _merge_long, merge
from data.stories import corpus as stories
from tests.bpe.peers import NASTY

TEXT = "The cat sat on the mat. The cat's hat, 12 3456 times!\n\n  Ünïcödé 😀 日本語\t\r\n end "


@pytest.fixture(scope="module")
def tokenizer():
    return train([TEXT] * 3, 300, special_tokens=("<|endoftext|>", "<|a b|>"), progress=False)


def test_ids_are_bytes_then_merges_then_special_tokens(tokenizer):
    assert [tokenizer.vocab[id] for id in range(256)] == [bytes([byte]) for byte in range(256)]
    assert [tokenizer.vocab[id] for id in range(256, 298)] == [a + b for a, b in tokenizer.merges]
    assert tokenizer.special_tokens == {"<|endoftext|>": 298, "<|a b|>": 299}
    assert tokenizer.vocab[299] == b"<|a b|>"
    assert tokenizer.vocab_size == len(tokenizer.vocab) == 300


@settings(max_examples=200, deadline=None)
@given(text=st.lists(st.sampled_from(NASTY) | st.text(), max_size=20).map("".join))
def test_decode_gives_the_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert "".join(tokenizer.decode_stream(tokenizer.encode(text))) == text


def test_special_tokens_are_text_unless_allowed(tokenizer):
    text = "a<|a b|>b<|endoftext|>"
    assert tokenizer.encode(text, allowed_special="all") == [ord("a"), 299, ord("b"), 298]
    assert 299 not in tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    assert tokenizer.encode(text, "<|endoftext|>") == tokenizer.encode(text, ["<|endoftext|>"])
    assert max(tokenizer.encode(text)) < 298
    assert tokenizer.decode(tokenizer.encode(text, "all")) == text


def test_an_unknown_special_token_is_named(tokenizer):
    with pytest.raises(
        ValueError, match=r"'<x>' is not a special token of this tokenizer: it has '<\|endoftext"
    ):
        tokenizer.encode("text", {"<x>"})


@settings(max_examples=200, deadline=None)
@example(parts=[" w", " w<s>x", " w", " w"])
@given(
    parts=st.lists(st.sampled_from(["ab", "aba", "b a", " a", "<s>", "a", " ", "\n", "word"]), max_size=30)
)
def test_special_tokens_that_overlap_in_a_long_text(parts):
    """The table of pieces gives what cutting the special tokens out first gives."""
    special = ["aba", "ab", "b a", "<s>", " a"]
    tokenizer, text = Tokenizer([(b"w", b"o"), (b"\n", b" "), (b" ", b" ")], special), "".join(parts)
    expected = []
    for i, part in enumerate(re.split(r"(aba|b a|<s>|ab| a)", text)):
        expected += [tokenizer.special_tokens[part]] if i % 2 else tokenizer.encode(part)
    with mock.patch.multiple(bpe.tokenizer, WORTH_ARRAYS=0):
        for allowed in ("all", (), "all"):  # what one call remembers is not taken for the other's
            ids = tokenizer.encode(text, allowed)
            assert ids == expected if allowed else tokenizer.decode(ids) == text and max(ids, default=0) < 259


def test_numpy_has_the_smallest_type(tokenizer):
    array = tokenizer.encode_to_numpy(TEXT)
    assert array.dtype == np.uint16
    assert array.tolist() == tokenizer.encode(TEXT)
    array[0] = 0  # it belongs to the caller
    large = Tokenizer([], {"<end>": 70_000})
    assert large.encode_to_numpy("a<end>", "all").dtype == np.uint32
    assert large.encode("a<end>", "all") == [97, 70_000]


def test_empty_text(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.encode_to_numpy("").shape == (0,)
    assert tokenizer.decode([]) == ""
    assert list(tokenizer.encode_iterable([])) == list(tokenizer.encode_iterable(["", ""])) == []


@pytest.mark.parametrize("num_workers", [None, 1, 2])
def test_batch_equals_encode(tokenizer, num_workers):
    texts = [TEXT, "", "a<|a b|>", *stories(50_000)]
    expected = [tokenizer.encode(text, "all") for text in texts]
    assert tokenizer.encode_batch(texts, num_workers, "all") == expected
    arrays = list(tokenizer.encode_batch_to_numpy(iter(texts), num_workers, "all"))
    assert [array.tolist() for array in arrays] == expected


def test_long_text_equals_short_text(tokenizer):
    """Above some length the table of pieces is used; pieces of it that collide, are long or have many tokens too."""
    choose = random.Random(0)
    text = " ".join("".join(choose.choices("abcdeT.\n  é", k=choose.randrange(1, 25))) for _ in range(30_000))
    ids = tokenizer.encode(text)
    assert ids == tokenizer.encode(text)  # now from the table
    for _ in range(3):
        start = choose.randrange(len(text) - 1000)
        part = text[start : start + 1000]
        assert tokenizer.encode(part * 5) == [
            int(id) for id in copy.copy(tokenizer).encode_iterable([part] * 5)
        ]
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(copy.copy(tokenizer).encode(text))


def test_pieces_that_share_a_slot_take_turns(tokenizer, monkeypatch):
    monkeypatch.setattr("bpe.piecetable.SLOT_BITS", 1)
    crowded = copy.copy(tokenizer)
    text = "".join(stories(20_000))
    assert crowded.encode(text) == tokenizer.encode(text)


def test_null_characters_are_not_taken_for_the_end_of_a_piece(tokenizer):
    words = [
        "a",
        "a\0",
        "a\0\0",
        "\0",
        "\0a",
        "abcdefg\0",
        "abcdefg",
        "abcdefgh\0",
        "abcdefgh",
        "abcdefghijklmno",
    ]
    text = " " + " ".join(words * 200)
    assert tokenizer.encode(text) == tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_unknown_ids_are_named(tokenizer):
    with pytest.raises(ValueError, match="id 999 at position 1 is not in the vocabulary"):
        tokenizer.decode([1, 999])
    with pytest.raises(ValueError, match="id -1 at position 0"):
        tokenizer.decode_bytes(np.array([-1]))
    with pytest.raises(ValueError, match="id 300"):
        list(tokenizer.decode_stream([300]))


def test_decoding_bytes_that_are_no_utf8(tokenizer):
    assert tokenizer.decode([0xC3]) == "\ufffd"
    assert tokenizer.decode([0xC3], errors="ignore") == ""
    with pytest.raises(UnicodeDecodeError):
        tokenizer.decode([0xC3], errors="strict")


def test_a_stream_never_gives_half_a_character(tokenizer):
    ids = list("é😀日a".encode())
    assert list(tokenizer.decode_stream(iter(ids))) == ["é", "😀", "日", "a"]
    assert list(tokenizer.decode_stream(ids[:1])) == ["\ufffd"]


def test_an_own_pattern_sees_the_whole_text():
    tokenizer = Tokenizer([(b"b", b" ")], pattern=r"a.*b |.")
    text = "a " * 2000 + "b c"
    assert tokenizer.encode(text)[-3:] == [98, 256, 99] or tokenizer.encode(text)[-2:] == [256, 99]
    assert list(tokenizer.encode_iterable(["a x", "b ", "c"])) == tokenizer.encode("a xb c")


def test_workers_get_the_whole_tokenizer(tokenizer):
    other = pickle.loads(pickle.dumps(tokenizer))
    assert (other.vocab, other.merges, other.special_tokens) == (
        tokenizer.vocab,
        tokenizer.merges,
        tokenizer.special_tokens,
    )
    assert repr(other) == "Tokenizer(300 ids, pattern gpt2, special tokens: <|endoftext|>, <|a b|>)"


# Merging


PAIRS = ["a b", "b a", "a a", "ab a", "ab ab", "aa b", "b c", "ba bc", "c _"]


@settings(max_examples=150, deadline=None)
@given(
    words=st.lists(st.text("abc_", min_size=1, max_size=60), min_size=1, max_size=8),
    order=st.randoms(use_true_random=False),
)
def test_all_ways_to_merge_agree_with_basics_even_on_merges_that_no_training_gives(words, order):
    """In any order: a merge may come before those that make its parts."""
    order.shuffle(pairs := [tuple(part.encode() for part in pair.split()) for pair in PAIRS])
    tokenizer = Tokenizer(pairs)
    tables = tokenizer._ranks, tokenizer._made
    expected = [
        [
            tokenizer._ids[token]
            for token in basics.merge_word(word.encode(), {pair: i for i, pair in enumerate(pairs)})
        ]
        for word in words
    ]
    assert [_merge_long(list(word.encode()), *tables) for word in words] == expected
    assert [merge(list(word.encode()), *tables) for word in words] == expected
    merger = BatchMerger(*tables, range(256), tokenizer.dtype)
    packed = merger.merge([word.encode() for word in words])
    assert [np.frombuffer(ids, tokenizer.dtype).tolist() for ids in packed] == expected


@settings(max_examples=150, deadline=None)
@given(
    tokens=st.sampled_from([[b"a"], [b"a", b"b"]]),
    choices=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=12),
    order=st.randoms(),
)
def test_a_token_that_needs_no_merging_is_what_the_merges_make_of_its_bytes(tokens, choices, order):
    """Also where the merges are in an order that no training gives, and where two of them make one token."""
    tokens, merges = list(tokens), []
    for left, right in choices:
        merges.append((tokens[left % len(tokens)], tokens[right % len(tokens)]))
        tokens.append(b"".join(merges[-1]))
    merges = list(dict.fromkeys(merges))
    if order.random() < 0.5:
        order.shuffle(merges)
    vocab = dict(enumerate(dict.fromkeys([bytes([byte]) for byte in range(256)] + tokens)))
    tokenizer = Tokenizer(merges, vocab=vocab)
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    for id in tokenizer._merger.whole_tokens().tolist():
        assert basics.merge_word(vocab[id], ranks) == [vocab[id]]


def test_nearly_every_token_of_gpt2_needs_no_merging():
    assert len(Tokenizer.gpt2()._merger.whole_tokens()) > 0.99 * 50_256


@settings(max_examples=200, deadline=None)
@given(text=st.lists(st.sampled_from(NASTY) | st.text(), max_size=20).map("".join))
def test_ids_equal_those_of_basics(tokenizer, text):
    assert tokenizer.encode(text) == basics.encode(text, tokenizer.merges)
    ids = basics.encode(text, tokenizer.merges)
    assert tokenizer.decode(ids) == basics.decode(ids, tokenizer.merges)


# Memory


def peak_growth(work) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_stream_needs_constant_memory(tokenizer):
    story = "".join(stories(100_000))

    def drain(chunks: int):
        return lambda: sum(1 for _ in tokenizer.encode_iterable(story for _ in range(chunks)))

    drain(2)()
    assert peak_growth(drain(40)) < 1.5 * peak_growth(drain(4))


def test_the_cache_is_bounded(tokenizer, monkeypatch):
    monkeypatch.setattr(bpe.tokenizer, "CACHED_PIECES", 100)
    fresh = copy.copy(tokenizer)
    for i in range(3000):
        fresh.encode(f"x w{i} y")
    assert fresh.encode("x w7 y") == tokenizer.encode("x w7 y")
    for cache in (fresh._pieces, fresh._pretokens):
        assert len(cache) + len(cache.older) <= 200
    fresh.encode("x" * 1000 + " y")
    assert max(map(len, fresh._pretokens)) <= bpe.tokenizer.LONGEST_CACHED


def test_threads_that_share_a_tokenizer_get_what_one_gets(monkeypatch):
    """Few slots and quick changes of thread, so that one meets what another is just writing."""
    monkeypatch.setattr(piecetable, "SLOT_BITS", 6)
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdef", k=rng.randint(1, 6))) for _ in range(3000)]
    texts = [" ".join(rng.choices(words, k=400)) for _ in range(40)]
    merges = [(b"a", b"b"), (b"c", b"d"), (b"ab", b"cd")]
    expected = [Tokenizer(merges).encode(text) for text in texts]
    shared = Tokenizer(merges)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(shared.encode, texts * 10))
    finally:
        sys.setswitchinterval(interval)
    assert found == expected * 10


# Mistakes


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Tokenizer([(b"a", b"bc")]), "merge 0 .* needs the token b'bc', which does not exist"),
        (lambda: Tokenizer([(b"a", b"b")] * 2), "has two ids"),
        (lambda: Tokenizer([], {"<s>": 5}), "has the id 5, which another token has too"),
        (lambda: Tokenizer([], {"<s>": -5}), "ids run from -5"),
        (lambda: Tokenizer([], [""]), "a special token is the empty string"),
        (lambda: Tokenizer([], vocab={0: b"a"}), "has no token for the byte 0x00"),
        (lambda: Tokenizer([], vocab={i + 1: bytes([i]) for i in range(256)}), "no token has the id 0"),
        (
            lambda: Tokenizer([], vocab={i: bytes([i]) for i in range(256)} | {1 << 31: b"ab"}),
            "no .* the id 256",
        ),
        (lambda: Tokenizer([], vocab={i: bytes([i]) for i in range(256)} | {256: b"ab"}), "no merge makes"),
    ],
)
def test_what_is_inconsistent_is_refused(make, error):
    with pytest.raises(ValueError, match=error):
        make()


# The path that a reader follows


def test_encode_reaches_the_merge_loop_in_six_calls(tokenizer):
    depths = []

    def count(frame, event, _):
        if event == "call" and frame.f_code is merge.__code__:
            depths.append(0)
            while frame.f_code is not test_encode_reaches_the_merge_loop_in_six_calls.__code__:
                depths[-1] += 1
                frame = frame.f_back

    sys.setprofile(count)
    try:
        copy.copy(tokenizer).encode("The cat, unheard")
    finally:
        sys.setprofile(None)
    assert depths
    assert max(depths) <= 6


def test_encoding_does_not_load_the_trainer():
    program = "import sys; from bpe import Tokenizer; Tokenizer([]).encode('a'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"bpe.trainer", "bpe.counting", "bpe.batches", "multiprocessing", "rich"} & set(
        done.stdout.split()
    )
