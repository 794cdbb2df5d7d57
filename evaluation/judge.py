"""A judge: a model behind an OpenAI-compatible server grades stories, as in the TinyStories paper (Eldan and Li 2023).

It is asked for grammar, creativity, consistency and plot, each from 1 to 10, as one JSON object.
"""

import json
import re
import statistics
from collections.abc import Sequence

from evaluation.endpoint import ask

GRADES = ("grammar", "creativity", "consistency", "plot")
QUESTION = """\
A child's story follows. Grade it from 1 to 10 for its grammar, its creativity, its consistency (does it contradict
itself?) and its plot (does it make sense?). Answer with one JSON object and nothing else, such as
{{"grammar": 8, "creativity": 5, "consistency": 9, "plot": 7}}.

{story}"""


def grade_all(url: str, model: str, stories: Sequence[str]) -> dict[str, float]:
    """Return the mean grades of stories by name.

    ConnectionError if the server does not answer, ValueError if it gives no grades.
    """
    grades = [grade(url, model, story) for story in stories]
    return {f"judge, {name}": statistics.fmean(each[name] for each in grades) for name in GRADES}


def grade(url: str, model: str, story: str) -> dict[str, float]:
    """Return the grades of one story; `url` is up to and including /v1."""
    return read_grades(ask(url, [{"role": "user", "content": QUESTION.format(story=story)}], model=model))


def read_grades(answer: str) -> dict[str, float]:
    """Return the grades in a judge's answer; ValueError if there are none.

    >>> read_grades('Here: {"grammar": 8, "creativity": 5, "consistency": 9, "plot": 7}')["plot"]
    7.0
    """
    try:
        found = json.loads(re.search(r"\{[^{}]*\}", answer)[0])
        grades = {name: float(found[name]) for name in GRADES}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the judge gave no grades: {answer[:200]!r}") from error
    if not all(1 <= value <= 10 for value in grades.values()):
        raise ValueError(f"the judge gave grades outside 1 to 10: {grades}")
    return grades
