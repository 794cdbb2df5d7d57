"""Duplicates: CS336's public cases, chains, clusters by brute force, held-out text, and the same result in any
division of the work.
"""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.stories import stories
from data.web import dedup
from data.web.dedup import EXACT, HELD_OUT, KEPT, NEAR, Dedup
from data.web.tally import Tally

MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions: The above copyright notice and
this permission notice shall be included in all copies or substantial portions of the Software."""


def here(call, shared, jobs):
    return (call(shared, job) for job in jobs)


def write(folder, *files):
    """Write each list of texts as a file of JSON lines."""
    paths = []
    for number, texts in enumerate(files):
        paths.append(folder / f"in-{number}.jsonl")
        paths[-1].write_text(
            "".join(json.dumps({"text": text, "file": str(number)}) + "\n" for text in texts)
        )
    return paths


def fates(folder, options, *files):
    held_out = dedup.held_out_ngrams(options.held_out, options.overlap)
    return dedup.find_duplicates(write(folder, *files), options, held_out, here, folder)


def run(folder, options, *files):
    """Return the texts that are kept, and the tally."""
    tally = Tally()
    dedup.deduplicate(write(folder, *files), folder / "out", options, here, tally)
    lines = [line for path in sorted((folder / "out").glob("*")) for line in path.read_text().splitlines()]
    return [json.loads(line)["text"] for line in lines], tally


def jaccard(left, right):
    return len(left & right) / len(left | right)


def words(*numbers):
    return " ".join(f"w{number}" for number in numbers)


def test_lines_as_in_cs336(tmp_path):
    """Every line that occurs twice in the corpus goes, all of its copies."""
    crawler = "Our servers have detected that you may be accessing this site with an automated crawler."
    content = "<Insert generic page content here for {}>"
    alone = "Document 5 doesn't have any line-level duplicates."
    pages = [
        crawler,
        crawler,
        f"- home\n- menu\n- back\n{content.format(3)}",
        f"- home\n- menu\n{content.format(4)}",
        alone,
    ]
    kept, tally = run(tmp_path, Dedup(lines="all", exact=False, near=False), pages)
    assert kept == [f"- back\n{content.format(3)}", content.format(4), alone]
    assert tally.stages["duplicate lines"].documents == 2


def test_the_first_of_equal_lines_can_stay(tmp_path):
    kept, _ = run(tmp_path, Dedup(lines="first", exact=False, near=False), ["a\nb\n\nc"], ["b\nd", "a\na"])
    assert kept == ["a\nb\n\nc", "d"]


@pytest.mark.parametrize("permutations", [100, 500])
def test_licenses_as_in_cs336(tmp_path, permutations):
    """Two copies of a license that differ in holder and line breaks are one; an exact copy and a stranger."""
    one = f"Copyright (c) David Heinemeier Hansson\n\n{MIT}"
    two = f"MIT License Copyright (c) Meta Platforms\n{MIT.replace(chr(10), '  ')}"
    stranger = (
        "Redistribution and use in source and binary forms, with or without modification, are permitted."
    )
    options = Dedup(permutations=permutations, shingle=5, similarity=0.8)
    kept, tally = run(tmp_path, options, [one, two, stranger, stranger])
    assert kept == [one, stranger]
    assert {name: stage.documents for name, stage in tally.stages.items()} == {
        "exact duplicate": 1,
        "near duplicate": 1,
    }


def test_the_longest_can_be_kept(tmp_path):
    short, long = words(*range(100)), words(*range(110))
    assert run(tmp_path, Dedup(keep="longest"), [short, long])[0] == [long]


def test_a_chain_joins_no_strangers(tmp_path):
    """b is like a and like c, but a is not like c: dropping b is right, dropping c would lose it."""
    a, b, c = words(*range(100)), words(*range(10, 110)), words(*range(20, 120))
    found = fates(tmp_path, Dedup(), [a, b, c])
    assert found.fate.tolist() == [KEPT, NEAR, KEPT]
    assert found.kept.tolist() == [0, 0, 2]


def test_every_dropped_document_is_like_the_one_kept_for_it(tmp_path):
    """Random clusters, compared with the true similarity of every pair."""
    draw = np.random.default_rng(1)
    texts = []
    for base in range(40):
        numbers = base * 1000 + np.arange(80)
        for _ in range(int(draw.integers(1, 6))):
            changed = numbers.copy()
            changed[draw.integers(0, 80, int(draw.integers(0, 4)))] = draw.integers(1 << 30, 1 << 31)
            texts.append(words(*changed))
    texts = [texts[place] for place in draw.permutation(len(texts))]
    found = fates(tmp_path, Dedup(exact=False), texts[:50], texts[50:])
    runs = [text.split() for text in texts]
    sets = [{tuple(run[place : place + 5]) for place in range(len(run) - 4)} for run in runs]
    for number, (fate, kept) in enumerate(zip(found.fate, found.kept, strict=True)):
        assert (fate == NEAR) == (kept != number)
        assert found.fate[kept] == KEPT
        assert jaccard(sets[number], sets[kept]) >= 0.8
    left = np.flatnonzero(found.fate == KEPT)
    missed = sum(jaccard(sets[a], sets[b]) >= 0.8 for a, b in itertools.combinations(left, 2))
    assert missed <= 1


def test_memory_and_division_change_nothing(tmp_path, monkeypatch):
    tales = list(itertools.islice(stories(3), 60))
    texts = [*tales, *(tale.replace(" the ", " that ", 1) for tale in tales[:30]), *tales[:5]]
    whole = fates(tmp_path, Dedup(), texts)
    monkeypatch.setattr(dedup, "BATCH", 1000)
    small = fates(tmp_path, Dedup(memory_mb=1), texts[:20], texts[20:21], [], texts[21:])
    monkeypatch.setattr(dedup.Partitions, "__init__", many_partitions(dedup.Partitions.__init__))
    many = fates(tmp_path, Dedup(memory_mb=1), texts)
    for other in (small, many):
        assert np.array_equal(whole.fate, other.fate)
        assert np.array_equal(whole.kept, other.kept)
    assert (whole.fate == EXACT).sum() == 5


def many_partitions(init):
    return lambda self, folder, num_entries, memory: init(self, folder, num_entries, num_entries * 5)


def test_held_out_text_is_not_trained_on(tmp_path):
    first, second, third = itertools.islice(stories(5), 3)
    (tmp_path / "held.txt").write_text(second)
    options = Dedup(held_out=(str(tmp_path / "held.txt"),))
    quoting = f"{third} {' '.join(second.split()[4:20])}"
    assert fates(tmp_path, options, [first, second, quoting]).fate.tolist() == [KEPT, HELD_OUT, HELD_OUT]
    assert fates(tmp_path, Dedup(), [first, second, quoting]).fate.tolist() == [KEPT] * 3


@settings(max_examples=30)
@given(st.lists(st.lists(st.text(st.sampled_from("ab "), max_size=8), max_size=4), min_size=1, max_size=3))
def test_exact_duplicates_are_those_of_a_set(tmp_path_factory, files):
    found = fates(tmp_path_factory.mktemp("exact"), Dedup(near=False), *files)
    texts = [text for file in files for text in file]
    assert (found.fate == KEPT).tolist() == [text not in texts[:place] for place, text in enumerate(texts)]
    assert all(texts[kept] == text for text, kept in zip(texts, found.kept, strict=True))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=30))
def test_candidates_share_a_key(entries):
    pairs = {tuple(pair) for pair in dedup.candidates(np.array(entries, dedup.ENTRY)).tolist()}
    expected = {
        (min(a, b), max(a, b))
        for (key, a), (other, b) in itertools.combinations(entries, 2)
        if key == other and a != b
    }
    assert pairs <= expected
    if all(sum(key == other for other, _ in entries) <= dedup.ALL_PAIRS for key, _ in entries):
        assert pairs == expected


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40))
def test_union_find_makes_the_classes(edges):
    parent = np.arange(20)
    classes = [{number} for number in range(20)]
    for left, right in edges:
        dedup.join(parent, left, right)
        merged = classes[left] | classes[right]
        for number in merged:
            classes[number] = merged
    assert dedup.roots_of(parent, np.arange(20)).tolist() == [min(each) for each in classes]


def test_a_line_that_is_no_document_is_named(tmp_path):
    (path,) = write(tmp_path, ["one"])
    path.write_text(path.read_text() + "[1]\n")
    with pytest.raises(ValueError, match=r"in-0\.jsonl: line 2 holds no object"):
        list(dedup.rows_of(path))
