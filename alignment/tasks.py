"""The tasks whose answers a program can check, by the name in a check's "task"."""

from collections.abc import Callable, Mapping
from typing import Any

from alignment import arithmetic
from data.stories import constraints

Check = Mapping[str, Any]
"""Tell a verifier the name of the task, and what its answers have to fulfil."""

VERIFIERS: dict[str, Callable[[str, Check], dict[str, str]]] = {
    "stories": constraints.verify,
    "arithmetic": arithmetic.verify,
}


def verify(answer: str, check: Check) -> dict[str, str]:
    """Return for each constraint what is wrong with the answer, "" if it is met; ValueError for an unknown task.

    >>> verify("3+4=7, 0+0=0\\n= 8", {"task": "arithmetic", "a": 3, "op": "+", "b": 4})["answer"]
    'the answer is 8, not 7'
    """
    if check.get("task") not in VERIFIERS:
        raise ValueError(
            f"no verifier for the task {check.get('task')!r}: a check names one of {', '.join(VERIFIERS)}"
        )
    return VERIFIERS[check["task"]](answer, check)


def passes(answer: str, check: Check) -> bool:
    """True if the answer meets every constraint."""
    return not any(verify(answer, check).values())
