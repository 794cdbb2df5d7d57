"""Solutions are right by Python's own arithmetic, and the verifier finds any wrong digit."""

import re

import pytest

from alignment import arithmetic
from alignment.tasks import passes, verify

PROBLEMS = [*arithmetic.problems(held_out=False), *arithmetic.problems(held_out=True)]


def test_problems_are_all_sums_and_differences():
    assert len(set(PROBLEMS)) == len(PROBLEMS) == 100 * 100 + 100 * 101 // 2


def test_a_tenth_is_held_out():
    held_out = set(arithmetic.problems(held_out=True))
    assert 0.07 < len(held_out) / len(PROBLEMS) < 0.13
    assert all((b, "+", a) in held_out for a, op, b in held_out if op == "+")


def test_solutions_are_right():
    for a, op, b in PROBLEMS[::7]:
        solution = arithmetic.solution(a, op, b)
        work, last = solution.split("\n")
        for equation in work.split(", "):
            left, right = equation.split("=")
            assert eval(left) == int(right)
        assert int(last.removeprefix("= ")) == eval(f"{a}{op}{b}")
        assert passes(solution, arithmetic.check(a, op, b))


def test_every_wrong_digit_is_found():
    solution = arithmetic.solution(47, "+", 38)
    for place in (match.start() for match in re.finditer(r"\d", solution)):
        other = str((int(solution[place]) + 1) % 10)
        assert not passes(solution[:place] + other + solution[place + 1 :], arithmetic.check(47, "+", 38))


WRONG = {
    "": "work",
    "= 85": "work",
    "47+38=85": "answer",
    "I think so.\n= 85": "work",
    "7+8=15\n= 85.": "answer",
    "7+8=15\n85": "answer",
}


@pytest.mark.parametrize("answer", WRONG)
def test_answers_in_another_form_fail(answer):
    assert verify(answer, arithmetic.check(47, "+", 38))[WRONG[answer]]


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="no verifier for the task 'poetry'"):
        verify("x", {"task": "poetry"})
