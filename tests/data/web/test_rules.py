"""The quality rules: strings and verdicts of CS336's public tests, and datatrove's filters on the same documents."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.web import rules
from data.web.synthetic import web
from data.web.text import Text

GOPHER = rules.choose(["gopher"])
ELLIPSIS = "The line here is an example of {}ending with an ellipsis..."
LONG = "extraordinarily extraordinarily extraordinarily longesest "


def lines(dotted: int, plain: int, what: str) -> str:
    return "\n".join([what] * dotted + ["This is a normal line."] * plain)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "This should definitely be a valid input text and of high quality according to Gopher rules. "
            * 100,
            None,
        ),
        ("The string you are reading is a short snippet of text.", "gopher.words"),
        ("The string you are reading is a long snippet of text." * 100, None),
        ("The string you are reading is too long of a text. " * 50_000, "gopher.words"),
        ("The string you are reading is an okay example of text. " * 5000, None),
        ("the be " * 100, "gopher.mean_word_length"),
        ("the with " * 100, None),
        ("the and " + LONG * 100, "gopher.mean_word_length"),
        ("the and this is fine " * 100, None),
        (
            lines(70, 30, "The line here is an example of line ending with an ellipsis..."),
            "gopher.ellipsis_lines",
        ),
        (lines(30, 230, "The line here is an example of ending with ellipsis..."), None),
        ("the and " + " ".join(["123"] * 80 + ["word"] * 12), "gopher.alphabetic_words"),
    ],
)
def test_gopher_as_in_cs336(text, expected):
    verdict = rules.judge(text, GOPHER)
    assert verdict == expected


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("# one # two # three # four # five # six # seven # " * 10 + "the and", "gopher.hashes"),
        ("- item of the list and more\n" * 20, "gopher.bullet_lines"),
        ("zebra lion tiger bear wolf " * 12, "gopher.stop_words"),
    ],
)
def test_each_gopher_rule_can_drop(text, rule):
    assert rules.judge(text, rules.choose(["gopher"])) == rule


def test_unknown_rules_are_named():
    with pytest.raises(ValueError, match=r"no rule 'gophre': use gopher, repetition"):
        rules.choose(["gophre"])
    with pytest.raises(ValueError, match=r"name one rule, such as gopher\.words"):
        rules.choose(["gopher"], {"gopher": {"low": 1}})


def test_c4_drops_lines():
    text = "\n".join(
        [
            "Home",
            "The first sentence stays here.",
            "Please enable JavaScript to see this page.",
            "This line has no end mark",
            "Read our privacy policy before you go on.",
            "Is it right? Yes!",
            "It goes on and on...",
            "w" * 1001 + " is a word.",
        ]
    )
    assert rules.c4_lines(text) == "The first sentence stays here.\nIs it right? Yes!"


@given(st.text())
def test_every_rule_takes_every_text(text):
    seen = Text(text)
    for rule in rules.RULES:
        value = rule.measure(seen)
        assert value >= 0
        assert rule.margin(value) >= 0
    assert rules.judge(text, rules.RULES) == rules.judge(text, rules.RULES)
    assert rules.c4_lines(rules.c4_lines(text)) == rules.c4_lines(text)


@given(st.lists(st.sampled_from(["a", "b", "c", "d", "."]), max_size=40), st.integers(2, 6))
def test_repeated_ngrams_by_their_definition(tokens, n):
    """A reading from left to right: an n-gram seen before counts whole, and reading goes on behind it."""
    from data.web.text import repeated_ngram_characters

    seen, place, characters = set(), 0, 0
    while place + n <= len(tokens):
        gram = " ".join(tokens[place : place + n])
        characters += n if gram in seen else 0
        place += n if gram in seen else 1
        seen.add(gram)
    assert repeated_ngram_characters(tokens, n) == characters


@pytest.mark.slow
def test_rules_are_steps_of_datatrove(tmp_path):
    """The example of docs/scaling-out.md, and the same step in a pipeline of datatrove's."""
    pytest.importorskip("datatrove")
    pytest.importorskip("orjson")
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.writers import JsonlWriter

    page = (Path(__file__).parents[3] / "docs" / "scaling-out.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    made: dict = {}
    exec(example, made)
    texts = [page.text for page in web(60, seed=5)]
    documents = [made["Document"](text=text, id=str(number)) for number, text in enumerate(texts)]
    steps = [documents, made["step"], JsonlWriter(str(tmp_path), "out.jsonl", compression=None)]
    LocalPipelineExecutor(steps, logging_dir=str(tmp_path / "logs")).run()
    kept = [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert kept == [text for text in texts if rules.judge(text, rules.choose(rules.FAMILIES)) is None]


@pytest.mark.slow
def test_verdicts_equal_datatroves():
    """Each family keeps and drops the same made-up pages as datatrove's filter; C4's lines first."""
    datatrove = pytest.importorskip("datatrove.pipeline.filters")
    pytest.importorskip("spacy")
    from datatrove.data import Document

    peers = {
        "gopher": datatrove.GopherQualityFilter(),
        "repetition": datatrove.GopherRepetitionFilter(),
        "fineweb": datatrove.FineWebQualityFilter(),
        "c4": datatrove.C4QualityFilter(),
    }
    texts = [page.text for page in web(300, seed=3)]
    for family, peer in peers.items():
        chosen = rules.choose([family])
        for number, text in enumerate(texts):
            theirs = peer.filter(Document(text=text, id=str(number)))
            ours = rules.judge(rules.c4_lines(text) if family == "c4" else text, chosen)
            assert (theirs is True) == (ours is None) or explained(text, theirs), (family, theirs, ours, text)


def explained(text: str, theirs: tuple[bool, str] | bool) -> bool:
    """True for the one difference on purpose: there, punctuation marks count as words without a letter."""
    tokens = Text(text).tokens
    letters = sum(any(map(str.isalpha, token)) for token in tokens) / len(tokens)
    return theirs == (False, "gopher_below_alpha_threshold") and letters < 0.82
