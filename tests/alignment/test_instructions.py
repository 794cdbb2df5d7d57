"""Formats that others use are read as the `datasets` library reads them, and written so that it reads them again."""

import json

import datasets
import pytest

from alignment import instructions
from alignment.instructions import (
    Preference,
    Prompt,
    alpaca_row,
    chat_row,
    preference_row,
    prompt_row,
    read_conversations,
    read_preferences,
    read_prompts,
    rows,
    write_rows,
)
from inference.chat import Message

USER, ANSWER = Message("user", "Hi — Zoë"), Message("assistant", "Hello\n😀")
TALKS = [[USER, ANSWER], [USER, ANSWER, USER, ANSWER], [Message("system", "Be kind."), USER, ANSWER]]
PREFERENCE = Preference((USER,), "Hello", "Go away")


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_chat_files_are_those_of_datasets(tmp_path, suffix):
    path = tmp_path / f"talks.{suffix}"
    write_rows(path, map(chat_row, TALKS))
    assert list(read_conversations(path)) == TALKS
    theirs = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert list(read_conversations(theirs)) == TALKS


def test_alpaca_rows(tmp_path):
    path = tmp_path / "alpaca.json"
    content = [
        {"instruction": "Translate.", "input": "Hund", "output": "dog"},
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {"instruction": "Hi", "output": "Hello"},
    ]
    path.write_text(json.dumps(content))
    read = list(read_conversations(path))
    assert [talk[0].content for talk in read] == ["Translate.\n\nHund", "Hi", "Hi"]
    assert alpaca_row(read[1]) == content[1]
    assert list(read_conversations(datasets.Dataset.from_list(content[:2]))) == read[:2]


@pytest.mark.parametrize("talk", TALKS[1:], ids=["two turns", "a system prompt"])
def test_alpaca_cannot_hold_more_than_one_turn(talk):
    with pytest.raises(ValueError, match="write this conversation as chat"):
        alpaca_row(talk)


PREFERENCES = {
    "texts": {"prompt": USER.content, "chosen": "Hello", "rejected": "Go away"},
    "conversational": preference_row(PREFERENCE),
    "the prompt within": {
        name: [
            {"role": "user", "content": USER.content},
            {"role": "assistant", "content": getattr(PREFERENCE, name)},
        ]
        for name in ("chosen", "rejected")
    },
}


@pytest.mark.parametrize("form", PREFERENCES)
def test_preferences(form):
    assert list(read_preferences([PREFERENCES[form]])) == [PREFERENCE]


def test_prompts(tmp_path):
    prompt = Prompt((USER,), {"task": "stories", "constraints": {"name": "Lily"}})
    write_rows(tmp_path / "prompts.jsonl", [prompt_row(prompt)])
    assert read_prompts(tmp_path / "prompts.jsonl") == [prompt]


def test_a_file_without_prompts_is_refused(tmp_path):
    (tmp_path / "prompts.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        read_prompts(tmp_path / "prompts.jsonl")


BAD_TALKS = {
    "neither": {"text": "Once"},
    "a role out of order": {"messages": [{"role": "assistant", "content": "x"}]},
    "an unknown role": {"messages": [{"role": "bot", "content": "x"}]},
    "no content": {"messages": [{"role": "user"}]},
    "an empty answer": {"instruction": "x", "output": ""},
    "messages of another type": {"messages": 3},
    "no object": [1],
}


@pytest.mark.parametrize("row", BAD_TALKS)
def test_bad_conversations_are_refused_with_their_row(row):
    with pytest.raises(ValueError, match="the data, row 2: "):
        list(read_conversations([chat_row(TALKS[0]), BAD_TALKS[row]]))


BAD_PREFERENCES = {
    "equal answers": {"prompt": "x", "chosen": "a", "rejected": "a"},
    "an empty answer": {"prompt": "x", "chosen": "a", "rejected": " "},
    "no messages": {"prompt": "x", "chosen": [], "rejected": []},
    "no rejected": {"prompt": "x", "chosen": "a"},
    "different beginnings": {"chosen": [{"role": "user", "content": c} for c in "ab"], "rejected": []},
    "a prompt that is answered": {
        "prompt": [{"role": "assistant", "content": "x"}],
        "chosen": "a",
        "rejected": "b",
    },
}


@pytest.mark.parametrize("row", BAD_PREFERENCES)
def test_bad_preferences_are_refused(row):
    with pytest.raises(ValueError, match="the data, row 1: "):
        list(read_preferences([BAD_PREFERENCES[row]]))


BAD_FILES = {"a.json": "{}", "b.json": "[", "c.jsonl": '{"messages": []}\n{'}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_text(BAD_FILES[name])
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        list(rows(tmp_path / name))


def test_the_hub_is_asked_for_its_dataset(monkeypatch):
    asked = []
    monkeypatch.setattr(instructions.hub, "load_name", lambda name, **_: asked.append(name) or [{"a": 1}])
    assert list(rows("hf:some/data:test")) == [{"a": 1}]
    assert (asked[0].dataset, asked[0].split) == ("some/data", "test")
