"""A reward from a judge: a language model behind an OpenAI-compatible endpoint grades each answer.

--reward judge:http://localhost:8000/v1            the endpoint's own choice of a model
--reward judge:http://localhost:8000/v1#NAME       one of its models
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from alignment.rewards import Check, Reward
from evaluation.endpoint import ask
from inference.chat import Message

AT_ONCE = 8  # requests to the endpoint
MOST = 10
INSTRUCTION = (
    "You grade answers to requests. Consider if the answer does everything that was asked, if it is correct, and if "
    f"it is well written. Reply with one number from 0 to {MOST} and nothing else."
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def judged(place: str) -> Reward:
    """Return a reward from 0 to 1 by the judge at URL or URL#MODEL."""
    url, _, model = place.partition("#")

    def reward(
        prompts: Sequence[Sequence[Message]], answers: Sequence[str], checks: Sequence[Check]
    ) -> list[float]:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            asked = (question(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True))
            return list(
                threads.map(lambda messages: grade(ask(url, messages, model=model or "default")), asked)
            )

    return reward


def question(prompt: Sequence[Message], answer: str) -> list[dict[str, str]]:
    """Return the messages that ask for a grade."""
    conversation = "\n".join(f"{message.role}: {message.content}" for message in prompt)
    asked = f"{conversation}\n\nThe answer to grade:\n{answer}"
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": asked}]


def grade(reply: str) -> float:
    """Return the first number of a reply as a fraction of the most; ValueError if there is none in range.

    >>> grade("I would say 7.5.")
    0.75
    """
    found = _NUMBER.search(reply)
    if found is None or float(found[0]) > MOST:
        raise ValueError(f"the judge replied {reply[:60]!r}, which has no number from 0 to {MOST}")
    return float(found[0]) / MOST
