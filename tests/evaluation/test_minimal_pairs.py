"""Minimal pairs: one spot, one fault, and the story checker agrees where it can hear it."""

import re

import pytest
import torch

from bpe import Tokenizer
from data.stories import check, stories
from evaluation import minimal_pairs
from evaluation.minimal_pairs import Pair, Verdict
from inference.text import TextModel
from model import GPT, GPTConfig

PAIRS = minimal_pairs.make(80)


def words(text):
    return re.findall(r"[\w']+", text)


def test_there_are_as_many_of_each_kind_as_asked_for_and_always_the_same():
    kinds = [pair.kind for pair in PAIRS]
    assert len(PAIRS) == 560 and {kinds.count(kind) for kind in kinds} == {80}
    assert minimal_pairs.make(80) == PAIRS
    assert len(set(PAIRS)) == len(PAIRS)


def test_the_good_text_is_the_beginning_of_a_coherent_story():
    written = stories(minimal_pairs.SEED)
    book = [next(written) for _ in range(1000)]
    for pair in PAIRS:
        whole = next(text for text in book if text.startswith(pair.good))
        assert check(whole) == []


@pytest.mark.parametrize("kind", ["agreement", "article", "tense", "pronoun", "reference"])
def test_one_word_differs(kind):
    for pair in (pair for pair in PAIRS if pair.kind == kind):
        good, bad = words(pair.good), words(pair.bad)
        assert len(good) == len(bad)
        assert sum(a != b for a, b in zip(good, bad, strict=True)) == 1


def test_word_order_holds_the_same_words():
    for pair in (pair for pair in PAIRS if pair.kind == "word order"):
        assert pair.good != pair.bad and sorted(words(pair.good)) == sorted(words(pair.bad))


def test_the_checker_hears_wrong_articles_pronouns_and_names():
    for kind, complaint in (
        ("article", "takes the other article"),
        ("pronoun", "is called"),
        ("reference", "nowhere"),
    ):
        for pair in (pair for pair in PAIRS if pair.kind == kind):
            assert not any(complaint in fault for fault in check(pair.good))
            assert any(complaint in fault for fault in check(pair.bad))


def test_a_model_is_judged_by_the_likelier_text(corpus):
    tokenizer = Tokenizer.load(corpus / "tokenizer.json")
    gpt = GPT(
        GPTConfig(vocab_size=tokenizer.vocab_size, block_size=32, n_layer=1, n_head=2, n_embd=16)
    ).eval()
    pairs = [Pair("a", "One day", "day One"), Pair("b", "Tom ran.", "Tom ran ran.")]
    for verdict in minimal_pairs.judge(TextModel(gpt, tokenizer), pairs):
        for text, found in ((verdict.pair.good, verdict.good), (verdict.pair.bad, verdict.bad)):
            ids = torch.tensor([tokenizer.special_tokens["<|endoftext|>"], *tokenizer.encode(text)])
            with torch.no_grad():
                log_p = gpt(ids[None, :-1])[0][0].log_softmax(-1).gather(-1, ids[1:, None])
            assert found == pytest.approx(log_p.sum().item(), rel=1e-5)
        assert verdict.passed == (verdict.good > verdict.bad)


def test_accuracy_counts_by_kind_and_a_tie_is_no_pass():
    a, b = Pair("a", "x", "y"), Pair("b", "x", "y")
    verdicts = [Verdict(a, -1, -2), Verdict(a, -2, -2), Verdict(b, -1, -3), Verdict(b, -2, -3)]
    assert minimal_pairs.accuracy(verdicts) == {"a": 0.5, "b": 1.0, "all": 0.75}


def test_pairs_of_ones_own(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("plural\tTwo cats sit.\tTwo cats sits.\n")
    assert minimal_pairs.read(path) == [Pair("plural", "Two cats sit.", "Two cats sits.")]
    for content in ("one\ttwo\n", "kind\tsame\tsame\n", ""):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"pairs\.tsv"):
            minimal_pairs.read(path)
