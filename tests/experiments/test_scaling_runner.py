"""The runner asks train.py for what the plan says, pays for it once, and survives failures."""

import dataclasses
import itertools
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from data.__main__ import main as data_main
from data.stories import corpus
from data.tokenfile import Meta
from experiments.__main__ import main
from experiments.scaling.fit import Surface
from experiments.scaling.ledger import OverBudget
from experiments.scaling.runner import Plan, Runner, finished, flops_per_token, parameters, read_plan
from model import GPT

TRUE = Surface(e=0.3, a=9.0, b=80.0, alpha=0.4, beta=0.5)
PLAN = Plan(
    budgets=[1e11, 4e11, 1.6e12],
    shapes=[[1, 1, 16], [2, 2, 32], [2, 2, 64], [3, 3, 96], [4, 4, 128]],
    tokens_per_parameter=[0.1, 3000],
    vocab_size=300,
    train={"block_size": 64, "batch_tokens": 1024, "batches": "epochs"},
)


class Programs:
    """Stands in for train.py and data prepare: the loss of a run is that of a known surface."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.calls, self.broken = plan, [], False

    def __call__(self, arguments, threads) -> None:
        words = list(arguments)
        self.calls.append(words)
        given = {name: value for name, value in itertools.pairwise(words) if name.startswith("--")}
        if words[:2] == ["-m", "data"]:
            folder = Path(given["--out"])
            folder.mkdir(parents=True)
            tokens = int(int(given["--stories-bytes"]) / 2.7)
            counts = {"train": tokens, "val": 10}
            meta = Meta(
                "uint16",
                300,
                counts,
                documents={},
                bytes={},
                special_tokens={},
                tokenizer_sha256="",
                source=[],
            )
            (folder / "meta.json").write_text(json.dumps(dataclasses.asdict(meta)))
            return
        if self.broken:
            raise RuntimeError("error: no memory")
        shape = {name: int(given[f"--{name.replace('_', '-')}"]) for name in ("n_layer", "n_head", "n_embd")}
        tokens = int(given["--steps"]) * self.plan.step_tokens
        loss = float(TRUE.loss(float(parameters(self.plan.config(shape), "all")), float(tokens)))
        run = Path(given["--run"])
        run.mkdir(parents=True)
        (run / "report.json").write_text(json.dumps({"val_loss": loss, "tokens": tokens, "seconds": 1.0}))
        (run / "log.jsonl").write_text(json.dumps({"step": 1, "tokens": tokens, "val_loss": loss}) + "\n")


@pytest.fixture
def programs() -> Programs:
    return Programs(PLAN)


def runner(tmp_path, programs, budget=np.inf, jobs=1) -> Runner:
    return Runner(PLAN, tmp_path, budget, jobs, launch=programs)


def test_the_grid_spends_each_budget_on_every_size_that_fits(tmp_path, programs):
    made = runner(tmp_path, programs)
    grid = made.grid()
    assert len(grid) >= 12
    for run in grid:
        n = sum(p.numel() for p in GPT(PLAN.config(run)).parameters())
        assert run["tokens"] % 1024 == 0
        assert made.cost(run) == pytest.approx(6 * n * run["tokens"])
        budget = min(PLAN.budgets, key=lambda c: abs(np.log(made.cost(run) / c)))
        assert abs(run["tokens"] - budget / (6 * n)) <= 512
        assert 0.1 <= run["tokens"] / n <= 3000


def test_all_runs_are_trained_once_and_read_back(tmp_path, programs):
    made = runner(tmp_path, programs, jobs=2)
    grid = made.grid()
    made.measure_all(grid)
    trained = len(programs.calls)
    assert trained == len(grid) + 1  # and the data
    again = runner(tmp_path, programs)
    again.measure_all(grid)
    assert len(programs.calls) == trained
    assert again.ledger.spent == pytest.approx(sum(made.cost(run) for run in grid))
    runs = finished(PLAN, again.ledger, "all", "6nd")
    assert runs.loss == pytest.approx(TRUE.loss(runs.n, runs.d))
    assert 6 * runs.n * runs.d == pytest.approx(runs.c)
    exact = finished(PLAN, again.ledger, "non-embedding", "exact")
    assert all(exact.n < runs.n)
    assert not np.allclose(exact.c, runs.c, rtol=0.02)


def test_the_grid_is_refused_as_a_whole_if_the_budget_is_too_small(tmp_path, programs):
    made = runner(tmp_path, programs, budget=3e12)
    with pytest.raises(OverBudget, match=r"runs need .* and 3e\+12 are left"):
        made.measure_all(made.grid())
    assert not programs.calls
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_is_refunded_and_the_others_go_on(tmp_path, programs, capsys):
    made = runner(tmp_path, programs)
    programs.broken = True
    assert made.measure_all(made.grid()[:2]) == []
    assert made.ledger.spent == 0
    assert "failed, refunded" in capsys.readouterr().out
    programs.broken = False
    assert len(made.measure_all(made.grid()[:2])) == 2


def test_python_callers_query_a_loss(tmp_path, programs):
    made = runner(tmp_path, programs, budget=1e12)
    first = made.loss(n_layer=1, n_head=1, n_embd=16, tokens=102_400)
    assert made.loss(n_layer=1, n_head=1, n_embd=16, tokens=102_400) == first
    assert len(programs.calls) == 2
    with pytest.raises(OverBudget, match="exceeds the"):
        made.loss(n_layer=1, n_head=1, n_embd=16, tokens=102_400_000)
    assert len(programs.calls) == 2


def test_what_the_budget_does_not_pay_for_makes_no_data(tmp_path, programs):
    with pytest.raises(OverBudget, match="exceeds the"):
        runner(tmp_path, programs, budget=1e6).loss(n_layer=1, n_head=1, n_embd=16, tokens=102_400)
    assert not programs.calls and not list(tmp_path.iterdir())


def test_a_run_that_needs_more_data_than_there_is_is_refunded(tmp_path, programs):
    made = runner(tmp_path, programs)
    made.loss(n_layer=1, n_head=1, n_embd=16, tokens=102_400)
    spent = made.ledger.spent
    with pytest.raises(ValueError, match="choose another --out"):
        made.loss(n_layer=1, n_head=1, n_embd=16, tokens=10_240_000)
    assert made.ledger.spent == spent


def test_the_shipped_plan_has_enough_runs_and_budgets():
    plan = read_plan("cpu")
    made = Runner(plan, Path("nowhere"), np.inf)
    assert len(made.grid()) >= 30
    assert len(plan.budgets) >= 5
    assert max(plan.budgets) / min(plan.budgets) >= 30 - 1e-9


def test_exact_flops_are_those_of_the_count(tmp_path):
    config = PLAN.config({"n_layer": 2, "n_head": 2, "n_embd": 32})
    matrices = 2 * 12 * 32**2 + 300 * 32  # blocks and head
    scores = 2 * 2 * 32 * 65 / 2  # each layer: q·k and p·v over a mean context of (T + 1) / 2
    assert flops_per_token(config, "all", "exact") == pytest.approx(3 * (2 * matrices + 2 * scores))


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["run", "--preset", "gpu"], "no plan 'gpu': choose from cpu"),
        (["run", "--budget", "1e9"], "the smallest run of cpu costs"),
        (["run", "--jobs", "0"], "--jobs is 0"),
        (["run", "--budget", "-1"], "--budget is -1"),
        (["fit", "no/such"], "no/such holds no runs"),
        (["predict", "no/such"], "no/such holds no runs"),
        (["fly"], "say what to do: python -m experiments scaling run | fit | predict"),
    ],
)
def test_a_mistake_is_one_line(refused, argv, complaint):
    assert complaint in refused(main, "scaling", *argv)


def test_too_few_finished_runs_are_named(refused, tmp_path, programs):
    made = runner(tmp_path, programs)
    made.measure_all(made.grid()[:4])
    (tmp_path / "plan.json").write_text(json.dumps(dataclasses.asdict(PLAN)))
    assert "4 runs are too few to fit five constants" in refused(main, "scaling", "fit", str(tmp_path))


SHORT = {
    "fit": ["--draws", "8"],
    "predict": ["--draws", "8"],
    "transfer": shlex.split("--preset small.toml --widths 16 32 --rates 1e-3 2e-3 4e-3 --seeds 1"),
}


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    """docs/scaling.md from its first command to its last: a plan's runs are stood in for, those of the sweep short."""
    root = Path(__file__).parents[2]
    page = (root / "docs" / "scaling.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.scaling.runner.run_python", Programs(read_plan("cpu")))
    preset = (root / "presets" / "transfer.toml").read_text(encoding="utf-8")
    Path("small.toml").write_text(re.sub(r"(?m)^(steps|warmup_steps) = (\d+)\d", r"\1 = \2", preset))
    Path("my.txt").write_text("\n".join(corpus(100_000)), encoding="utf-8")
    commands = re.findall(r"^    python -m (.*)$", page, flags=re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        room, *words = shlex.split(command, comments=True)
        {"data": data_main, "experiments": main}[room]([*words, *SHORT.get(words[1], [])])
    assert "of the prediction" in capsys.readouterr().out
    assert all(
        Path("runs", name).exists()
        for name in ("scaling/fit.json", "scaling/verify.json", "transfer/transfer.png")
    )
    (block,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    exec(block, {})
    assert "FLOPs left" in capsys.readouterr().out
