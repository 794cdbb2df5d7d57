"""The check of a GPU: its stages, limits, results and table, and a rehearsal of it on the CPU."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from scripts import gpu_check, gpu_stages

ROOT = Path(__file__).parents[2]
H100 = {"device": "NVIDIA H100 80GB HBM3", "capability": "9.0", "torch": "2.11.0", "cuda": "13.0"}


@pytest.fixture
def check(monkeypatch, tmp_path):
    """Return the script with a GPU that is only claimed, and all that it writes in a folder."""
    monkeypatch.setattr(gpu_check, "WORK", tmp_path / "work")
    monkeypatch.setattr(gpu_check, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(gpu_check, "facts", lambda: dict(H100))
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    return gpu_check


def stages(check, monkeypatch, **programs):
    """Return stages that each run one line of Python."""

    def stage(code, seconds=20, needs=()):
        def run(context):
            return check.Result("passed", context.python("-c", code).strip())

        return gpu_stages.Stage(run, seconds, needs)

    made = {
        name: stage(*(value if isinstance(value, tuple) else (value,))) for name, value in programs.items()
    }
    for module in (check, gpu_stages):
        monkeypatch.setattr(module, "STAGES", made)


def test_without_a_gpu_nothing_begins(capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run(
        [ROOT / "scripts" / "gpu_check.sh"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.startswith("no GPU: ") and done.stderr.count("\n") == 1


def test_a_stage_that_fails_hangs_or_lacks_a_module_does_not_stop_the_next(
    check, monkeypatch, tmp_path, capsys
):
    stages(
        check,
        monkeypatch,
        broken="raise SystemExit('out of luck')",
        hangs=("import os, time; print('pid', os.getpid(), flush=True); time.sleep(60)", 2),
        lacks=("", 20, ("no_such_module",)),
        good="print('all is well')",
    )
    assert check.main([]) == 1
    written = json.loads((tmp_path / "results" / "nvidia-h100-80gb-hbm3.json").read_text())
    assert {name: each["state"] for name, each in written["stages"].items()} == {
        "broken": "failed",
        "hangs": "failed",
        "lacks": "skipped",
        "good": "passed",
    }
    notes = {name: each["note"] for name, each in written["stages"].items()}
    assert notes["broken"].startswith("exit status 1") and "time limit" in notes["hangs"]
    assert notes["lacks"] == "Python has no no_such_module" and notes["good"] == "all is well"
    assert written["stages"]["hangs"]["seconds"] < 10
    assert "    out of luck\n" in capsys.readouterr().out
    (pid,) = re.findall(r"^pid (\d+)$", (tmp_path / "out" / "hangs.log").read_text(), re.MULTILINE)
    assert not Path("/proc", pid).exists()  # it was ended


def test_the_results_are_in_the_common_layout_and_say_what_was_measured(check, monkeypatch, tmp_path):
    row = {"name": "a", "ours": 2.0, "unit": "µs", "peer": "b", "peer_value": 4.0, "ratio": 2.0, "goal": 1.2}
    result = check.Result("passed", "", rows=[row])
    for module in (check, gpu_stages):
        monkeypatch.setattr(module, "STAGES", {"bench": gpu_stages.Stage(lambda _: result, 20, ())})
    assert check.main(["bench"]) == 0
    written = json.loads((tmp_path / "results" / "nvidia-h100-80gb-hbm3.json").read_text())
    assert {"benchmark", "machine", "date", "rows"} <= set(written) and written["benchmark"] == "gpu"
    assert written["rows"] == [{**row, "stage": "bench"}]
    assert {key: written[key] for key in H100} == H100 and len(written["csrc_sha256"]) == 64
    assert json.loads((tmp_path / "out" / "nvidia-h100-80gb-hbm3.json").read_text()) == written


def test_figures_of_earlier_calls_are_kept_for_the_same_gpu_and_sources_only(check, monkeypatch, tmp_path):
    stages(check, monkeypatch, first="print(1)", second="print(2)")
    state = tmp_path / "work" / "nvidia-h100-80gb-hbm3.json"
    check.main(["first"])
    check.main(["second"])
    assert list(json.loads(state.read_text())["stages"]) == ["first", "second"]
    state.unlink()  # as on a machine that is new, with the results of an earlier one
    check.main(["second"])
    assert list(json.loads(state.read_text())["stages"]) == ["first", "second"]
    monkeypatch.setattr(check.toolchain, "source_sha256", lambda: "0" * 64)
    check.main(["second"])
    assert list(json.loads(state.read_text())["stages"]) == ["second"]


def test_a_stage_for_which_no_time_is_left_is_skipped(check, monkeypatch, capsys):
    assert check.LIMIT < 9 * 60  # as docs/performance.md says
    monkeypatch.setattr(check, "LIMIT", 4)
    stages(check, monkeypatch, late="print('never')")
    assert check.main([]) == 0
    assert "late skipped (0 s): no time is left: scripts/gpu_check.sh late" in capsys.readouterr().out


FAKE_SANITIZER = """#!/bin/sh
echo "$PYTORCH_NO_CUDA_MEMORY_CACHING $@" >> "$(dirname "$0")/calls"
[ "$2" != racecheck ] || exit 9
"""


def test_each_sanitizer_watches_all_kernels_and_its_findings_fail_the_stage(check, monkeypatch, tmp_path):
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text(FAKE_SANITIZER)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    context = check.Check(rehearse=False, work=tmp_path)
    result = check.run_stage("sanitize", context, tmp_path, time.monotonic() + 90)
    assert (result.state, result.note) == ("failed", "see the log: racecheck (9)")
    calls = sorted((tool.parent / "calls").read_text().splitlines())
    assert [call.split()[2] for call in calls] == ["initcheck", "memcheck", "racecheck", "synccheck"]
    assert all(
        call.startswith("1 --tool ") and call.endswith("-m kernels.workbench.smoke --device cuda")
        for call in calls
    )


def a_row(name, peer, ratio, unit="µs", goal=None):
    return {
        "name": name,
        "ours": 1.0,
        "unit": unit,
        "peer": peer,
        "peer_value": ratio,
        "ratio": ratio,
        "goal": goal,
    }


def test_the_table_shows_each_goal_once_with_graph_and_eager_ratio(check):
    rows = [
        a_row("GPU memory, copy", "datasheet", 0.9, unit="GB/s"),
        a_row("layer_norm forward", "best", 0.9, goal=1.2),
        a_row("layer_norm forward, graph", "best", 1.3, goal=1.2),
        a_row("layer_norm backward, graph", "best", 1.3, goal=1.4),
        a_row("layer_norm backward", "best", 1.0),
        a_row("step tiny", "nanoGPT", 1.5, unit="tokens/s", goal=1.2),
    ]
    shown = check.table(H100, {"bench": check.Result("passed", "5 figures", 3.0, rows)}).splitlines()
    assert len(shown) == 7
    assert shown[3].split()[-2:] == ["datasheet", "0.90"]
    assert shown[4].split() == ["layer_norm", "forward", "1", "µs", "best", "1.30", "0.90", "1.20"]
    assert shown[5].split()[-4:] == ["1.30", "1.00", "1.40", "below"]
    assert shown[6].split()[-2:] == ["1.50", "1.20"]


def test_every_goal_of_the_kernels_fits_one_screen(check):
    from kernels.workbench import bench

    rows = [a_row(f"{name}, graph", peer, 1.0, goal=goal) for name, peer, goal in bench.goals()]
    shown = check.table(H100, {"bench": check.Result("passed", "", 0, rows)}).splitlines()
    assert len(rows) < len(shown) < 50


def rehearsed(check, tmp_path, *names: str) -> dict:
    """Return what a rehearsal of these stages writes; none failed or was skipped."""
    assert check.main([*names, "--rehearse"]) == 0  # what failed is printed
    assert not (tmp_path / "results").exists()
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"rehearsal.json", *(f"{name}.log" for name in names)}
    written = json.loads((tmp_path / "out" / "rehearsal.json").read_text())
    assert {name: each["state"] for name, each in written["stages"].items()} == dict.fromkeys(names, "passed")
    return written


def test_a_rehearsal_runs_on_the_cpu_and_keeps_no_result(check, tmp_path):
    written = rehearsed(check, tmp_path, "sanitize")
    assert "cases on cpu agree with the reference" in written["stages"]["sanitize"]["note"]


@pytest.mark.slow
def test_a_rehearsal_goes_through_all_stages_but_the_build(check, tmp_path):
    written = rehearsed(check, tmp_path, *(name for name in check.STAGES if name != "build"))
    names = {row["name"].split()[0] for row in written["rows"]}
    assert names == {"layer_norm", "add_layer_norm", "causal_attention", "train", "step"}
    assert " passed" in written["stages"]["test"]["note"]


def test_an_unknown_stage_is_refused(check, capsys):
    with pytest.raises(SystemExit) as stop:
        check.main(["fly"])
    assert stop.value.code == 2 and "no stage 'fly'" in capsys.readouterr().err
