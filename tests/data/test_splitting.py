"""Where documents end: against splitting the whole text at once."""

import itertools
import re

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from tiktoken_ext.openai_public import r50k_pat_str as GPT2

from data import splitting
from data.splitting import Splitter, choose, split_long, text_hash

END = b"<|endoftext|>"


def blocks(text, lines):
    """Return the text in blocks of this many lines."""
    parts = text.splitlines(keepends=True)
    return [b"".join(parts[i : i + lines]) for i in range(0, len(parts), lines)]


def whole_documents(found):
    """Return the segments put together again: the documents."""
    documents, current = [], b""
    for segment in found:
        current += segment.text
        if segment.ends:
            documents.append(current)
            current = b""
    assert not current
    return documents


def expected(mode, text):
    if mode == "separator":
        parts = text.split(END)
    elif mode == "line":
        parts = text.split(b"\n")
    elif mode == "break":
        parts = re.sub(rb"\n{2,}", lambda m: b"\0" * len(m[0]), text).split(b"\n")
        parts = [part.replace(b"\0", b"\n") for part in parts]
    else:
        parts = [text]
    return [part.strip() for part in parts if part.strip()]


texts = st.lists(
    st.sampled_from([b"\n", b"\n\n", b" ", b"Once", "é€🙂".encode(), END, b"<|end", b"."]), max_size=40
)


@pytest.mark.parametrize("mode", ["separator", "line", "break", "whole"])
@given(parts=texts, lines=st.integers(1, 5), limit=st.integers(8, 30))
def test_documents_do_not_depend_on_blocks_or_segments(mode, parts, lines, limit):
    text = b"".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "LONGEST", limit)
        patch.setattr(splitting, "PASSAGE", limit)
        found = list(Splitter(mode).documents(blocks(text, lines)))
    assert whole_documents(found) == expected(mode, text)
    for segment in found:
        segment.text.decode()  # no character is split


@pytest.mark.parametrize("separator", ["<|endoftext|>", "a b"])
@pytest.mark.parametrize("mode", ["separator", "whole"])
@given(data=st.data(), size=st.integers(1, 9), limit=st.integers(8, 30))
def test_blocks_may_be_cut_anywhere(mode, separator, data, size, limit):
    words = st.sampled_from([separator, separator[:-1], "\n", "\n\n", " ", "Once", "é€🙂", "."])
    text = "".join(data.draw(st.lists(words, max_size=40))).encode()
    cut = [text[start : start + size] for start in range(0, len(text), size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "LONGEST", limit)
        patch.setattr(splitting, "PASSAGE", limit)
        found = list(Splitter(mode, separator).documents(cut))
    parts = text.split(separator.encode()) if mode == "separator" else [text]
    assert whole_documents(found) == [part.strip() for part in parts if part.strip()]
    for segment in found:
        segment.text.decode()  # no character is split


@pytest.mark.parametrize("mode", ["separator", "break", "whole"])
def test_much_blank_space_is_no_document(mode, monkeypatch):
    monkeypatch.setattr(splitting, "LONGEST", 8)
    monkeypatch.setattr(splitting, "PASSAGE", 8)
    blank = [b" \n" * 30] * 3
    assert not list(Splitter(mode).documents(blank))
    assert whole_documents(Splitter(mode).documents([*blank, b"Once"])) == [b"Once"]


def test_segments_of_a_document_share_a_split_and_passages_do_not():
    text = b"word " * 20_000
    shared = split_long(text, limit=1000)
    assert {segment.key for segment in shared} == {text_hash(shared[0].text)}
    passages = list(Splitter("whole").documents([text]))
    assert len(passages) > 4 and {segment.key for segment in passages} == {None}


words = st.sampled_from(["cat", "ran.", "é,", "“Hi", "42", "…"])
spaces = st.sampled_from(
    [" ", "   ", "\n", "\n\n", "\r\n", " \n \n", "\xa0 ", "\xa0\n\n", "\u3000  ", " \xa0"]
)


@given(parts=st.lists(st.tuples(words, spaces), max_size=60), limit=st.integers(20, 100))
def test_segments_are_cut_where_gpt2_splits_too(parts, limit):
    text = "".join(word + space for word, space in parts)
    apart = [regex.findall(GPT2, segment.text.decode()) for segment in split_long(text.encode(), limit=limit)]
    assert list(itertools.chain.from_iterable(apart)) == regex.findall(GPT2, text)


STORY = b"Once there was a cat. " * 20


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        (STORY + END + STORY, "separator"),
        ((STORY + b"\n") * 3, "break"),
        ((STORY + b"\n\n" + STORY + b"\n") * 3, "break"),
        ((STORY + b"\n\n") * 3, "whole"),
        (
            b"First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\n" * 9,
            "whole",
        ),
    ],
)
def test_auto_chooses(text, mode):
    assert choose(text, END.decode()) == mode


@pytest.mark.parametrize(
    ("mode", "separator", "reason"), [("page", "x", "not 'page'"), ("separator", "", "is empty")]
)
def test_impossible_splitters_are_refused(mode, separator, reason):
    with pytest.raises(ValueError, match=reason):
        Splitter(mode, separator)
