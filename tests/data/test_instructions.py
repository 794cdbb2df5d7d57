"""Requests ask for what their stories tell, their verifiers tell right from wrong, and what is held out stays out."""

import itertools
import re
from collections import Counter

import pytest

from data.stories import check, stories, wordings
from data.stories.checker import vocabulary
from data.stories.constraints import ANSWERS, ENDINGS, VERIFIERS, faults, verify
from data.stories.grammar import tale
from data.stories.instructions import (
    EVERYDAY,
    PRACTICE,
    REHEARSAL,
    SHARES,
    facets_of,
    is_held_out,
    request,
    requests,
    requests_from,
)
from data.stories.reader import split_sentences

COUNT = 400


@pytest.fixture(scope="module")
def seen():
    return list(itertools.islice(requests(1), COUNT))


def some(count, **held_out):
    return list(itertools.islice(requests(2, **held_out), count))


def test_every_answer_meets_its_own_constraints(seen):
    for each in seen:
        assert not any(verify(each.answer, each.check).values())


def test_the_part_that_meets_the_wishes_meets_them_and_no_sentence_less_does(seen):
    shorter = [each for each in seen if each.met != each.answer]
    assert len(shorter) > 0.3 * len(seen)
    for each in shorter:
        wishes = {name: value for name, value in each.check["constraints"].items() if name != "coherent"}
        assert each.answer.startswith(each.met)
        assert not any(faults(each.met, wishes).values())
        *before, _ = split_sentences(each.met)
        assert any(faults(" ".join(before), wishes).values())


def test_all_kinds_come(seen):
    assert Counter(each.kind for each in seen).keys() == SHARES.keys()
    assert len(VERIFIERS) >= 12
    asked = set().union(*(each.check["constraints"] for each in seen))
    assert asked == VERIFIERS.keys()


def test_the_same_seed_gives_the_same_requests(seen):
    assert list(itertools.islice(requests(1), 20)) == seen[:20]
    assert some(20) != seen[:20]


def test_most_answers_of_other_requests_fail(seen):
    """A verifier that passes whatever it sees would not notice an exchange of answers."""
    told = [each for each in seen if each.kind == "story" and len(each.check["constraints"]) > 2]
    passed = sum(not any(verify(b.answer, a.check).values()) for a, b in itertools.pairwise(told))
    assert passed < 0.05 * len(told)


def test_combinations_are_held_out(seen):
    new = some(100, new_combinations=True)
    for requested, held_out in ((seen, False), (new, True)):
        for each in requested:
            facets = {name: value for name, value in each.check["constraints"].items() if name != "coherent"}
            if each.kind in ("story", "without", "tone", "system", "again"):
                assert is_held_out(facets) == held_out


def test_practice_asks_on_about_a_story_that_was_read():
    asked = [each for each in requests_from((1, PRACTICE, False, False), 0) if each.kind == "question"]
    assert max(len(each.messages) for each in asked) > 5
    for each in asked:
        (_, read), *more = each.messages
        turns = [*more, ("assistant", each.answer)]
        assert [role for role, _ in turns] == ["assistant", "user"] * (len(turns) // 2) + ["assistant"]
        questions = [text for role, text in turns if role == "user"]
        assert len(questions) == len(set(questions))
        for answer in (text for role, text in turns if role == "assistant"):
            assert answer.rstrip(".").split()[-1].lower() in read.lower()


def test_practice_asks_which_of_four_words_is_of_a_kind():
    asked = [each for each in requests_from((1, PRACTICE, False, False), 0) if each.kind == "choice"]
    assert len({each.check["constraints"]["answer"]["fact"] for each in asked}) == 4
    for each in asked:
        answer = each.check["constraints"]["answer"]
        listed = [word.strip("?.").removeprefix("an ").removeprefix("a ")
                  for word in each.messages[0][1].partition(": ")[2].split(", ")]  # fmt: skip
        assert len(listed) == 4
        assert [word for word in listed if word in ANSWERS[answer["fact"]]] == [answer["value"]]


def test_practice_asks_to_say_words_again_also_several_of_a_kind():
    asked = [each for first in range(0, 400, 100) for each in requests_from((1, PRACTICE, False, False), first)
             if each.kind == "repeat"]  # fmt: skip
    listed = [each.answer.removeprefix("You said ").removesuffix(".").split(", ") for each in asked]
    assert max(len(set(words) & set(ANSWERS["helper"])) for words in listed) > 1
    for each, words in zip(asked, listed, strict=True):
        ((_, request),) = each.messages
        assert request.endswith(f" {', '.join(words)}.") and len(words) == len(set(words))
        assert all(any(word in of_kind for of_kind in ANSWERS.values()) for word in words)


def test_practice_asks_for_the_end_of_a_story_in_given_words():
    asked = [each for first in range(0, 1000, 100) for each in requests_from((1, PRACTICE, False, False), first)
             if each.kind == "ending"]  # fmt: skip
    assert {each.check["constraints"]["ends"] for each in asked} == set(ENDINGS)
    for each in asked:
        ((_, request),), wishes = each.messages, each.check["constraints"]
        assert request.endswith(f'"{wishes["ends"]}"') and wishes["continues"] in request
        assert len(split_sentences(each.answer)) <= 3
        assert not check(f"{wishes['continues']} {each.answer}")


def test_practice_leaves_out_every_word_that_a_request_names():
    asked = [each for each in requests_from((1, PRACTICE, False, False), 0) if each.kind == "without"]
    named = [
        re.findall(r"(?:not use|[Ww]ithout|[Nn]ot) the word (\w+)", each.messages[0][1]) for each in asked
    ]
    assert max(map(len, named)) > 3
    for each, words in zip(asked, named, strict=True):
        assert each.check["constraints"]["without"] in words and len(words) == len(set(words))
        assert not any(faults(each.answer, {"without": word})["without"] for word in words)


def test_prompts_for_rewards_ask_for_more_than_people_do():
    def wishes(asking):
        asked = requests_from((1, asking, False, False), 0)
        return [len(each.check["constraints"]) for each in asked if each.kind == "story"]

    assert min(wishes(REHEARSAL)) > 2 and max(wishes(REHEARSAL)) == 6 > max(wishes(EVERYDAY)) == 4


def words_of(lines):
    return set(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", " ".join(lines)).lower()))


def frames(requested):
    """Return the first six words of the last message, in which a slot is rare."""
    return {" ".join(each.messages[-1][1].split()[:3]) for each in requested}


def test_held_out_wordings_are_new_but_made_of_words_that_were_seen(seen):
    new = some(COUNT, new_words=True)
    templates = {line for group in all_wordings() for line in (*group.full, *group.terse)}
    templates |= {*wordings.POLITE, *wordings.PLAIN, *wordings.TERSE}
    templates |= set(itertools.chain.from_iterable(wordings.PLOT_QUESTIONS.values()))
    held_out = {line for group in all_wordings() for line in group.new} | set(wordings.NEW)
    assert not templates & held_out
    assert words_of(held_out) <= words_of(templates) | vocabulary()
    assert {"Please, I want", "Could you tell"} & frames(new)
    assert "Please, I want" not in frames(seen)


def all_wordings():
    single = [each for each in vars(wordings).values() if isinstance(each, wordings.Wordings)]
    tables = [each for each in vars(wordings).values() if isinstance(each, dict)]
    return single + [
        each for table in tables for each in table.values() if isinstance(each, wordings.Wordings)
    ]


def test_facets_are_what_the_text_shows():
    for index in range(50):
        told = tale(3, index)
        facets = facets_of(told)
        assert facets["name"] in told.text and facets["plot"] == told.choices["plot"]
        assert not any(faults(told.text, facets).values())
        assert ("home" in facets) == (told.choices["home"] in told.text)


def test_sentences_are_those_of_the_text():
    for text in itertools.islice(stories(5), 60):
        assert " ".join(split_sentences(text)) == text.replace("\n\n", " ")


LILY = (
    "Once there was a shy girl named Lily who lived by the sea. She liked to draw with chalk. She had a red kite and "
    "took it everywhere.\n\nBut one windy afternoon, the kite was gone. She was so sad. She looked under the bench, "
    'but all she saw was an old shoe. Her mom came by and asked what was wrong. "I will help you," said Mom. Together '
    "they found the kite in the attic. Lily felt glad. Lily learned that it is easier to look together. And they all "
    "lived happily ever after."
)
MET = {
    "coherent": True,
    "name": "Lily",
    "kind": "girl",
    "nature": "shy",
    "home": "by the sea",
    "hobby": "draw with chalk",
    "thing": "kite",
    "color": "red kite",
    "day": "windy afternoon",
    "helper": "mom",
    "plot": "lost",
    "word": "glad",
    "without": "very",
    "tone": "sad",
    "begins": "Once there was",
    "ends": "And they all lived happily ever after.",
}
UNMET = {
    "name": "Mia",
    "kind": "boy",
    "nature": "sad",  # a word of the story, but not of its first sentence
    "home": "by the river",
    "hobby": "draw",
    "thing": "key",
    "color": "blue kite",
    "day": "windy day",
    "helper": "dad",
    "plot": "share",
    "word": "happy",
    "without": "sad",
    "tone": "exciting",
    "begins": "Once upon a time",
    "ends": "Lily smiled for a long time.",
}


def test_the_example_is_a_story():
    assert check(LILY) == []


@pytest.mark.parametrize("name", MET)
def test_a_constraint_that_is_met(name):
    assert faults(LILY, {name: MET[name]}) == {name: ""}


@pytest.mark.parametrize("name", sorted(UNMET.keys() - {"hobby"}))
def test_a_constraint_that_is_not_met_has_a_reason(name):
    assert len(faults(LILY, {name: UNMET[name]})[name]) > 10


def test_words_are_compared_whole():
    assert faults("The kite was gone.", {"without": "kit"})["without"] == ""
    assert faults("The Kite was gone.", {"without": "kite"})["without"]


SHORT = (
    "Once there was a shy girl named Lily. But one day, the kite was gone. "
    "Together they found the kite in the attic."
)
SHORTS = {
    "another number of sentences": SHORT + " Lily learned that it is easier to look together.",
    "no problem": SHORT.replace("the kite was gone", "the kite was red"),
    "no solution": SHORT.replace("found the kite", "saw the kite"),
    "another plot's solution": SHORT.replace("found the kite", "shared the kite"),
    "a wrong pronoun": SHORT.replace("But one day, the", "But one day, his"),
    "two things": SHORT.replace("found the kite", "found the kite, not the ball,"),
    "an unknown word": SHORT.replace("attic", "skyscraper"),
    "no end": SHORT[:-1],
}


def test_a_short_story():
    assert faults(SHORT, {"sentences": "three"})["sentences"] == ""


@pytest.mark.parametrize("fault", SHORTS)
def test_faults_of_short_stories(fault):
    assert faults(SHORTS[fault], {"sentences": "three"})["sentences"]


def test_continuing():
    opening, rest = LILY.split("\n\n")
    assert faults(rest, {"continues": opening})["continues"] == ""
    assert faults(LILY, {"continues": opening})["continues"] == "the answer begins again"
    assert faults(rest.replace("kite", "ball"), {"continues": opening})["continues"]


REPLIED = {
    "The story is about Lily.": True,
    "Lily.": True,
    "The story is about Tom.": False,
    "Lily or Tom.": False,
    "I do not know.": False,
    LILY: False,
}


@pytest.mark.parametrize("answer", REPLIED)
def test_answers_to_questions(answer):
    fault = faults(answer, {"answer": {"fact": "name", "value": "Lily"}})["answer"]
    assert (fault == "") == REPLIED[answer]


REPLIES = {
    "I am sorry, but I cannot help with that.": "",
    "No, I cannot do that.": "not kind",
    "Take a hammer. I am sorry.": "not refused",
    "I am sorry, I cannot. " + LILY: "more than 40 words",
}


@pytest.mark.parametrize("reply", REPLIES)
def test_refusals(reply):
    fault = faults(reply, {"refuses": True})["refuses"]
    assert REPLIES[reply] in fault and bool(fault) == bool(REPLIES[reply])


def test_an_unknown_constraint_is_refused():
    with pytest.raises(ValueError, match="no verifier for rhymes"):
        faults(LILY, {"rhymes": True})


def test_an_empty_answer_fails_everything_but_what_is_left_out():
    failed = {name for name, fault in faults("", MET).items() if fault}
    assert failed == MET.keys() - {"without"}


def test_a_request_that_does_not_fit_its_story_is_none():
    found = [request(1, index) for index in range(60)]
    assert None in found and any(found)
