"""Cleaning repairs what was broken and nothing else."""

import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.clean import SeenHashes, clean

GOOD = "“Hi,” said José – it’s a “café”… Привет, 你好! naïve – 5 € †"


def misread(text):
    """UTF-8 read as Windows-1252, as browsers do it: bytes without a character become control characters."""
    return "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in text.encode())


def lossy(text):
    """Return the same where such bytes are lost: the damage in TinyStories."""
    return text.encode().decode("cp1252", "ignore")


@pytest.mark.parametrize("text", ["“Hello,” said Tom.", "It’s – well — “so”. “No!”\n“Yes!” and “oh”", "café"])
@pytest.mark.parametrize("damage", [misread, lossy])
def test_misread_text_is_repaired(text, damage):
    assert damage(text) != text
    assert clean(damage(text)) == (text, ["mojibake"])


@pytest.mark.parametrize(
    "text", [GOOD, 'plain ASCII,\n\ttabs and "quotes" & &amp; <b>', "ﬁne ligature", "日本語", "🙂"]
)
def test_good_text_stays_as_it_is(text):
    assert clean(text) == (text, [])


def test_without_ftfy_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(ValueError, match="pip install ftfy"):
        clean("â€œ")
    assert clean("plain") == ("plain", [])


def test_characters_are_composed():
    assert clean("cafe\u0301") == ("café", ["unicode"])


def test_control_characters_go_and_line_ends_are_one_kind():
    assert clean("a\x00b\x07c\x7f\r\nd\re\tf\n\ufeff") == ("abc\nd\ne\tf\n", ["control"])


@given(st.text())
def test_clean_text_is_clean(text):
    once, _ = clean(text)
    twice, broken = clean(once)
    assert not set(broken) - {"mojibake"}  # a repair may bring further damage to light, never the other kinds
    assert unicodedata.is_normalized("NFC", once)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in once)
    assert "mojibake" in broken or twice == once


@given(st.text(st.characters(max_codepoint=126, exclude_categories=["Cc"])))
def test_printable_ascii_is_never_touched(text):
    assert clean(text) == (text, [])


@given(st.lists(st.lists(st.integers(0, 40), max_size=30), max_size=12))
def test_seen_is_a_set(batches):
    seen, known = SeenHashes(), set()
    for batch in batches:
        expected = []
        for number in batch:
            expected.append(number not in known)
            known.add(number)
        assert seen.add(np.array(batch, np.uint64)).tolist() == expected
        assert len(seen) == len(known)


def test_seen_goes_on_and_stays_small():
    random = np.random.default_rng(0)
    hashes = random.integers(0, 1 << 63, 50_000).astype(np.uint64)
    seen = SeenHashes(hashes)
    assert not seen.add(random.permutation(hashes)).any()
    for start in range(0, 50_000, 500):
        assert seen.add(hashes[start : start + 500] | np.uint64(1 << 63)).all()
    assert sum(run.nbytes for run in seen._runs) == 8 * len(seen) == 8 * 100_000
    assert len(seen._runs) < 20
