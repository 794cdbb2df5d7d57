"""Scores against torch's cross entropy and against sums of the probability view."""

import math

import pytest
import torch
from torch.nn import functional as F

from bpe import Tokenizer
from inference import scoring
from inference.probabilities import token_choices
from inference.text import TextModel
from model import GPT, GPTConfig


@pytest.fixture(scope="module")
def text_model(corpus):
    tokenizer = Tokenizer.load(corpus / "tokenizer.json")
    torch.manual_seed(0)
    gpt = GPT(
        GPTConfig(vocab_size=tokenizer.vocab_size, block_size=16, n_layer=2, n_head=2, n_embd=32)
    ).eval()
    with torch.no_grad():
        gpt.wte.weight.mul_(20)
    return TextModel(gpt, tokenizer)


def test_a_short_text_scores_as_cross_entropy_says(text_model):
    texts = ["One day", "Tom", "a b c d é"]
    for score, text in zip(scoring.score_texts(text_model, texts), texts, strict=True):
        ids = torch.tensor(text_model.encode(text))
        with torch.no_grad():
            loss = F.cross_entropy(text_model.model(ids[None, :-1])[0][0].double(), ids[1:], reduction="sum")
        assert score.log_probability == pytest.approx(-loss.item(), rel=1e-5)
        assert score.tokens == len(ids) - 1
        assert score.perplexity == pytest.approx(math.exp(loss.item() / score.tokens), rel=1e-5)
        assert score.bits_per_byte == pytest.approx(loss.item() / math.log(2) / len(text.encode()), rel=1e-5)


def test_each_token_of_a_long_text_is_predicted_once_from_half_a_context_at_least(text_model):
    rows = [torch.randint(300, (n,)).tolist() for n in (1, 2, 16, 17, 18, 61)]
    for ids, found in zip(rows, scoring.log_probabilities(text_model.model, rows), strict=True):
        assert len(found) == len(ids) - 1
        for at in range(1, len(ids)):
            start = max(0, -(-(at - 16) // 8) * 8)
            with torch.no_grad():
                logits = text_model.model(torch.tensor([ids[start:at]]))[0][0, -1]
            assert at - start >= min(at, 8)
            assert found[at - 1].item() == pytest.approx(logits.log_softmax(-1)[ids[at]].item(), abs=1e-4)


def test_the_probability_view_shows_the_same_probabilities(text_model):
    ids = text_model.encode("One day, Tom was very sad. Then Tom was very happy and he ran home.")
    choices = token_choices(text_model, ids, count=2)
    expected = scoring.log_probabilities(text_model.model, [ids])[0].exp()
    torch.testing.assert_close(
        torch.tensor([s.probability for s in choices]).double(), expected, atol=1e-5, rtol=1e-4
    )
    assert (
        "".join(s.token for s in choices)
        == "One day, Tom was very sad. Then Tom was very happy and he ran home."
    )
    for token in choices:
        assert len(token.runners_up) == 2 and token.token not in dict(token.runners_up)
        assert token.runners_up[0][1] >= token.runners_up[1][1]
    assert [s.token for s in token_choices(text_model, ids, begin=5)] == [s.token for s in choices[4:]]


def test_arguments_are_texts_or_files_of_lines(tmp_path):
    (tmp_path / "lines.txt").write_text("first\n\nsecond line\n")
    long = "no file has such a name " * 50
    assert scoring.texts_of([str(tmp_path / "lines.txt"), "third", long, "a\0b"]) == [
        "first", "second line", "third", long, "a\0b"
    ]  # fmt: skip
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="nothing to score"):
        scoring.texts_of([str(tmp_path / "empty.txt")])
