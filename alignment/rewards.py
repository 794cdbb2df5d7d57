"""Rewards: plain functions that say how good answers are.

    reward(prompts: list[list[Message]], answers: list[str], checks: list[dict]) -> list[float]

`--reward NAME` is one of

    checks                     1 if every constraint of the prompt's check is met, else 0
    stories, arithmetic        the same, on the prompts of that task alone
    partial                    as checks, but else half of the share of constraints that is met (docs/alignment.md shows
                               how a model makes a living of that)
    PATH.py:function           a function of yours with this signature
    model:RUN                  a reward model trained by python -m alignment reward-model
    judge:URL                  a language model behind an OpenAI-compatible endpoint grades the answer

A function that raises, returns the wrong number of rewards or one that is not finite stops the run with one line.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from alignment import tasks
from alignment.tasks import Check
from inference.chat import Message

Reward = Callable[[list[list[Message]], list[str], list[Check]], Sequence[float]]
CHECKS, PARTIAL = "checks", "partial"
PROBE = ("", "Hello.")  # answers that every reward has to cope with: a model may give them


def verified(prompts: list[list[Message]], answers: list[str], checks: list[Check]) -> list[float]:
    """Return 1 for an answer that meets every constraint of its check, else 0."""
    return [float(tasks.passes(answer, check)) for answer, check in zip(answers, checks, strict=True)]


def partial(prompts: list[list[Message]], answers: list[str], checks: list[Check]) -> list[float]:
    """Return 1 for an answer that meets every constraint of its check, else half of the share that it meets.

    >>> partial([[]], ["3+4=7\\n= 8"], [{"task": "arithmetic", "a": 3, "op": "+", "b": 4}])
    [0.25]
    """
    faults = [tasks.verify(answer, check).values() for answer, check in zip(answers, checks, strict=True)]
    met = [sum(not fault for fault in each) / len(each) for each in faults]
    return [share if share == 1 else share / 2 for share in met]


def make_reward(name: str) -> Reward:
    """Return the reward that `--reward` names, its results checked; ValueError if it cannot be had."""
    return checked(_named(name), name)


def task_of(name: str) -> str | None:
    """Return the task whose prompts alone a reward is for; None if it is for any."""
    return name if name in tasks.VERIFIERS else None


def _named(name: str) -> Reward:
    kind, _, rest = name.partition(":")
    if name == CHECKS or name in tasks.VERIFIERS:
        return verified
    if name == PARTIAL:
        return partial
    if kind == "model" and rest:
        from alignment.reward_model import load_reward  # it builds on this file

        return load_reward(Path(rest))
    if kind == "judge" and rest:
        from alignment.judging import judged

        return judged(rest)
    path, _, function = name.rpartition(":")
    if path.endswith(".py") and function:
        return _from_file(Path(path), function)
    raise ValueError(
        f"no reward {name!r}: choose {CHECKS}, {', '.join(tasks.VERIFIERS)}, {PARTIAL}, PATH.py:function, model:RUN or "
        "judge:URL"
    )


def _from_file(path: Path, function: str) -> Reward:
    """Return a function of a Python file of the user's."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path} with a reward: give PATH.py:function")
    spec = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file does wrong is the user's to read in one line
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise ValueError(f"{path} has no function {function!r}: write reward(prompts, answers, checks)")
    return found


def checked(reward: Reward, name: str) -> Reward:
    """Return the reward with its results checked at every call: ValueError with the reason if they cannot be used."""

    def call(prompts: list[list[Message]], answers: list[str], checks: list[Check]) -> list[float]:
        try:
            found = [float(value) for value in reward(prompts, answers, checks)]
        except Exception as error:
            raise ValueError(f"the reward {name} failed: {type(error).__name__}: {error}") from error
        if len(found) != len(answers):
            raise ValueError(f"the reward {name} returned {len(found)} numbers for {len(answers)} answers")
        for value, answer in zip(found, answers, strict=True):
            if not math.isfinite(value):
                raise ValueError(f"the reward {name} is {value} for {answer[:60]!r}: it must be finite")
        return found

    return call


def probe(reward: Reward, prompt: list[Message], check: Check) -> None:
    """Call a reward with two short answers, so that a faulty one is found before anything is written."""
    reward([prompt] * len(PROBE), list(PROBE), [check] * len(PROBE))
