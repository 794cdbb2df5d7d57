"""Text as it is sampled: whole characters, stop strings, reasons to end."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from bpe import Tokenizer
from evaluation.losses import sample_stories
from inference.text import Continuation, TextModel
from model import GPT, GPTConfig
from model.generate import Rules, stream

BYTES = Tokenizer([])


@given(st.text("abé€😀", max_size=30), st.lists(st.text("abé€", min_size=1, max_size=4), max_size=3))
def test_the_pieces_are_the_text_before_its_first_stop(text, stops):
    continuation, pieces = Continuation(BYTES, stops), []
    for id in text.encode():
        pieces.append(continuation.add(id))
    pieces.append(continuation.finish())
    found = [at for at in map(text.find, stops) if at >= 0]
    first_end = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=None)
    shown = "".join(pieces)
    assert shown == continuation.text
    if not found:
        assert shown == text and not continuation.stopped
    else:  # as it was read when the first stop was complete, the earliest beginning counts
        seen = text[:first_end]
        assert shown == seen[: min(at for at in map(seen.find, stops) if at >= 0)]
        assert continuation.stopped


def test_only_the_beginning_of_a_stop_is_held_back():
    continuation = Continuation(BYTES, ["abc"])
    assert [continuation.add(id) for id in b"xababd"] == ["x", "", "", "ab", "", "abd"]


def test_bytes_that_are_no_text_are_replaced_and_not_lost():
    continuation = Continuation(BYTES)
    assert continuation.add(0xC3) == ""
    assert continuation.finish() == "\ufffd"


@pytest.fixture
def text_model(corpus):
    tokenizer = Tokenizer.load(corpus / "tokenizer.json")
    config = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=32, n_layer=1, n_head=2, n_embd=16)
    return TextModel(GPT(config).eval(), tokenizer)


def test_a_batch_tells_what_the_model_says(text_model):
    prompts = [text_model.encode("One day"), text_model.encode("")]
    continuations = text_model.generate(prompts, 60, Rules(), seeds=[3, 9])
    pieces = {0: "", 1: ""}
    for drawn in continuations:
        for row, piece in drawn.items():
            pieces[row] += piece
    for row, seed in enumerate([3, 9]):
        ids = list(stream(text_model.model, prompts[row], 60, stop=text_model.end, seed=seed))
        assert pieces[row] == continuations.rows[row].text == text_model.tokenizer.decode(ids)
        assert continuations.reason(row) == ("length" if len(ids) == 60 else "end")


def test_ignoring_the_end_tells_it_and_goes_on(text_model):
    rows = text_model.generate([text_model.encode("")], 2000, Rules(), seeds=[0], ignore_eot=True).finish()
    assert len(rows[0].ids) == 2000
    assert rows[0].text.count("<|endoftext|>") == rows[0].ids.count(text_model.end) > 0


def test_a_tokenizer_without_an_end_starts_from_the_prompt_itself(text_model):
    bare = TextModel(text_model.model, BYTES)
    assert bare.encode("hi") == list(b"hi")
    with pytest.raises(ValueError, match="the prompt is empty"):
        bare.encode("")


def test_a_document_begins_with_the_token_that_the_tokenizer_names(tmp_path):
    """Its id is the one that Hugging Face's library reads for this name."""
    tokenizer = Tokenizer([], ["<|user|>", "<|im_end|>"], end_of_text="<|im_end|>")
    tokenizer.save(tmp_path / "tokenizer.json")
    end = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).token_to_id("<|im_end|>")
    config = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=8, n_layer=1, n_head=1, n_embd=8)
    text_model = TextModel(GPT(config).eval(), tokenizer)
    assert text_model.end == end
    assert text_model.encode("a") == [end, ord("a")]
    assert len(sample_stories(text_model.model, tokenizer, 2, temperature=1.0, seed=1)) == 2
