"""The built-in corpus: always the same, always coherent, no story twice; planted faults are seen."""

import hashlib
import itertools
import re
import statistics
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.stories import check, coherence, corpus, stories, story

BOOK = list(itertools.islice(stories(seed=11), 3000))
PAGE = (Path(__file__).parents[2] / "docs" / "stories.md").read_text(encoding="utf-8")
CHILDREN = {"girl": "boy", "boy": "girl"}
LEARNED = r"learned that|knew that|never forgot that|thought about it|understood that"


def sentences(text: str) -> list[str]:
    """Split naively, good enough to edit a story with."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", text)


def test_the_book_is_the_same_on_every_machine():
    digest = hashlib.sha256("\n".join(itertools.islice(stories(), 1000)).encode()).hexdigest()
    assert digest == "293fde5a86f710922bd4275fbca7aac5485f485a5236980528b2ff6c83ff8e5f"


def test_an_empty_corpus_has_no_story():
    assert list(corpus(0)) == []


def test_a_story_depends_only_on_its_seed_and_number():
    assert list(itertools.islice(stories(5, start=7), 3)) == [story(5, index) for index in (7, 8, 9)]
    assert story(5, 7) != story(6, 7) != story(6, 8)


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1)])
def test_negative_numbers_are_refused(seed, index):
    with pytest.raises(ValueError, match="must not be negative"):
        story(seed, index)


@pytest.mark.parametrize("num_bytes", [1, 1000, 50_000])
def test_a_corpus_ends_with_the_story_that_fills_it(num_bytes):
    documents = list(corpus(num_bytes, seed=3))
    assert documents == list(itertools.islice(stories(3), len(documents)))
    sizes = [len(document.encode()) for document in documents]
    assert sum(sizes[:-1]) < num_bytes
    assert sum(sizes) >= num_bytes


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_every_story_is_coherent(seed):
    for text in itertools.islice(stories(seed), 700):
        assert check(text) == [], text


@pytest.mark.slow
def test_a_hundred_thousand_stories_are_coherent():
    assert coherence(itertools.islice(stories(seed=4), 100_000)) == 1.0


def test_coherence_is_the_share_of_good_stories():
    assert coherence([BOOK[0], "", BOOK[1], "Once upon"]) == 0.5
    assert coherence([]) == 0.0


def test_words_are_simple_and_neither_few_nor_many():
    many = Counter(re.findall(r"[a-z'-]+", " ".join(itertools.islice(stories(), 12_000)).lower()))
    assert 1300 <= len(many) <= 1700
    assert max(map(len, many)) <= 14
    assert min(many.values()) >= 20  # a word that is hardly ever used cannot be learned


def test_stories_have_the_length_of_a_short_page():
    lengths = [len(text.split()) for text in BOOK]
    assert min(lengths) >= 60 and max(lengths) <= 140
    assert 95 <= statistics.mean(lengths) <= 110
    assert all(1 <= len(text.split("\n\n")) <= 4 for text in BOOK)


def test_no_story_is_told_twice_and_the_page_says_how_varied_they_are():
    book = list(itertools.islice(stories(), 20_000))
    lengths = [len(text.split()) for text in book]
    counted = {
        "distinct words in 20,000 stories": f"{len(set(re.findall(r'[a-z]+', ' '.join(book).lower()))):,}",
        "words per story": f"{min(lengths)} to {max(lengths)}, mean {statistics.mean(lengths):.1f}",
        "bytes per story": f"{statistics.mean(len(text.encode()) for text in book):.0f}",
        "distinct stories among the first 20,000": "20,000",
        "distinct first sentences among them": f"{len({re.split('[.!?]', text)[0] for text in book}):,}",
    }
    assert len(set(book)) == len(book)
    assert dict(re.findall(r"^\| (\w[^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE)) == counted


def test_girls_and_boys_have_equal_parts():
    heroes = Counter(
        re.search(r" (girl|boy)\b", text)[1] for text in BOOK if re.search(r" (girl|boy)\b", text)
    )
    assert 0.9 < heroes["girl"] / heroes["boy"] < 1.1
    pronouns = Counter(re.findall(r"\b(?:he|she)\b", " ".join(BOOK).lower()))
    assert 0.9 < pronouns["she"] / pronouns["he"] < 1.1


# --- planted faults: each edits a good story, or returns None where it has nothing to edit ---


def other_name(text: str) -> str:
    return next(name for name in ("Zoe", "Max", "Ivy") if name not in text)


def hero(text: str) -> str:
    found = re.match(r"(?:Everybody knew )?([A-Z][a-z]+)(?:,| was a)|.*? named ([A-Z][a-z]+)", text)
    return found[1] or found[2]


def replace_last(text: str, old: str, new: str) -> str | None:
    head, found, tail = text.rpartition(old)
    return f"{head}{new}{tail}" if found and old in head else None


def replace_first(pattern: str, new, text: str) -> str | None:
    edited, count = re.subn(pattern, new, text, count=1)
    return edited if count else None


def drop_sentence(pattern: str, text: str) -> str | None:
    kept = [sentence for sentence in sentences(text) if not re.search(pattern, sentence)]
    return " ".join(kept) if len(kept) < len(sentences(text)) else None


def insert_before_last(text: str, sentence: str) -> str:
    *head, last = sentences(text)
    return " ".join([*head, sentence, last])


def swap_pronouns(text: str) -> str | None:
    swap = {"he": "she", "she": "he", "his": "her", "him": "her", "her": "his", "himself": "herself"}
    swap["herself"] = "himself"
    swap |= {old.capitalize(): new.capitalize() for old, new in swap.items()}
    return replace_all(r"\b(?:he|she|his|him|her|himself|herself)\b", lambda match: swap[match[0]], text)


def replace_all(pattern: str, new, text: str) -> str | None:
    edited, count = re.subn(f"(?i){pattern}", new, text)
    return edited if count else None


def swap_subject(text: str) -> str | None:
    return replace_first(r"(?<=[.\n] )(He|She)\b", lambda match: {"He": "She", "She": "He"}[match[1]], text)


def change_object(text: str) -> str | None:
    swaps = (" kite", " drum"), (" ball", " key"), (" doll", " hat"), (" book", " bell"), (" cake", " pie")
    return next((edited for old, new in swaps if (edited := replace_last(text, old, new))), None)


def change_color(text: str) -> str | None:
    return replace_first("found the ", f"found the {'blue' if ' pink ' in text else 'pink'} ", text)


def change_skill(text: str) -> str | None:
    swaps = (" skate", " whistle"), (" ride a bike", " row a boat"), (" jump rope", " juggle")
    return next((edited for old, new in swaps if (edited := replace_last(text, old, new))), None)


def rename_hero(text: str) -> str | None:
    head, tail = text[: len(text) // 2], text[len(text) // 2 :]
    return head + tail.replace(hero(text), other_name(text)) if hero(text) in tail else None


def find_before_losing(text: str) -> str | None:
    found = re.search(r"They \w+ the .* found the \w+|Together they found the [^.]*\.", text)
    return replace_first(r"(?<=\.) (?=[A-Z])", f" {found[0]} ", text.replace(found[0], "")) if found else None


def wrong_resolution(text: str) -> str | None:
    return replace_first(
        r"(Together t|T)hey (found|glued|mended) the [^.]*\.", "Soon they fell asleep.", text
    )


def wrong_lesson(text: str) -> str | None:
    if re.search("share|all mine|only one|may not have|all alone", text):
        return None
    return replace_first(r"(?<=that )[^.]*\.(?=[^.]*\.?$)", "sharing is the best spice of all.", text)


def twin_friend(text: str) -> str | None:
    return replace_first(r"friend the \w+", f"friend {hero(text)}", text)


def repeat_sentence(text: str) -> str | None:
    long = [sentence for sentence in sentences(text) if '"' not in sentence and len(sentence.split()) > 4]
    return insert_before_last(text, long[0])


FAULTS = {
    "empty story": (lambda text: "", "empty"),
    "only blanks": (lambda text: " \n\n ", "empty"),
    "unknown word": (lambda text: replace_first(r" the ", " the blorpy ", text), "'blorpy' .* no word"),
    "misspelled word": (lambda text: replace_first(r"\bwas\b", "wass", text), "'wass' .* no word"),
    "odd character": (lambda text: text + " €", "does not belong in a story"),
    "a number in digits": (lambda text: insert_before_last(text, "There were 3 of them."), "character '3'"),
    "wrong pronoun in one sentence": (swap_subject, "is called '(he|she)'"),
    "wrong pronouns all through": (swap_pronouns, "is called '(he|she|his|her|him)'"),
    "a girl with a boy's name": (
        lambda text: replace_first(r"(girl|boy)(?= named)", lambda match: CHILDREN[match[1]], text),
        "is called a (girl|boy)",
    ),
    "the girl becomes a boy": (
        lambda text: insert_before_last(text, "The girl was glad.") if " boy " in text else None,
        "the girl appears from nowhere",
    ),
    "a name that changes": (rename_hero, "appears from nowhere"),
    "somebody from nowhere": (
        lambda text: insert_before_last(text, f"Then {other_name(text)} laughed."),
        "appears from nowhere",
    ),
    "an animal from nowhere": (
        lambda text: None if "otter" in text else insert_before_last(text, "Then the otter laughed."),
        "the otter appears from nowhere",
    ),
    "an animal that changes": (
        lambda text: (
            None if "goose" in text else replace_first(r"(?<=said )(his|her) friend\b", "the goose", text)
        ),
        "the goose appears from nowhere",
    ),
    "an animal called he": (
        lambda text: replace_first(r"(?<=said )(his|her) friend\.", "the owl. He came.", text),
        "is called 'he'",
    ),
    "two people of one name": (twin_friend, "introduced a second time"),
    "an object that changes": (change_object, "object was"),
    "a color that changes": (change_color, "color was"),
    "a skill that changes": (change_skill, "is about"),
    "found but never lost": (
        lambda text: drop_sentence(r"could not find|was gone|was not there|to be seen|lost the", text),
        "no problem",
    ),
    "found before it is lost": (find_before_losing, "solved before"),
    "lost but never found": (
        lambda text: drop_sentence(r"\b(found the|was the missing|lay the|out came the)\b", text),
        "never solved",
    ),
    "resolution of another plot": (wrong_resolution, "resolution belongs to 'bedtime'"),
    "lesson of another plot": (wrong_lesson, "moral belongs to 'share'"),
    "two problems": (
        lambda text: (
            insert_before_last(text, "Then they missed the bus.")
            if not re.search("wrong turn|bus|car|road was", text)
            else None
        ),
        "problem belongs to 'trip'",
    ),
    "no ending": (lambda text: text[: re.search(rf"[^.!?]*({LEARNED})", text).start()], "no ending"),
    "ending too early": (
        lambda text: text + " Then it was late. It was very late. And it was dark.",
        "no ending",
    ),
    "cut off in a sentence": (lambda text: text[:-9], "breaks off"),
    "cut off in the middle": (lambda text: text[: len(text) // 2], "never solved|no ending"),
    "quote that is not closed": (lambda text: replace_first(r'"(?= [a-z])', "", text), "quote .* not closed"),
    "repeated sentence": (repeat_sentence, "is told 2 times"),
    "repeated word": (lambda text: replace_first(r" the ", " the the ", text), "comes twice"),
    "wrong article": (lambda text: replace_first(r" a (?=[b-df-hj-np-tv-z])", " an ", text), "article"),
    "no capital letter": (
        lambda text: replace_first(r"(?<=\. )[A-Z]", lambda match: match[0].lower(), text),
        "capital letter",
    ),
    "capital letter inside": (lambda text: replace_first(r" the ", " The ", text), "capital letter"),
    "too long": (lambda text: f"{text} {text} {text}", "words, not"),
    "too short": (lambda text: "Lily was a girl. She smiled.", "words, not"),
}


def test_the_page_lists_the_faults_and_tells_the_stories_as_they_are():
    listed = PAGE.partition("### Faults that it must find")[2]
    assert re.findall(r"^- (.*)$", listed, re.MULTILINE) == list(FAULTS)
    for number, quoted in re.findall(r"^Number (\d+) of seed 0:\n\n((?:>.*\n)+)", PAGE, re.MULTILINE):
        assert re.sub(r"^> ?", "", quoted, flags=re.MULTILINE).strip() == story(0, int(number))


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_seen(name):
    plant, complaint = FAULTS[name]
    planted = (faulty for text in BOOK if (faulty := plant(text)) is not None)
    planted = list(itertools.islice(planted, 100))
    assert len(planted) >= 20
    for faulty in planted:
        faults = check(faulty)
        assert any(re.search(complaint, fault) for fault in faults), f"{faulty}\n\n{faults}"


def test_pieces_put_together_in_a_new_way_pass():
    text = (
        "Once there was a brave boy named Tom. He had a red kite. One windy day, the kite was gone. "
        "Tom was so sad. He looked under the bed and behind the sofa. "
        '"Do not cry, Tom," said his friend Mia. Mia had an idea. '
        "They went to the pond, and there, in the tall grass, lay the kite! Tom hugged Mia. "
        "Tom never forgot that two can search better than one."
    )
    assert check(text) == []


@given(st.text(alphabet="ab AI.,!?\"\n'-Lily he0é"))
def test_no_text_is_too_odd_to_check(text):
    assert check(text)
