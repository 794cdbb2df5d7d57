"""Instruction data: what is learned ends with the turn, what is held out stays out, nothing is half written."""

import json

import numpy as np
import pytest
import transformers

from alignment.__main__ import main
from alignment.instructions import read_prompts
from alignment.tasks import passes
from data.tokenfile import TokenFile, open_mask
from inference.chat import ChatTemplate, Message

SIZES = ["--count", "60", "--arithmetic", "0.9", "--prompts", "20", "--tests", "10", "--val-fraction", "0.1"]


def conversations(directory, split):
    """Return (ids, mask) of every conversation of a split, without the token that closes it."""
    file = TokenFile.open(directory, split)
    ends = np.flatnonzero(file.tokens == file.meta.end_of_text)
    ids, masks = (np.split(each, ends + 1)[:-1] for each in (file.tokens, open_mask(file)))
    assert all(not mask[-1] for mask in masks)  # the end of text closes a conversation, it is no answer
    return [(a[:-1].tolist(), b[:-1].tolist()) for a, b in zip(ids, masks, strict=True)]


def test_every_answer_is_learned_up_to_the_end_of_its_turn(chat_data):
    template = ChatTemplate.load(chat_data)
    for ids, mask in conversations(chat_data, "train"):
        runs = np.diff([0, *mask, 0])
        assert 0 < sum(mask) < len(mask)
        for start, end in zip(np.flatnonzero(runs == 1), np.flatnonzero(runs == -1), strict=True):
            assert ids[start - 1] == template.tokenizer.special_tokens["<|assistant|>"]
            broken_off = ids[end:] == [
                template.end_of_turn
            ]  # by --unfinished: the end of the turn is not learned
            assert broken_off or ids[end - 1] == template.end_of_turn


def test_all_stories_that_can_break_off_do_or_none(base, tmp_path):
    flags = ["data", "--base", str(base), *SIZES, "--arithmetic", "0", "--unfinished"]
    for share in "0", "1":
        main([*flags, share, "--out", str(tmp_path / share)])
    template = ChatTemplate.load(tmp_path / "0")
    whole, parts = (conversations(tmp_path / share, "train") for share in "01")
    shorter = 0
    for (ids, _), (part, mask) in zip(whole, parts, strict=True):
        text, beginning = (template.tokenizer.decode(each).removesuffix("<|end|>") for each in (ids, part))
        assert text.startswith(beginning)
        assert mask[-1] == (text == beginning)  # the end of the turn is learned where the story ends
        shorter += text != beginning
    assert shorter > len(whole) / 3


def test_conversations_are_those_that_the_template_makes(chat_data):
    template = ChatTemplate.load(chat_data)
    (ids, mask), *_ = conversations(chat_data, "val")
    text = template.tokenizer.decode(ids)
    asked, answer = text.removeprefix("<|user|>").removesuffix("<|end|>").split("<|end|><|assistant|>")
    expected = template.encode([Message("user", asked), Message("assistant", answer)])
    assert ([template.end_of_text, *ids], [0, *mask]) == expected


def test_transformers_reads_the_tokenizer(chat_data):
    theirs = transformers.AutoTokenizer.from_pretrained(chat_data)
    ours = ChatTemplate.load(chat_data)
    messages = [Message("user", "What is 1 + 2?")]
    wanted = theirs.apply_chat_template([vars(messages[0])], add_generation_prompt=True)["input_ids"]
    assert ours.prompt(messages) == wanted
    assert theirs.model_max_length == 96 and theirs.eos_token_id == ours.end_of_turn


def test_test_prompts_are_not_in_the_data(chat_data):
    text = ChatTemplate.load(chat_data).tokenizer.decode(TokenFile.open(chat_data, "train").tokens)
    counts = {"test": 10, "wordings": 10, "arithmetic": 10, "train": 20}
    for name, count in counts.items():
        prompts = read_prompts(chat_data / "prompts" / f"{name}.jsonl")
        assert len(prompts) == count
        for prompt in prompts:
            assert not passes("", prompt.check)
            if name in ("test", "arithmetic"):
                assert f"<|user|>{prompt.messages[-1].content}<|end|>" not in text


def test_workers_change_nothing(base, chat_data, tmp_path):
    main(["data", "--base", str(base), "--out", str(tmp_path / "chat"), *SIZES, "--workers", "2"])
    for name in ("train.bin", "val.mask", "prompts/train.jsonl", "prompts/test.jsonl", "meta.json"):
        assert (tmp_path / "chat" / name).read_bytes() == (chat_data / name).read_bytes()


ALPACA = [{"instruction": f"Say {n}", "input": "", "output": str(n)} for n in range(8)]


def from_file(base, tmp_path, content, *flags):
    (tmp_path / "mine.json").write_text(json.dumps(content))
    base = ["--base", str(base), "--out", str(tmp_path / "chat"), "--source", str(tmp_path / "mine.json")]
    return ["data", *base, "--val-fraction", "0.25", *flags]


def test_data_of_files(base, tmp_path):
    main(from_file(base, tmp_path, ALPACA))
    assert [len(conversations(tmp_path / "chat", split)) for split in ("train", "val")] == [6, 2]
    assert not (tmp_path / "chat" / "prompts").exists()


def test_conversations_longer_than_the_context_are_counted(base, tmp_path, capsys):
    long = [{"instruction": "x " * 90, "output": "y"}]
    main(from_file(base, tmp_path, ALPACA + long))
    assert "1 conversations are longer than the context of 96 tokens" in capsys.readouterr().out


def test_bad_data_is_refused_and_nothing_is_written(base, tmp_path, refused):
    told = refused(main, *from_file(base, tmp_path, [*ALPACA, {"instruction": "x", "output": ""}]))
    assert "mine.json, row 9: the answer in turn 2 is empty" in told
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


def test_nothing_is_overwritten(base, chat_data, refused):
    before = (chat_data / "train.bin").read_bytes()
    assert "exists already" in refused(main, "data", "--base", str(base), "--out", str(chat_data))
    assert (chat_data / "train.bin").read_bytes() == before


def test_a_base_without_weights_is_refused(tmp_path, refused):
    told = refused(main, "data", "--base", str(tmp_path), "--out", str(tmp_path / "chat"))
    assert "holds no" in told and not (tmp_path / "chat").exists()


@pytest.mark.parametrize(
    "flags", ["--count 0", "--arithmetic 2", "--val-fraction 1", "--tests 0", "--seed -1"], ids=str
)
def test_impossible_options_are_refused(refused, flags):
    assert flags.split()[0] in refused(main, "data", *flags.split())
