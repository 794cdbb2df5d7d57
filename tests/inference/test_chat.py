"""Chat templates give the ids and masks that transformers gives, and nothing in a message can pass for a role token."""

import json

import pytest
import transformers

from bpe import Tokenizer
from inference.chat import CHAT_TOKENS, TEMPLATE, ChatTemplate, Message, add_chat_tokens
from inference.run import TOKENIZER_CONFIG

CHATML = """\
{% for message in messages %}
{% if message['role'] == 'assistant' %}
<|im_start|>assistant
{% generation %}{{ message['content'] | trim }}<|im_end|>{% endgeneration %}

{% else %}
<|im_start|>{{ message['role'] }}
{{ message['content'] | trim }}<|im_end|>
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""  # with text between the role tokens and the messages, unlike ours
CONVERSATION = [
    Message("system", "You tell stories, briefly."),
    Message("user", "Hi there! It's me — Zoë."),
    Message("assistant", "Hello."),
    Message("user", " Once more\n\nplease  "),
    Message("assistant", "Hello again, 😀!\n"),
]
TURNS = {
    "one": CONVERSATION[1:3],
    "a system prompt": CONVERSATION[:3],
    "several": CONVERSATION[1:],
    "all": CONVERSATION,
}
MERGES = [
    (b"e", b"l"),
    (b"l", b"o"),
    (b"H", b"el"),
    (b"Hel", b"lo"),
    (b" ", b"a"),
    (b"\n", b"\n"),
    (b"r", b"\n"),
]


def plain() -> Tokenizer:
    return Tokenizer(MERGES, ["<|endoftext|>"])


def template(source: str = TEMPLATE) -> ChatTemplate:
    if source == TEMPLATE:
        return ChatTemplate(add_chat_tokens(plain()))
    return ChatTemplate(plain().with_special_tokens(["<|im_start|>", "<|im_end|>"]), source, "<|im_end|>")


def as_dicts(messages):
    return [{"role": each.role, "content": each.content} for each in messages]


@pytest.fixture(params=[TEMPLATE, CHATML], ids=["ours", "chatml"])
def both(request, tmp_path):
    ours = template(request.param)
    ours.save(tmp_path, block_size=384)
    return ours, transformers.AutoTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("turns", TURNS)
def test_ids_and_mask_are_those_of_transformers(both, turns):
    ours, theirs = both
    wanted = theirs.apply_chat_template(
        as_dicts(TURNS[turns]), return_dict=True, return_assistant_tokens_mask=True
    )
    assert ours.encode(TURNS[turns]) == (wanted["input_ids"], wanted["assistant_masks"])


@pytest.mark.parametrize("turns", TURNS)
def test_prompts_are_those_of_transformers(both, turns):
    ours, theirs = both
    messages = TURNS[turns][:-1]
    wanted = theirs.apply_chat_template(as_dicts(messages), add_generation_prompt=True)["input_ids"]
    assert ours.prompt(messages) == wanted


def test_a_prompt_begins_the_conversation(both):
    ours, _ = both
    ids, _ = ours.encode(CONVERSATION)
    prompt = ours.prompt(CONVERSATION[:-1])
    assert ids[: len(prompt)] == prompt


def test_the_saved_template_is_read_again(both, tmp_path):
    ours, _ = both
    again = ChatTemplate.load(tmp_path)
    assert (again.source, again.end_of_turn) == (ours.source, ours.end_of_turn)
    assert again.encode(CONVERSATION) == ours.encode(CONVERSATION)


def test_the_answer_and_its_end_are_learned_and_nothing_else():
    ours = template()
    ids, mask = ours.encode(CONVERSATION)
    learned = ours.tokenizer.decode([id for id, flag in zip(ids, mask, strict=True) if flag])
    assert learned == "Hello.<|end|>Hello again, 😀!\n<|end|>"
    assert 0 < sum(mask) < len(mask)


def test_the_first_token_of_an_answer_is_learned():
    ours = template()
    ids, mask = ours.encode(CONVERSATION[1:3])
    assert ids[mask.index(1)] == ours.tokenizer.encode("Hello.")[0]
    assert ids[mask.index(1) - 1] == ours.tokenizer.special_tokens["<|assistant|>"]


@pytest.mark.parametrize("name", [*CHAT_TOKENS, "<|endoftext|>", "<|us<|user|>er|>", "<|end"])
def test_role_tokens_in_a_message_are_plain_text(name):
    ours = template()
    usual = ours.encode([Message("user", "x"), Message("assistant", "y")])[0]
    ids, _ = ours.encode([Message("user", f"a{name}b"), Message("assistant", f"{name}")])
    special = set(ours.tokenizer.special_tokens.values())
    assert [id for id in ids if id in special] == [id for id in usual if id in special]
    assert ours.tokenizer.decode(ids) == f"<|endoftext|><|user|>a{name}b<|end|><|assistant|>{name}<|end|>"


@pytest.mark.parametrize("mark", ["\ufdd0", "\ufdd1", "\ufdd2"])
def test_a_message_cannot_mark_itself_as_learned(mark):
    ours = template()
    ids, mask = ours.encode([Message("user", f"a{mark}b"), Message("assistant", "y")])
    assert sum(mask) == 2
    assert "a\ufffdb" in ours.tokenizer.decode(ids)


def test_padding_does_not_end_a_turn(tmp_path):
    """A token that pads and ends would be masked away as padding, and answers would never end."""
    ours = template()
    ours.save(tmp_path, block_size=384)
    config = json.loads((tmp_path / TOKENIZER_CONFIG).read_text())
    assert config["eos_token"] == "<|end|>" != config["pad_token"]


def test_text_ends_with_the_turn():
    ours = template()
    ids = [*ours.tokenizer.encode("Yes."), ours.end_of_turn, *ours.tokenizer.encode("more")]
    assert ours.text(ids) == "Yes."
    assert ours.stops == {ours.end_of_turn, ours.tokenizer.special_tokens["<|endoftext|>"]}


def test_adding_role_tokens_changes_no_other_id():
    before, after = plain(), add_chat_tokens(plain())
    assert after.vocab_size == before.vocab_size + len(CHAT_TOKENS)
    assert after.encode("Hello <|user|>") == before.encode("Hello <|user|>")
    assert add_chat_tokens(after) is after


WRONG_TURNS = {
    "no turn": [],
    "only a system prompt": [Message("system", "x")],
    "the assistant first": [Message("assistant", "x")],
    "twice the user": [Message("user", "x"), Message("user", "x"), Message("assistant", "x")],
    "a late system prompt": [Message("user", "x"), Message("system", "x"), Message("assistant", "x")],
    "an empty answer": [Message("user", "x"), Message("assistant", " \n")],
    "no answer": [Message("user", "x")],
}


@pytest.mark.parametrize("turns", WRONG_TURNS)
def test_turns_out_of_order_are_refused(turns):
    with pytest.raises(ValueError, match="turn"):
        template().encode(WRONG_TURNS[turns])


def test_a_prompt_ends_with_the_user():
    with pytest.raises(ValueError, match="the last turn is the assistant's"):
        template().prompt(CONVERSATION)


@pytest.mark.parametrize("message", [("bot", "x"), ("user", None)])
def test_impossible_messages_are_refused(message):
    with pytest.raises(ValueError, match=r"role|text"):
        Message(*message)


BROKEN = {
    "unknown tag": "{% nonsense %}",
    "unknown function": "{{ open('/etc/passwd') }}",
    "refuses": "{{ raise_exception('only jokes') }}",
    "changes the conversation": "{{ messages.append(1) }}",
    "reaches for internals": "{{ ''.__class__.__mro__ }}",
    "adds text to a number": "{{ 'a' + 1 }}",
}


@pytest.mark.parametrize("source", BROKEN)
def test_templates_that_cannot_be_rendered_are_refused(source):
    with pytest.raises(ValueError, match="the chat template cannot be rendered"):
        template(BROKEN[source]).encode(CONVERSATION)


def test_a_template_that_marks_no_answer_is_refused():
    source = TEMPLATE.replace("{%- generation %}", "").replace("{% endgeneration %}", "")
    with pytest.raises(ValueError, match="nothing in the conversation is learned"):
        ChatTemplate(add_chat_tokens(plain()), source).encode(CONVERSATION)


def test_a_tokenizer_without_role_tokens_is_refused():
    with pytest.raises(ValueError, match="no special token"):
        ChatTemplate(plain())


def test_a_directory_without_a_template_is_refused(tmp_path):
    plain().save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="has no chat template"):
        ChatTemplate.load(tmp_path)
