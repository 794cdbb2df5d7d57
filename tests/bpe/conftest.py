"""Tokenizers with their peers, made once for all tests of this room."""

import random

import pytest

from bpe import Tokenizer
from bpe.trainer import learn_merges
from tests.bpe.peers import NASTY, Peers, make_peers, official_patterns


@pytest.fixture(scope="session")
def sharp(tmp_path_factory) -> dict[str, Peers]:
    """Return peers whose merges were learnt across all borders, so that a border in the wrong place changes the ids."""
    choose = random.Random(0)
    texts = ["".join(choose.choices(NASTY, k=60)) for _ in range(300)]
    merges = learn_merges({text.encode(): 1 for text in texts}, 3000)
    folder = tmp_path_factory.mktemp("sharp")
    special = ["<|endoftext|>", "<| a b |>"]
    return {
        name: make_peers(Tokenizer(merges, special, name), folder / f"{name}.json")
        for name in official_patterns()
    }


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory) -> Peers:
    """GPT-2's own vocabulary."""
    return make_peers(Tokenizer.gpt2(), tmp_path_factory.mktemp("gpt2") / "tokenizer.json")
