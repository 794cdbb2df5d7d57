"""An interactive session, line by line."""

import pytest

from bpe import Tokenizer
from inference.interactive import Dialogue, answer, run
from inference.text import TextModel
from model import GPT, GPTConfig
from model.generate import Rules


@pytest.fixture
def dialogue(corpus):
    tokenizer = Tokenizer.load(corpus / "tokenizer.json")
    config = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=32, n_layer=1, n_head=2, n_embd=16)
    return Dialogue(TextModel(GPT(config).eval(), tokenizer), Rules(), 10, seed=1)


def say(dialogue, line):
    return "".join(dialogue.respond(line))


def test_turns_grow_the_story_and_undo_takes_them_back(dialogue):
    first = say(dialogue, "One day")
    assert dialogue.story == "One day" + first
    second = say(dialogue, "")
    assert dialogue.story == "One day" + first + second
    assert say(dialogue, "/undo") == dialogue.story == "One day" + first
    assert say(dialogue, "/show") == dialogue.story
    say(dialogue, "/new")
    assert dialogue.story == ""


def test_the_story_may_grow_past_the_context(dialogue):
    for _ in range(12):
        say(dialogue, " and then")
    assert dialogue.story.count(" and then") >= 12


def test_again_tells_the_last_turn_anew_and_a_seed_repeats_it(dialogue):
    first = say(dialogue, "One day")
    assert say(dialogue, "/again") != first
    say(dialogue, "/set seed 1")
    assert say(dialogue, "/again") == first


def test_rules_change_between_turns(dialogue):
    assert say(dialogue, "/set temperature 0") == "temperature is 0.0"
    assert say(dialogue, "/set top_k none") == "top_k is None"
    greedy = say(dialogue, "One day")
    say(dialogue, "/set seed 77")
    assert say(dialogue, "/again") == greedy
    say(dialogue, "/set tokens 1")
    assert len(say(dialogue, "/again")) < len(greedy)


@pytest.mark.parametrize(
    "line, complaint",
    [
        ("/undo", "nothing to undo"),
        ("/again", "nothing to sample again"),
        ("/dance", "unknown command /dance"),
        ("/undo 3", "/undo takes no argument"),
        ("/set", "give /set NAME VALUE"),
        ("/set flux 3", "give /set NAME VALUE"),
        ("/set temperature hot", "temperature is 'hot': give a number"),
        ("/set temperature nan", "temperature is nan"),
        ("/set top_k 1.5", "top_k is '1.5': give a whole number"),
        ("/set top_p 0", "top_p is 0.0"),
        ("/set tokens 0", "tokens is 0"),
        ("/set seed 99999999999999999999", "it must be at least 0, and below"),
    ],
)
def test_a_mistake_is_said_and_changes_nothing(dialogue, capsys, line, complaint):
    rules = dialogue.rules
    with pytest.raises(ValueError, match=complaint):
        say(dialogue, line)
    assert dialogue.rules == rules and dialogue.story == ""
    answer(dialogue, line)
    assert capsys.readouterr().out.startswith("error: ")


def test_an_interrupted_turn_keeps_what_was_said_and_can_be_undone(dialogue):
    turn = dialogue.respond("One day")
    next(turn), next(turn)
    turn.close()
    assert dialogue.story.startswith("One day")
    say(dialogue, "/undo")
    assert dialogue.story == ""


def test_ctrl_c_drops_a_line_and_keeps_the_story(dialogue, monkeypatch, capsys):
    lines = iter(["One day", KeyboardInterrupt, "/show", EOFError])

    def typed(prompt: str) -> str:
        line = next(lines)
        if not isinstance(line, str):
            raise line
        return line

    monkeypatch.setattr("builtins.input", typed)
    run(dialogue)
    assert "/quit leaves" in (out := capsys.readouterr().out) and out.rstrip().endswith(
        dialogue.story.rstrip()
    )
    assert dialogue.story.startswith("One day")
