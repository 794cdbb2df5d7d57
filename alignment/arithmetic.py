"""Sums and differences of two numbers up to 99, with a worked line before the answer, checked exactly.

    What is 47 + 38?
    7+8=15, 4+3+1=8
    = 85

The worked line is what a child writes: ones first, then tens with what is carried or borrowed. Every number of the
answer is then near the numbers that it depends on, which a small model can learn. One pair in ten is held out.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

MOST = 99
HELD_OUT = 10  # one in this many pairs of numbers is for testing
WORDINGS = (
    "What is {a} {op} {b}?",
    "{a} {op} {b} = ?",
    "Please work out {a} {op} {b}.",
    "How much is {a} {op} {b}?",
    "Compute {a} {op} {b}.",
    "Could you calculate {a} {op} {b}, please?",
)
_EQUATION = re.compile(r"(\d+(?:[+-]\d+)*)=(\d+)")
_ANSWER = re.compile(r"= (\d+)")


def problems(*, held_out: bool) -> Iterator[tuple[int, str, int]]:
    """Yield (a, op, b): all sums, and all differences that are not below 0, that are held out or are not."""
    for a in range(MOST + 1):
        for b in range(MOST + 1):
            for op in "+-" if a >= b else "+":
                if is_held_out(a, op, b) == held_out:
                    yield a, op, b


def is_held_out(a: int, op: str, b: int) -> bool:
    """True if a problem is for testing; so is the sum of the same numbers in the other order.

    >>> is_held_out(3, "+", 4) == is_held_out(4, "+", 3)
    True
    """
    name = f"{min(a, b)} {op} {max(a, b)}"
    return hashlib.sha256(name.encode()).digest()[0] % HELD_OUT == 0


def question(a: int, op: str, b: int, wording: int = 0) -> str:
    """Return the question in one of the WORDINGS.

    >>> question(47, "+", 38)
    'What is 47 + 38?'
    """
    return WORDINGS[wording % len(WORDINGS)].format(a=a, op=op, b=b)


def solution(a: int, op: str, b: int) -> str:
    """Return the worked line and the answer.

    >>> solution(47, "+", 38)
    '7+8=15, 4+3+1=8\\n= 85'
    >>> solution(42, "-", 7)
    '12-7=5, 4-0-1=3\\n= 35'
    """
    (tens_a, ones_a), (tens_b, ones_b) = divmod(a, 10), divmod(b, 10)
    if op == "+":
        carry = ones_a + ones_b >= 10
        ones, tens, result = ones_a + ones_b, tens_a + tens_b + carry, a + b
    else:
        carry = ones_a < ones_b
        ones_a += 10 * carry
        ones, tens, result = ones_a - ones_b, tens_a - tens_b - carry, a - b
    carried = f"{op}1" if carry else ""
    work = f"{ones_a}{op}{ones_b}={ones}, {tens_a}{op}{tens_b}{carried}={tens}"
    return f"{work}\n= {result}"


def check(a: int, op: str, b: int) -> dict[str, Any]:
    """Return what `verify` needs to know of a problem."""
    return {"task": "arithmetic", "a": a, "op": op, "b": b}


def verify(answer: str, check: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong with the worked line and with the answer, "" each if nothing is.

    >>> verify("7+8=14, 4+3=7\\n= 85", check(47, "+", 38))
    {'work': '7+8=14 is wrong', 'answer': ''}
    """
    work, _, last = answer.strip().rpartition("\n")
    return {"work": _fault_of_work(work), "answer": _fault_of_answer(last, check)}


def _fault_of_work(work: str) -> str:
    equations = [_EQUATION.fullmatch(part) for part in work.split(", ")]
    if not all(equations):
        return "there is no worked line of equations before the answer"
    for equation in equations:
        terms, result = equation.groups()
        if _value(terms) != int(result):
            return f"{equation[0]} is wrong"
    return ""


def _fault_of_answer(last: str, check: Mapping[str, Any]) -> str:
    found = _ANSWER.fullmatch(last)
    right = _value(f"{check['a']}{check['op']}{check['b']}")
    if not found:
        return "the last line is not '= ' and a number"
    return "" if int(found[1]) == right else f"the answer is {found[1]}, not {right}"


def _value(terms: str) -> int:
    """Return the value of numbers with + or - between them.

    >>> _value("4+3-1")
    6
    """
    return sum(map(int, re.findall(r"[+-]?\d+", terms)))
