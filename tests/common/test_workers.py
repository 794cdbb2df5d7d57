"""Worker processes start from any program, and only where they are worth it."""

import itertools
import multiprocessing
import operator
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common import workers
from common.workers import WORTH_A_WORKER, ordered_map, sensible_workers

ROOT = Path(__file__).parents[2]
PROGRAM = """
from bpe import train
print("started")
tokenizer = train(["one two three"] * 50, 270, num_workers=2, progress=False)
print(tokenizer.vocab_size, tokenizer.encode_batch(["one", "two"], num_workers=2))
"""


def run(*command: str, program: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], input=program, capture_output=True, text=True, timeout=120, cwd=ROOT
    )


@pytest.mark.parametrize("way", ["a script", "standard input", "-c"])
def test_no_guard_is_needed(way, tmp_path):
    """The user's program runs once, not once more in every worker."""
    script = tmp_path / "script.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{PROGRAM}")
    command = {"a script": [str(script)], "standard input": ["-"], "-c": ["-c", PROGRAM]}[way]
    done = run(*command, program=PROGRAM if way == "standard input" else None)
    assert done.stdout.count("started") == 1
    assert done.stdout.startswith("started\n266 [[")
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0)


def test_small_inputs_stay_in_this_process(monkeypatch):
    monkeypatch.setattr(workers, "available_cores", lambda: 8)
    assert sensible_workers(None, 0) == sensible_workers(None, 2 * WORTH_A_WORKER - 1) == 1
    assert sensible_workers(None, 3 * WORTH_A_WORKER) == 3
    assert sensible_workers(None, None) == 8
    assert sensible_workers(5, 0) == 5


def test_a_daemon_process_uses_no_workers():
    process = multiprocessing.get_context("spawn").Process(target=_assert_alone, daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def _assert_alone() -> None:
    assert sensible_workers(4, None) == 1


def test_results_come_in_order_from_an_endless_stream():
    results = ordered_map(operator.add, 100, itertools.count(), 2)
    assert list(itertools.islice(results, 50)) == list(range(100, 150))
    results.close()


def test_two_maps_in_one_process_do_not_mix():
    ones, tens = ordered_map(operator.add, 1, range(3), 1), ordered_map(operator.add, 10, range(3), 1)
    assert list(zip(ones, tens, strict=True)) == [(1, 10), (2, 11), (3, 12)]


def test_an_error_in_a_worker_is_the_callers():
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(operator.floordiv, 1, [1, 0], 2))


def test_a_worker_that_dies_is_explained():
    with pytest.raises(ChildProcessError, match=r"a worker process died.*fewer workers"):
        list(ordered_map(_die, None, [1], 2))


def _die(_shared: None, _job: int) -> None:
    os._exit(1)
