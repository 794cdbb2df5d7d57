"""Our ids are tiktoken's and Hugging Face's: on fixed texts, on random text and on random bytes."""

import random
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bpe.tokenizer
from tests.bpe.peers import NASTY, Peers

NAMES = ("gpt2", "cl100k", "o200k", "llama3", "qwen2")
LONG_RUN = 10_000  # examples of each of the ten long tests: 100,000 together

FIXED = {
    "English": "The cat's hat: it'll be 3.14, won't it? I'd say WE'RE DONE, THEY'LL see… “Quoted” — dash.",
    "German": "Größe, Übermut; Straße »Anführung« ẞ",
    "French": "L’été, c’était déjà passé ; où ça ?",
    "Russian": "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "Greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "Arabic": "نص حكيم له سر قاطع وذو شأن عظيم ١٢٣",
    "Hebrew": "דג סקרן שט בים מאוכזב",
    "Hindi": "ऋषियों को सताने वाले दुष्ट राक्षसों १२३",
    "Thai": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "Chinese": "我能吞下玻璃而不傷身體。　全角空格",
    "Japanese": "いろはにほへと ちりぬるを １２３ ｶﾀｶﾅ",
    "Korean": "키스의 고유조건은 입술끼리 만나야 하고",
    "code": "def f(x):\n\tif x:\n        return x**2  # square\n\n\n    else: pass\r\n}\n",
    "numbers": "0 12 345 6789 1,000,000 3.14159 0x1F ½ Ⅷ ² 1e-9",
    "contractions": "it's IT'S don't DON'T we've WE'VE I'm I'M he'd HE'D you'll YOU'LL they're 'S ' s ſ'ſ",
    "emoji": "😀👩‍👩‍👧‍👦 🇫🇷🏴󠁧󠁢󠁥󠁮󠁧󠁿 ✈️ a😀b 👍🏽",
    "control": "\x00\x01\x1b[0m\x7f\x80\x85\xa0\u200b\u2028\u2029\ufeff\ufffe",
    "spaces": "  a   b \n c\t\t d\u00a0\u00a0e\u3000f  \n\n  \n",
    "combining": "e\u0301 a\u0308\u0323 \u0301 Z̸a̴l̶g̵o̷",
    "empty": "",
    "space": " ",
    "breaks": "\r\n\r\n\n \n",
}


def all_ways(peers: Peers, text: str) -> list[int]:
    """Return the ids of `text`, which must be the same by every way that leads to them."""
    ours = peers.ours
    ids = ours.encode(text)
    with mock.patch.multiple(bpe.tokenizer, WORTH_ARRAYS=0, BLOCK=8):
        assert ours.encode(text) == ids
        assert list(ours.encode_iterable(text[i : i + 3] for i in range(0, len(text), 3))) == ids
    return ids


def agree(peers: Peers, text: str) -> None:
    """Fail unless ours, tiktoken and Hugging Face give the same ids, and the text comes back."""
    ids = all_ways(peers, text)
    assert ids == peers.tiktoken.encode_ordinary(text)
    repaired = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert peers.ours.decode(ids) == repaired
    if not any(token in text for token in peers.ours.special_tokens):
        assert ids == peers.hugging_face.encode(repaired).ids


@pytest.mark.parametrize("text", FIXED.values(), ids=FIXED)
def test_fixed_texts(gpt2, sharp, text):
    agree(gpt2, text)
    for peers in sharp.values():
        agree(peers, text)


# Characters that Unicode had not assigned yet may belong to different classes in the libraries' tables.
assigned = st.characters(exclude_categories=["Cn"])
texts = st.lists(st.sampled_from(NASTY) | assigned | st.text(" \n'aAsS1.é中", max_size=8), max_size=40).map(
    "".join
)
damaged = st.binary(max_size=60).map(lambda data: data.decode("utf-8", "replace"))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_random_text(sharp, name, text):
    agree(sharp[name], text)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=None)
@given(text=damaged)
def test_random_bytes(sharp, name, text):
    agree(sharp[name], text)


@settings(max_examples=200, deadline=None)
@given(text=texts | damaged)
def test_random_text_with_the_vocabulary_of_gpt2(gpt2, text):
    agree(gpt2, text)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=LONG_RUN, deadline=None)
@given(text=texts)
def test_random_text_in_a_long_run(sharp, name, text):
    agree(sharp[name], text)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=LONG_RUN, deadline=None)
@given(text=damaged)
def test_random_bytes_in_a_long_run(sharp, name, text):
    agree(sharp[name], text)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=75, deadline=None)
@given(parts=st.lists(texts | st.sampled_from(["<|endoftext|>", "<| a b |>", "<|", "|>"]), max_size=8))
def test_special_tokens_among_text(sharp, name, parts):
    peers, text = sharp[name], "".join(parts)
    ids = peers.ours.encode(text, "all")
    assert ids == peers.tiktoken.encode(text, allowed_special="all")
    with mock.patch.multiple(bpe.tokenizer, WORTH_ARRAYS=0):
        assert peers.ours.encode(text, "all") == ids
    with mock.patch.multiple(bpe.tokenizer, WORTH_ARRAYS=0, BLOCK=8):
        assert list(peers.ours.encode_iterable(parts, "all")) == ids


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 3255), max_size=30))
def test_any_ids_decode_as_with_tiktoken(sharp, ids):
    peers = sharp["gpt2"]
    assert peers.ours.decode_bytes(ids) == peers.tiktoken.decode_bytes(ids)
    assert peers.ours.decode(ids) == peers.tiktoken.decode(ids)
    assert "".join(peers.ours.decode_stream(ids)) == peers.tiktoken.decode(ids)


def test_lone_surrogates_become_replacement_characters(gpt2):
    for text in ("\ud83d", "a\udc00b", "\ud83d\ude00", "\ude00\ud83d", " \ud835\udc9c"):
        assert gpt2.ours.encode(text) == gpt2.tiktoken.encode_ordinary(text)


def test_a_surrogate_pair_may_be_cut_between_chunks(gpt2):
    assert list(gpt2.ours.encode_iterable(["a \ud83d", "\ude00 b"])) == gpt2.ours.encode("a 😀 b")


@pytest.mark.parametrize("unit", ["a", " ", "ab", "😀", "\n", "中"])
def test_long_runs_of_one_character(gpt2, unit):
    for repeat in (47, 48, 49, 50, 1000, 3001):
        assert all_ways(gpt2, unit * repeat) == gpt2.tiktoken.encode_ordinary(unit * repeat)


def test_long_random_words(sharp):
    choose = random.Random(1)
    for peers in sharp.values():
        for _ in range(20):
            text = "".join(choose.choices("abcABCSTés中日'", k=choose.randrange(40, 400)))
            assert all_ways(peers, text) == peers.tiktoken.encode_ordinary(text)


def test_gpt2_has_its_published_vocabulary(gpt2):
    tokenizer = gpt2.ours
    assert tokenizer.vocab_size == 50257
    assert sorted(tokenizer.vocab) == list(range(50257))
    assert tokenizer.special_tokens == {"<|endoftext|>": 50256}
    assert tokenizer.merges[:3] == [(b" ", b"t"), (b" ", b"a"), (b"h", b"e")]
    assert len(tokenizer.merges) == 50000
    assert [tokenizer.vocab[256 + rank] for rank in range(50000)] == [a + b for a, b in tokenizer.merges]
    assert len({tuple(tokenizer.encode(word)) for word in (" egg", "egg", "Egg")}) == 3
    assert len(tokenizer.encode("tokenization")) == 2
    assert tokenizer.encode("Hello, world!<|endoftext|>", "all") == [15496, 11, 995, 0, 50256]
