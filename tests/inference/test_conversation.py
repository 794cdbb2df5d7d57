"""A conversation in the terminal keeps its turns, forgets the oldest first, and prompts as the template says."""

import pytest
import torch

import sample
from bpe import Tokenizer
from inference.chat import ChatTemplate, Message, add_chat_tokens
from inference.conversation import Conversation
from inference.text import TextModel
from model import GPT, GPTConfig
from model.generate import Rules


@pytest.fixture
def conversation():
    torch.manual_seed(1)
    template = ChatTemplate(add_chat_tokens(Tokenizer([], ["<|endoftext|>"])))
    gpt = GPT(GPTConfig(vocab_size=261, block_size=64, n_layer=1, n_head=2, n_embd=16)).eval()
    return Conversation(TextModel(gpt, template.tokenizer), template, Rules(), 8, seed=1)


def answer(conversation, line):
    return "".join(conversation.respond(line))


def test_answers_are_kept_as_turns(conversation):
    first = answer(conversation, "Hi")
    answer(conversation, "And?")
    assert [each.role for each in conversation.messages] == ["user", "assistant"] * 2
    assert conversation.messages[1].content == first


def test_again_answers_the_same_request(conversation):
    answer(conversation, "Hi")
    answer(conversation, "/again")
    assert [each.content for each in conversation.messages[::2]] == ["Hi"]


def test_the_oldest_turns_are_forgotten_and_the_request_never(conversation):
    answer(conversation, "/system Be kind.")
    for number in range(6):
        answer(conversation, f"request {number}")
        conversation.messages[-1] = Message("assistant", "yes, yes, yes")
    conversation.messages.append(Message("user", "the last one"))
    text = conversation.template.tokenizer.decode(conversation._prompt())
    assert text.startswith("<|endoftext|><|system|>Be kind.<|end|><|user|>")
    assert text.endswith("<|user|>the last one<|end|><|assistant|>")
    assert "request 0" not in text


def test_an_interrupted_answer_is_kept(conversation):
    pieces = conversation.respond("Hi")
    said = "".join(next(pieces) for _ in range(4))
    pieces.close()
    assert said.strip() and conversation.messages[-1] == Message("assistant", said)


@pytest.mark.parametrize("line", ["", "/again", "/undo", "/system", "x" * 80])
def test_what_cannot_be_done_changes_nothing(conversation, line):
    with pytest.raises(ValueError, match=r"/help|shorter"):
        answer(conversation, line)
    assert conversation.messages == []


def test_commands(conversation):
    answer(conversation, "Hi")
    assert "new" in answer(conversation, "/new") and conversation.messages == []
    assert "/system TEXT" in answer(conversation, "/help")


def test_a_model_without_a_template_is_refused(babble, refused):
    assert "has no chat template" in refused(sample.main, "--chat", "--run", str(babble))
