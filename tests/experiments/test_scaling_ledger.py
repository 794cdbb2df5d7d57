"""The ledger adds up like a bank account, whatever happens to the runs."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from experiments.scaling.ledger import Ledger, OverBudget


def test_a_reservation_that_exceeds_the_rest_is_refused_and_costs_nothing(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json", budget=10.0)
    ledger.reserve({"size": 1}, 6.0)
    with pytest.raises(OverBudget, match="a run of 5 FLOPs exceeds the 4 left of 10"):
        ledger.reserve({"size": 2}, 5.0)
    assert (ledger.spent, ledger.left) == (6.0, 4.0)
    assert ledger.reserve({"size": 3}, 4.0).state == "reserved"


def test_a_failed_run_is_refunded_and_may_be_asked_for_again(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json", budget=10.0)
    entry = ledger.refund(ledger.reserve({"size": 1}, 8.0), "it diverged")
    assert (entry.state, ledger.left) == ("failed", 10.0)
    assert ledger.reserve({"size": 1}, 9.0).state == "reserved"
    assert ledger.left == 1.0


def test_a_duplicate_is_answered_from_the_record(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json", budget=10.0)
    ledger.settle(ledger.reserve({"size": 1, "seed": 2}, 8.0), {"loss": 1.5})
    again = ledger.reserve({"seed": 2, "size": 1}, 8.0)
    assert (again.state, again.result, ledger.left) == ("done", {"loss": 1.5}, 2.0)


def test_a_killed_run_stays_reserved_and_is_charged_once(tmp_path):
    Ledger(tmp_path / "ledger.json", budget=10.0).reserve({"size": 1}, 8.0)
    later = Ledger(tmp_path / "ledger.json", budget=10.0)
    assert later.left == 2.0
    assert later.reserve({"size": 1}, 8.0).state == "reserved"
    assert later.left == 2.0


def test_threads_never_overdraw(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json", budget=10.0)

    def buy(size: int) -> bool:
        try:
            ledger.reserve({"size": size}, 1.0)
        except OverBudget:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        bought = list(pool.map(buy, range(40)))
    assert sum(bought) == 10
    saved = json.loads((tmp_path / "ledger.json").read_text())
    assert (saved["spent"], len(saved["runs"])) == (10.0, 10)
