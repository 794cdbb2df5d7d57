"""Requests for stories, and verifiers of what they ask for."""

from collections.abc import Callable, Mapping
from typing import Any

from data.stories.checker import check as faults_of


def verify(answer: str, check: Mapping[str, Any]) -> dict[str, str]:
    """Return for each constraint of the check what is wrong with the answer, "" if it is met."""
    return {name: CONSTRAINTS[name](answer, value) for name, value in check["constraints"].items()}


def _coherent(answer: str, wanted: bool) -> str:
    return "; ".join(faults_of(answer)[:1])


def _name(answer: str, name: str) -> str:
    return "" if name in answer else f"the story never names {name}"


CONSTRAINTS: dict[str, Callable[[str, Any], str]] = {"coherent": _coherent, "name": _name}
