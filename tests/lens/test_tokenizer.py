"""The page's tokenizer equals ours on 10,000 texts, in every split pattern it knows."""

import json
import random
import subprocess
from pathlib import Path

import pytest

from bpe import Tokenizer, train
from bpe.pretokenize import PATTERNS
from lens import export
from tests.lens.asking import NODE, ask, small

SCRIPT = """
import { readFileSync } from "node:fs";
import { Tokenizer } from "./lens/page/tokenizer.js";
const { head, texts } = JSON.parse(readFileSync(0, "utf8"));
const tokenizer = new Tokenizer(head);
const found = texts.map((text) => tokenizer.encode(text, true));
process.stdout.write(JSON.stringify([found, found.map((ids) => tokenizer.decode(ids))]));
"""
ROOT = Path(__file__).parents[2]
SAMPLE = (
    "It's the girl's dog: 12,345 dogs\r\n\n  don't  run!  Ça va, größer? 日本語 наш дом. "
    "HELLO'S i'LL /a/b\t\x85\u2028 ſ 'ſ 🙂🏽 "
)
LETTERS = [
    *SAMPLE,
    *"  \n\n''sSdt0129",
    "\ufeff",
    "\u3000",
    "\x1c",
    "e\u0301",
    "<|endoftext|>",
    "\u017f",
    "٣",
    "ǅ",
    "\ue000",
]


def texts(count: int) -> list[str]:
    """Return texts of words, white space, digits and signs of several scripts in any order."""
    draw = random.Random(5)
    words = SAMPLE.split()
    made = []
    for _ in range(count):
        kinds = LETTERS if draw.random() < 0.5 else [*words, " ", " ", "\n", "."]
        made.append("".join(draw.choices(kinds, k=draw.randrange(1, 30))))
    return made


@pytest.mark.skipif(NODE is None, reason="there is no node to run the page's modules")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_ids_equal_ours(pattern):
    tokenizer = train([SAMPLE * 20], 500, pattern=pattern, progress=False)
    given = texts(2000)
    text = json.dumps({"head": export.tokenizer_head(tokenizer), "texts": given})
    done = subprocess.run(
        [NODE, "--input-type=module", "-e", SCRIPT], input=text, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    ids, decoded = json.loads(done.stdout)
    expected = tokenizer.encode_batch(given, allowed_special="all")
    wrong = [
        (text, ours, theirs)
        for text, ours, theirs in zip(given, ids, expected, strict=True)
        if ours != theirs
    ]
    assert not wrong, wrong[:3]
    assert decoded == [tokenizer.decode(row) for row in expected]


def test_the_prompt_begins_a_document_and_special_names_are_letters(tokenizer, tmp_path):
    head, data = export.payload(small(), tokenizer, tmp_path)
    text = "a<|endoftext|>é\u2028"
    asks = [("tokenize", {"text": text, "begin": True, "special": special}) for special in (False, True)]
    _, plain, special = ask(head, data, *asks)
    end = tokenizer.special_tokens["<|endoftext|>"]
    assert plain["ids"] == [end, *tokenizer.encode(text)]
    assert special["ids"] == [end, *tokenizer.encode(text, allowed_special="all")]
    assert [token["shown"] for token in special["tokens"][-5:]] == [
        "\\xc3",
        "\\xa9",
        "\\xe2",
        "\\x80",
        "\\xa8",
    ]


def test_the_tree_of_a_word_ends_in_its_tokens(tokenizer, tmp_path):
    head, data = export.payload(small(), tokenizer, tmp_path)
    nodes = ask(head, data, ("tree", {"word": " girls"}))[1]
    assert [node["id"] for node in nodes] == tokenizer.encode(" girls")

    def leaves(node):
        return [*leaves(node["left"]), *leaves(node["right"])] if "left" in node else [node["id"]]

    assert [id for node in nodes for id in leaves(node)] == list(b" girls")


def test_tokenizers_that_mean_other_things_to_a_browser_are_refused():
    with pytest.raises(ValueError, match="split pattern of its own"):
        export.tokenizer_head(Tokenizer([(b"h", b"i")], pattern=r"regex:\w+|\W"))
    with pytest.raises(ValueError, match="normalizes text"):
        export.tokenizer_head(Tokenizer([(b"h", b"i")], nfc=True))
