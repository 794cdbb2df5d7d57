"""A judge: a model behind an OpenAI-compatible server grades stories, as in the TinyStories paper (Eldan, Li 2023).

It is asked for grammar, creativity, consistency and plot, each from 1 to 10, as one JSON object.
"""

import json
import re
import statistics
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

GRADES = ("grammar", "creativity", "consistency", "plot")
SECONDS = 60  # to wait for one grade
QUESTION = """\
A child's story follows. Grade it from 1 to 10 for its grammar, its creativity, its consistency (does it contradict
itself?) and its plot (does it make sense?). Answer with one JSON object and nothing else, such as
{{"grammar": 8, "creativity": 5, "consistency": 9, "plot": 7}}.

{story}"""


def grade_all(url: str, model: str, stories: Sequence[str]) -> dict[str, float]:
    """Return the mean grades of stories by name; ValueError or OSError that names the server if it gives none."""
    grades = [grade(url, model, story) for story in stories]
    return {f"judge, {name}": statistics.fmean(each[name] for each in grades) for name in GRADES}


def grade(url: str, model: str, story: str) -> dict[str, float]:
    """Return the grades of one story; `url` is where the server's /chat/completions is."""
    body = {
        "model": model,
        "temperature": 0,
        "messages": [{"role": "user", "content": QUESTION.format(story=story)}],
    }
    request = urllib.request.Request(
        f"{url.rstrip('/')}/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    if not request.full_url.startswith(("http://", "https://")):
        raise ValueError(f"the judge's address is {url!r}: give one that begins with http:// or https://")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            content = json.load(answer)
    except urllib.error.URLError as error:
        raise OSError(f"the judge at {url} does not answer ({error}): is the server running?") from error
    except ValueError as error:
        raise ValueError(f"the judge at {url} did not answer with JSON ({error})") from error
    return read_grades(content, url)


def read_grades(content: Any, url: str) -> dict[str, float]:
    """Return the grades in a chat completion; ValueError if there are none.

    >>> text = 'Here: {"grammar": 8, "creativity": 5, "consistency": 9, "plot": 7}'
    >>> read_grades({"choices": [{"message": {"content": text}}]}, "http://judge")["plot"]
    7.0
    """
    try:
        text = content["choices"][0]["message"]["content"]
        found = json.loads(re.search(r"\{[^{}]*\}", text)[0])
        grades = {name: float(found[name]) for name in GRADES}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"the judge at {url} gave no grades: {str(content)[:200]!r}") from error
    if not all(1 <= value <= 10 for value in grades.values()):
        raise ValueError(f"the judge at {url} gave grades outside 1 to 10: {grades}")
    return grades
