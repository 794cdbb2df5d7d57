"""Files and habits of other projects: what loads encodes and decodes as theirs; everything else is refused.

The right values come from Hugging Face's tokenizers and from tiktoken. The fast tests build small files with that
library that have what real ones have. The slow ones read real ones: SLM_PEER_TOKENIZERS names a folder with
llama3.json, qwen3.json, neox.json and gpt35turbo.json (the tokenizer.json files of these models).
"""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from bpe import Tokenizer, train
from bpe.pretokenize import PATTERNS, Pattern
from tests.bpe.peers import NASTY, make_peers, official_patterns
from tests.bpe.test_exact import FIXED

ADDED = ["<think>", "</think>", "  ", "    ", "a1", "o\u0302\u0301"]
SPECIAL = ["<|endoftext|>", "<|a b|>"]
TEXT = (
    "".join(NASTY) * 2
    + " The theme is <think> here; it's then 12345 e\u0301 or é \n\n"
    + "".join(FIXED.values())
)


def build(
    *,
    pattern: str = "",
    inverted: bool = False,
    nfc: bool = False,
    added: bool = False,
    alphabet: bool = True,
) -> tokenizers.Tokenizer:
    """Train a tokenizer with Hugging Face's library."""
    theirs = tokenizers.Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)
    theirs.pre_tokenizer = byte_level
    if pattern:
        behavior = "removed" if inverted else "isolated"
        split = pre_tokenizers.Split(Regex(pattern), behavior, invert=inverted)
        theirs.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    if nfc:
        theirs.normalizer = normalizers.NFC()
    theirs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIAL,
        initial_alphabet=byte_level.alphabet() if alphabet else [],
        show_progress=False,
    )
    theirs.train_from_iterator([TEXT, *map(chr, range(0x800)), "\U0010ffff\U00050000\U000a0000"], trainer)
    if added:
        late = [AddedToken(name, normalized=True) for name in ADDED[2:]]
        theirs.add_tokens([AddedToken(name, normalized=False) for name in ADDED[:2]] + late)
    return theirs


def saved(
    theirs: tokenizers.Tokenizer, path: Path, change=lambda content: None
) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """Save it, change the file, and load it with both libraries."""
    content = json.loads(theirs.to_str())
    change(content)
    path.write_text(json.dumps(content))
    return Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))


def agree(ours: Tokenizer, theirs: tokenizers.Tokenizer, text: str) -> None:
    """Fail unless ids and decoded text are equal, with special tokens recognised and as ordinary text."""
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, "all") == ids
    assert list(ours.encode_iterable((text[i : i + 5] for i in range(0, len(text), 5)), "all")) == ids
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
    theirs.encode_special_tokens = True
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    theirs.encode_special_tokens = False


def ignore_merges(content: dict) -> None:
    """As in Llama 3: a token that no merge makes, and one that is made of other parts than its own merge."""
    content["model"]["ignore_merges"] = True
    content["model"]["vocab"]["thenĠtheme"] = len(content["model"]["vocab"])
    content["model"]["vocab"]["Ġthemes"] = len(content["model"]["vocab"])
    content["model"]["merges"] = content["model"]["merges"][:-40]


LLAMA3 = official_patterns()["llama3"]
KINDS = {
    "added tokens": ({"added": True}, None),
    "NFC": ({"nfc": True}, None),
    "NFC and added tokens": ({"nfc": True, "added": True}, None),
    "inverted Split": ({"pattern": LLAMA3, "inverted": True}, None),
    "ignore_merges": ({"pattern": LLAMA3}, ignore_merges),
    "bytes that cannot occur": ({"pattern": official_patterns()["qwen2"], "alphabet": False}, None),
}
texts = st.lists(
    st.sampled_from([*NASTY, *ADDED, *SPECIAL, " themes", "then theme", "\u0301", "\u1fef", "  a"])
    | st.text("et<hink> \u0301", max_size=6),
    max_size=25,
).map("".join)


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    options, change = KINDS[request.param]
    path = tmp_path_factory.mktemp("others") / "tokenizer.json"
    return saved(build(**options), path, change or (lambda content: None))


@settings(max_examples=80, deadline=None)
@given(text=texts)
def test_files_with_what_real_ones_have(pair, text):
    agree(*pair, text)


def test_long_texts_of_files_with_what_real_ones_have(pair):
    choose = random.Random(0)
    words = [*NASTY, *ADDED, *SPECIAL, " the", " then theme", "\u0301"]
    for text in (TEXT, "".join(choose.choices(words, k=3000)), " ".join(choose.choices(words, k=3000))):
        agree(*pair, text)


def test_what_we_save_of_such_a_file_is_the_same_to_them(pair, tmp_path):
    ours, theirs = pair
    ours.save(tmp_path / "tokenizer.json")
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again.encode(TEXT).ids == theirs.encode(TEXT, add_special_tokens=False).ids
    ids = theirs.encode(TEXT, add_special_tokens=False).ids
    assert again.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
    agree(Tokenizer.load(tmp_path), theirs, TEXT)


def test_padding_of_batches_changes_no_text(tmp_path):
    theirs = build()
    theirs.enable_padding(direction="left", pad_token="<|endoftext|>")
    agree(*saved(theirs, tmp_path / "tokenizer.json"), TEXT)
    theirs.enable_padding(length=5)
    with pytest.raises(ValueError, match="padding is set, which is not supported"):
        saved(theirs, tmp_path / "tokenizer.json")
    theirs.enable_padding(pad_to_multiple_of=8)
    with pytest.raises(ValueError, match="padding is set, which is not supported"):
        saved(theirs, tmp_path / "tokenizer.json")


def test_a_missing_byte_that_text_can_hold_is_refused(tmp_path):
    def without_a(content):
        content["model"]["merges"] = []
        content["model"]["vocab"] = {
            t: i for t, i in content["model"]["vocab"].items() if len(t) == 1 and t != "a"
        }

    with pytest.raises(ValueError, match="no token for the byte 0x61"):
        saved(build(), tmp_path / "tokenizer.json", without_a)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda c: c.update(normalizer={"type": "NFKC"}), "normalizer is set to {.type.: .NFKC.}: only NFC"),
        (lambda c: c["pre_tokenizer"].update(type="Metaspace"), "but {.type.: .Metaspace."),
        (
            lambda c: c.update(
                pre_tokenizer=json.loads(build(pattern=r"\\w+", inverted=True).to_str())["pre_tokenizer"]
            ),
            r"behavior Removed, inverted: .* with a named pattern, not",
        ),
        (lambda c: c["added_tokens"][0].update(single_word=True), "'<|endoftext|>' has single_word set"),
    ],
)
def test_what_is_not_supported_is_named_with_what_was_found(change, error, tmp_path):
    with pytest.raises(ValueError, match=error.replace("|", r"\|")):
        saved(build(), tmp_path / "tokenizer.json", change)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama3", "qwen3", "neox", "gpt35turbo"])
def test_real_files(name):
    path = Path(os.environ.get("SLM_PEER_TOKENIZERS", "/nowhere")) / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there: set SLM_PEER_TOKENIZERS to a folder that holds it")
    ours, theirs = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    assert len(ours) == theirs.get_vocab_size()
    assert ours.pattern.name
    choose = random.Random(0)
    words = [*NASTY, *list(ours.special_tokens)[:5], *ours.added_tokens, "  ", "e\u0301"]
    for text in (
        *FIXED.values(),
        *("".join(choose.choices(words, k=choose.randrange(60))) for _ in range(3000)),
    ):
        agree(ours, theirs, text)


# Patterns


@pytest.mark.parametrize("name", PATTERNS)
def test_the_spellings_of_other_projects_are_the_named_patterns(name):
    assert Pattern.spelled(official_patterns()[name]) == Pattern.of(name)
    assert Pattern.of(official_patterns()[name]).name == name


@pytest.mark.parametrize(
    ("mistyped", "near"),
    [
        ("gpt4", "cl100k"),
        ("cl100k_base", "cl100k"),
        ("GPT2", "gpt2"),
        ("o200k_base", "o200k"),
        ("llama-3", "llama3"),
    ],
)
def test_a_mistyped_name_is_not_a_regular_expression(mistyped, near):
    with pytest.raises(ValueError, match=rf"no pattern is named '{mistyped}' \(did you mean {near}\?\)"):
        train(["some text"], 300, pattern=mistyped, progress=False)
    assert Pattern.of(f"regex:{mistyped}").text == mistyped


@pytest.mark.parametrize("empty", ["", "regex:"])
def test_an_empty_pattern_is_refused(empty):
    with pytest.raises(ValueError, match=f"no pattern is named '{empty}'"):
        train(["some text"], 300, pattern=empty, progress=False)


# GPT-2's files


def test_half_a_merges_txt_is_refused(gpt2, tmp_path):
    gpt2.ours.save_gpt2(tmp_path)
    lines = (tmp_path / "merges.txt").read_text().splitlines(keepends=True)
    (tmp_path / "merges.txt").write_text("".join(lines[: len(lines) // 2]))
    with pytest.raises(
        ValueError, match=r"no merge makes 25,001 of the 50,257 tokens, .* is merges\.txt complete\?"
    ):
        Tokenizer.gpt2(tmp_path)


@pytest.mark.parametrize("name", PATTERNS)
def test_gpt2_files_keep_the_pattern(name, sharp, tmp_path):
    peers = sharp[name]
    peers.ours.save_gpt2(tmp_path)
    loaded = Tokenizer.gpt2(tmp_path)
    assert loaded.encode(TEXT, "all") == peers.tiktoken.encode(TEXT, allowed_special="all")


def test_gpt2_files_take_a_pattern(sharp, tmp_path):
    sharp["gpt2"].ours.save_gpt2(tmp_path)
    files = tmp_path / "vocab.json", tmp_path / "merges.txt"
    assert Tokenizer.from_gpt2(*files).encode(TEXT) == sharp["gpt2"].tiktoken.encode_ordinary(TEXT)
    loaded = Tokenizer.from_gpt2(*files, pattern="cl100k")
    assert loaded.encode(TEXT) == sharp["cl100k"].tiktoken.encode_ordinary(TEXT)


def test_special_tokens_that_look_like_others_are_named(tmp_path):
    tokenizer = Tokenizer([(b"a", b"b")], ["END"])
    tokenizer.save_gpt2(tmp_path)
    assert Tokenizer.gpt2(tmp_path).special_tokens == {"END": 257}
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(ValueError, match="'END' for one"):
        Tokenizer.gpt2(tmp_path)
    files = tmp_path / "vocab.json", tmp_path / "merges.txt"
    assert Tokenizer.from_gpt2(*files, special_tokens=["END"]).special_tokens == {"END": 257}


def test_gpt2_files_keep_the_end_of_text(tmp_path):
    tokenizer = Tokenizer([(b"a", b"b")], ["<|endoftext|>", "<stop>"], end_of_text="<stop>")
    tokenizer.save_gpt2(tmp_path)
    assert Tokenizer.gpt2(tmp_path).settings() == tokenizer.settings()
    files = (str(tmp_path / name) for name in ("vocab.json", "merges.txt"))
    assert models.BPE.from_file(*files).token_to_id("<stop>") == 258  # the note is skipped by them


def test_gpt2_files_cannot_hold_added_tokens(pair, tmp_path):
    ours, _ = pair
    if ours.added_tokens or ours.nfc or ours.ignore_merges:
        with pytest.raises(ValueError, match="have no place for"):
            ours.save_gpt2(tmp_path)
        assert not list(tmp_path.iterdir())


# What other tokenizers offer


def test_special_tokens_can_be_added(sharp, tmp_path):
    before = sharp["gpt2"].ours
    theirs = make_peers(before, tmp_path / "theirs.json").hugging_face
    theirs.add_special_tokens(["<|user|>", "<|pad|>"])
    ours = before.with_special_tokens(["<|user|>", "<|pad|>"], end_of_text="<|pad|>")
    ours.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path)
    assert loaded.end_of_text == "<|pad|>"
    assert before.end_of_text == "<|endoftext|>"
    text = "<|user|>Hello<|endoftext|><|pad|>"
    for tokenizer in (ours, loaded):
        assert tokenizer.encode(text, "all") == theirs.encode(text).ids
        assert tokenizer.special_tokens["<|user|>"] == theirs.token_to_id("<|user|>") == before.vocab_size
        assert len(tokenizer) == theirs.get_vocab_size()
    with pytest.raises(ValueError, match="is already a special token"):
        ours.with_special_tokens(["<|pad|>"])
    with pytest.raises(ValueError, match="end_of_text is '<x>'"):
        ours.with_special_tokens([], "<x>")


def test_length_counts_tokens_where_ids_have_a_gap():
    tokenizer = Tokenizer([(b"a", b"b")], {"<end>": 257, "<prompt>": 300})
    theirs = tiktoken.Encoding(
        "gap",
        pat_str=r"\w+",
        mergeable_ranks={token: id for id, token in tokenizer.vocab.items() if id < 257},
        special_tokens=tokenizer.special_tokens,
    )
    assert tokenizer.vocab_size == theirs.n_vocab == 301
    assert len(tokenizer) == 259


@pytest.mark.parametrize("make", [list, tuple, iter, np.array, torch.tensor], ids=lambda make: make.__name__)
def test_ids_of_any_kind_are_decoded(gpt2, make):
    ids = [15496, 50256, 995]
    assert gpt2.ours.decode(make(ids)) == gpt2.tiktoken.decode(ids)
    expected = gpt2.hugging_face.decode(ids, skip_special_tokens=True)
    assert gpt2.ours.decode(make(ids), skip_special_tokens=True) == expected


def test_a_batch_is_not_decoded_as_one_text(gpt2):
    for skip in (False, True):
        with pytest.raises(ValueError, match="one dimension"):
            gpt2.ours.decode(torch.tensor([[1, 2], [3, 4]]), skip_special_tokens=skip)


def test_a_tensor_is_decoded_as_a_stream(gpt2):
    ids = [15496, 50256, 995]
    assert "".join(gpt2.ours.decode_stream(torch.tensor(ids))) == gpt2.tiktoken.decode(ids)
