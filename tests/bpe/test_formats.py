"""Files go both ways between us, Hugging Face, GPT-2 and tiktoken; damaged ones are refused with the reason."""

import base64
import json
import random

import pytest
import tiktoken.load
import tokenizers

from bpe import Tokenizer, train
from bpe.__main__ import main
from tests.bpe.peers import NASTY

TEXT = "".join(NASTY) + " The cat sat on the mat. <|endoftext|> It's <| a b |> 12345\n\n"


def same(left: Tokenizer, right: Tokenizer) -> bool:
    """True if two tokenizers are equal in everything that decides about ids."""
    return all(
        getattr(left, name) == getattr(right, name)
        for name in ("vocab", "merges", "special_tokens", "pattern")
    )


@pytest.fixture(scope="module", params=["gpt2", "cl100k", "o200k", r"\p{L}+|\P{L}"])
def tokenizer(request):
    return train(
        [TEXT] * 2, 330, pattern=request.param, special_tokens=("<|endoftext|>", "<| a b |>"), progress=False
    )


def test_a_saved_tokenizer_loads_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert same(loaded, tokenizer)
    assert loaded.encode(TEXT, "all") == tokenizer.encode(TEXT, "all")


def test_hugging_face_reads_what_we_save(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    theirs = tokenizers.Tokenizer.from_file(str(path))
    ids = theirs.encode(TEXT).ids
    assert ids == tokenizer.encode(TEXT, "all")
    assert theirs.decode(ids, skip_special_tokens=False) == TEXT
    assert theirs.get_vocab_size() == tokenizer.vocab_size


def test_we_read_what_hugging_face_saves_of_ours(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "ours.json")
    tokenizers.Tokenizer.from_file(str(tmp_path / "ours.json")).save(str(tmp_path / "theirs.json"))
    assert same(Tokenizer.load(tmp_path / "theirs.json"), tokenizer)


@pytest.mark.parametrize("by_regex", [False, True])
def test_we_read_what_hugging_face_trains(tmp_path, by_regex):
    """Its special tokens come first, so its bytes do not begin at 0."""
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    split = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(r"\p{N}|\s?\p{L}+|\s|[^\s\p{L}\p{N}]+"), "isolated"
    )
    theirs.pre_tokenizer = (
        tokenizers.pre_tokenizers.Sequence([split, byte_level(add_prefix_space=False, use_regex=False)])
        if by_regex
        else byte_level(add_prefix_space=False)
    )
    theirs.decoder = tokenizers.decoders.ByteLevel()
    special, alphabet = ["<|endoftext|>", "<| a b |>"], byte_level.alphabet()
    theirs.train_from_iterator(
        [TEXT] * 3,
        tokenizers.trainers.BpeTrainer(
            vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path / "tokenizer.json")
    assert ours.encode(TEXT, "all") == theirs.encode(TEXT).ids
    assert ours.special_tokens == {"<|endoftext|>": 0, "<| a b |>": 1}


def test_gpt2_files_go_both_ways(tokenizer, tmp_path):
    tokenizer.save_gpt2(tmp_path)
    loaded = Tokenizer.from_gpt2(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert (loaded.vocab, loaded.merges, loaded.special_tokens) == (
        tokenizer.vocab,
        tokenizer.merges,
        tokenizer.special_tokens,
    )
    theirs = tokenizers.models.BPE.from_file(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    assert theirs.token_to_id("Ġ") == 32


def test_tiktoken_files_go_both_ways(tokenizer, tmp_path):
    path = tmp_path / "ranks.tiktoken"
    tokenizer.save_tiktoken(path)
    loaded = Tokenizer.from_tiktoken(path, tokenizer.pattern, tokenizer.special_tokens)
    assert same(loaded, tokenizer)
    ranks = tiktoken.load.load_tiktoken_bpe(str(path))
    special = set(tokenizer.special_tokens.values())
    assert ranks == {token: id for id, token in tokenizer.vocab.items() if id not in special}


def test_the_ranks_of_gpt2_give_its_merges(gpt2, tmp_path):
    gpt2.ours.save_tiktoken(tmp_path / "ranks")
    assert (
        Tokenizer.from_tiktoken(tmp_path / "ranks", special_tokens=["<|endoftext|>"]).merges
        == gpt2.ours.merges
    )


def test_special_tokens_may_leave_a_gap(tmp_path):
    """As in cl100k, whose last special token is 100276."""
    tokenizer = Tokenizer([(b"a", b"b")], {"<end>": 257, "<prompt>": 300})
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.encode("ab<prompt>", "all") == [256, 300]
    assert loaded.vocab_size == 301
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode("ab<prompt>").ids == [256, 300]


def test_the_older_spelling_of_merges_is_read(tmp_path):
    path = tmp_path / "tokenizer.json"
    content = damaged_content(tmp_path)
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    path.write_text(json.dumps(content))
    assert Tokenizer.load(path).merges == small().merges


# Mistakes and damage


def small() -> Tokenizer:
    return Tokenizer([(b"a", b"b"), (b" ", b"ab"), (b"ab", b"ab")], ["<|endoftext|>", "<| x |>"])


def damaged_content(tmp_path, damage=lambda content: None) -> dict:
    """Return the content of a small tokenizer's file, without its checksum, after `damage`."""
    small().save(tmp_path / "whole.json")
    content = json.loads((tmp_path / "whole.json").read_text())
    del content["model"]["sha256"]
    damage(content)
    return content


DAMAGES = {
    "model.type is 'WordPiece'": lambda c: c["model"].update(type="WordPiece"),
    "no token has the id 256": lambda c: c["model"]["vocab"].update({"ab": 999}),
    "the id 257 is that of": lambda c: c["model"]["vocab"].update({"ab": 257}),
    "which another token has too": lambda c: (
        c["model"]["vocab"].pop("<| x |>"),
        c["added_tokens"][1].update(id=5),
    ),
    "needs the token b'abx', which does not exist": lambda c: c["model"]["merges"].append(["abx", "c"]),
    "needs the token b'ba', which does not exist": lambda c: c["model"]["merges"].append(["b", "a"]),
    "1 of the 4 merges are there twice": lambda c: c["model"]["merges"].append(["a", "b"]),
    "no merge makes the token b' ab'": lambda c: c["model"]["merges"].pop(1),
    "merge 1 is \\['a'\\]: expected two tokens": lambda c: c["model"]["merges"].insert(1, ["a"]),
    "holds 'あ', which is not the character of a byte": lambda c: c["model"]["vocab"].update({"あ": 300}),
    "has the id '1', which is no integer": lambda c: c["model"]["vocab"].update(c="1"),
    "has the ids 260 and 777": lambda c: c["added_tokens"][1].update(id=777),
    "no token for the byte 0x61": lambda c: c["model"]["vocab"].pop("a"),
    "vocab is missing": lambda c: c["model"].pop("vocab"),
    "merges is missing": lambda c: c["model"].pop("merges"),
    "model is missing": lambda c: c.pop("model"),
    "pre_tokenizer is missing": lambda c: c.update(pre_tokenizer=None),
    "pre_tokenizer is neither": lambda c: c["pre_tokenizer"].update(add_prefix_space=True),
    "decoder is not ByteLevel": lambda c: c["decoder"].update(type="WordPiece"),
    "normalizer is set": lambda c: c.update(normalizer={"type": "NFKC"}),
    "model.dropout is 0.1": lambda c: c["model"].update(dropout=0.1),
    "model.byte_fallback is True": lambda c: c["model"].update(byte_fallback=True),
    "has lstrip set": lambda c: c["added_tokens"][0].update(lstrip=True),
    "is there twice": lambda c: c["added_tokens"].append(c["added_tokens"][0]),
    "added_tokens is not a list": lambda c: c.update(added_tokens={"a": 1}),
    "the entry 'extra' is unknown": lambda c: c.update(extra=1),
    "does not match model.sha256": lambda c: c["model"].update(sha256="0"),
    "content is 5: expected str": lambda c: c["added_tokens"][0].update(content=5),
}


@pytest.mark.parametrize("error", DAMAGES)
def test_what_is_wrong_is_said(error, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(damaged_content(tmp_path, DAMAGES[error])))
    with pytest.raises(ValueError, match=error) as raised:
        Tokenizer.load(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    "text", ["", "no json", "[]", "[" * 100_000, '{"a": 1, "a": 2}', "\udce9", '{"model": {']
)
def test_what_is_no_tokenizer_file_is_refused(text, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer file"):
        Tokenizer.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Tokenizer.from_tiktoken(tmp_path / "nowhere")


def damage(content: bytes, choose: random.Random) -> bytes:
    """One accident: a flipped bit, a lost, doubled or exchanged stretch, a cut end."""
    start = choose.randrange(len(content))
    end = min(len(content), start + choose.randrange(1, 40))
    kind = choose.randrange(5)
    if kind == 0:
        return content[:start] + bytes([content[start] ^ 1 << choose.randrange(8)]) + content[start + 1 :]
    if kind == 1:
        return content[:start] + content[end:]
    if kind == 2:
        return content[:end] + content[start:]
    if kind == 3:
        return content[:start] + choose.randbytes(end - start) + content[end:]
    return content[:start]


def test_no_damaged_file_loads_wrong(tmp_path, refused):
    choose = random.Random(0)
    tokenizer = Tokenizer(small().merges, small().special_tokens, "cl100k")
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    content = path.read_bytes()
    (tmp_path / "ids").write_text("97 98")
    found = []
    for number in range(1000):
        path.write_bytes(damage(content, choose))
        try:
            loaded = Tokenizer.load(path)
        except ValueError as error:
            assert str(path) in str(error)
            found.append(error)
            if number % 25 == 0:
                assert str(path) in refused(main, "decode", str(tmp_path / "ids"), "--tokenizer", str(path))
        else:
            assert same(loaded, tokenizer)  # the damage lay in white space, or in nothing
    assert len(found) > 900


def test_saving_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="spelled like an ordinary token"):
        Tokenizer([], ["a"]).save(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["YQ== x"], "line 257 is b'YQ== x'"),
        (["!!! 256"], "line 257"),
        (["YWI= 5"], "line 257: the rank 5 is there twice"),
        (["YWI= 300"], "no token has the id 256"),
        (["YWJj 256"], "is not made of two tokens of lower rank"),
        (["YQ== 256"], "has two ids"),
    ],
)
def test_a_damaged_rank_file_is_refused(lines, error, tmp_path):
    path = tmp_path / "ranks"
    bytes_ = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
    path.write_text("\n".join(bytes_ + lines))
    with pytest.raises(ValueError, match=error):
        Tokenizer.from_tiktoken(path)


def test_a_rank_file_without_all_bytes_is_refused(tmp_path):
    (tmp_path / "ranks").write_text("YWI= 0\nYQ== 1")
    with pytest.raises(ValueError, match="the byte b'b' has no rank"):
        Tokenizer.from_tiktoken(tmp_path / "ranks")


def test_ids_out_of_the_order_of_the_merges_cannot_be_ranks(tmp_path):
    tokenizer = small()
    vocab = {id: token for id, token in tokenizer.vocab.items() if id < 259}
    vocab[256], vocab[258] = vocab[258], vocab[256]
    with pytest.raises(ValueError, match="ids in the order of the merges"):
        Tokenizer(tokenizer.merges, vocab=vocab).save_tiktoken(tmp_path / "ranks")


def test_a_damaged_vocabulary_of_gpt2_is_refused(tmp_path):
    small().save_gpt2(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(ValueError, match="merge 0 is 'a b c': expected two tokens"):
        Tokenizer.from_gpt2(tmp_path / "vocab.json", tmp_path / "merges.txt")
