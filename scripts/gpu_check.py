"""Build, test and measure the kernels on this machine's GPU: what scripts/gpu_check.sh runs.

    build     the extension in place, for the GPU that torch sees
    test      tests/kernels
    sanitize  compute-sanitizer (memcheck, racecheck, initcheck, synccheck) on every kernel
    bench     python -m kernels bench
    train     train.py on the built-in corpus in bfloat16, with fused kernels and with torch's
    sample    sample.py on the model that the fused kernels trained
    step      benchmarks/step.py, compared with nanoGPT if NANOGPT names its folder

The stages are in gpu_stages.py. Each has a time limit, and the next one starts whether it passed or not. Stages may
be run one by one: figures of earlier calls are kept as long as the GPU and the kernels' sources stay the same. It
ends with a table and writes benchmarks/results/DEVICE.json. Logs go to $OUT, else to build/gpu_check. Exit status: 0,
1 if a stage failed, 2 if nothing could start. --rehearse runs every stage at a tiny size on the CPU, to test the
check itself, and keeps no result.

Standard library only, so that it runs where little is installed; a stage names the modules that it misses.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import bench, files
from scripts.gpu_stages import ROOT, STAGES, Check, Result, has, run_stage, toolchain

WORK = ROOT / "build" / "gpu_check"
RESULTS = ROOT / "benchmarks" / "results"
LIMIT = 530  # seconds for all stages
TAIL = 20  # lines of a failed stage's log that are shown


FACTS = """
import json, torch
there = torch.cuda.is_available()
capability = ".".join(map(str, torch.cuda.get_device_capability())) if there else None
print(json.dumps({"device": torch.cuda.get_device_name() if there else None, "capability": capability,
                  "torch": torch.__version__, "cuda": torch.version.cuda}))
"""


def facts() -> dict[str, Any]:
    """Return what torch reports about itself and the GPU; exit with status 2 if it cannot be imported."""
    done = subprocess.run([sys.executable, "-c", FACTS], capture_output=True, text=True)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1]
        print(
            f"error: {sys.executable} cannot import torch ({why}): set PYTHON to one that can",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return json.loads(done.stdout.splitlines()[-1])


def load_results(path: Path, identity: dict[str, Any]) -> dict[str, Result]:
    """Return the stages of earlier calls if they ran on the same machine and sources."""
    if not path.is_file():
        return {}
    kept = files.read_json(path)
    if any(kept.get(key) != value for key, value in identity.items()):
        return {}
    rows = kept["rows"]
    return {
        name: Result(
            each["state"], each["note"], each["seconds"], [row for row in rows if row["stage"] == name]
        )
        for name, each in kept["stages"].items()
    }


def as_json(identity: dict[str, Any], results: dict[str, Result]) -> dict[str, Any]:
    """Return the content of DEVICE.json: the common layout, the machine, and the result of each stage."""
    shown = {
        name: {"state": each.state, "seconds": round(each.seconds, 1), "note": each.note}
        for name, each in results.items()
    }
    rows = [{**row, "stage": name} for name, each in results.items() for row in each.rows]
    return {**bench.as_json("gpu", []), **identity, "stages": shown, "rows": rows}


def table(identity: dict[str, Any], results: dict[str, Result]) -> str:
    """Format one screen: the stages, then what the GPU can do and each figure that has a goal, as graph and eager."""
    lines = [f"{identity['device']}, torch {identity['torch']}, CUDA {identity['cuda']}"]
    lines += [f"  {name:9} {r.state:8} {r.seconds:4.0f} s  {r.note[:90]}" for name, r in results.items()]
    rows = [row for each in results.values() for row in each.rows]
    eager = {(row["name"], row["peer"], row["unit"]): row["ratio"] for row in rows}
    aims = [row for row in rows if row.get("goal") or (row["name"].startswith("GPU") and row["ratio"])]
    graphs = {row["name"].removesuffix(", graph") for row in aims if row["name"].endswith(", graph")}
    if aims:
        lines.append(
            f"  {'figure':58} {'ours':>8} {'unit':9} {'beside':16} {'ratio':>6} {'eager':>6} {'goal':>5}"
        )
    for row in aims:
        name = row["name"].removesuffix(", graph")
        if name in graphs and name == row["name"]:
            continue  # printed in the column of its graph
        beside = eager.get((name, row["peer"], row["unit"])) if name != row["name"] else None
        goal = f"{row['goal']:.2f}" if row.get("goal") else ""
        reached = "" if row["ratio"] >= (row.get("goal") or 0) else "  below"
        lines.append(
            f"  {name[:58]:58} {row['ours']:8.4g} {row['unit']:9} {row['peer'][:16]:16} {row['ratio']:6.2f} "
            f"{'' if beside is None else format(beside, '.2f'):>6} {goal:>5}{reached}"
        )
    return "\n".join(lines)


def device_file(identity: dict[str, Any]) -> str:
    """Return the name of a device's results file.

    >>> device_file({"device": "NVIDIA H100 80GB HBM3"})
    'nvidia-h100-80gb-hbm3.json'
    """
    return re.sub(r"[^a-z0-9]+", "-", identity["device"].lower()).strip("-") + ".json"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse `stages` (list of names, empty for all) and `rehearse`; an unknown stage exits with status 2."""
    parser = argparse.ArgumentParser(prog="scripts/gpu_check.sh", description=__doc__.splitlines()[0])
    parser.add_argument(
        "stages", nargs="*", metavar="STAGE", help=f"{', '.join(STAGES)}; all of them by default"
    )
    parser.add_argument("--rehearse", action="store_true", help="every stage at a tiny size on the CPU")
    options = parser.parse_args(argv)
    for name in options.stages:
        if name not in STAGES:
            parser.error(f"no stage {name!r}: choose among {', '.join(STAGES)}")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages asked for, in their order; return the exit status."""
    options, found = parse(argv), facts()
    if not found["device"] and not options.rehearse:
        print("no GPU: torch sees none (--rehearse tries the check on the CPU)", file=sys.stderr)
        return 2
    identity = {**found, "device": "rehearsal" if options.rehearse else found["device"]}
    identity["csrc_sha256"] = toolchain.source_sha256()
    work = WORK / "rehearsal" if options.rehearse else WORK
    folder = Path(os.environ.get("OUT") or work)
    for each in (work, folder):
        each.mkdir(parents=True, exist_ok=True)
    if not has("tyro"):
        print("tyro is not here: scripts/bare/tyro.py reads the flags")
    chosen = [name for name in STAGES if name in (options.stages or STAGES)]
    state = work / device_file(identity)
    results = run_stages(chosen, Check(options.rehearse, work), folder, identity, state)
    if not options.rehearse:
        files.write_json(RESULTS / state.name, as_json(identity, results))
    if folder != work:
        shutil.copy(state, folder)
    print(table(identity, results))
    return int(any(results[name].state == "failed" for name in chosen))


def run_stages(
    chosen: Sequence[str], check: Check, folder: Path, identity: dict[str, Any], state: Path
) -> dict[str, Result]:
    """Run stages in order, print the result of each and keep it in the file `state`."""
    earlier = load_results(state, identity) or load_results(RESULTS / state.name, identity)
    results, end = dict(earlier), time.monotonic() + LIMIT
    for name in chosen:
        print(f"{name} …", flush=True)
        result = results[name] = run_stage(name, check, folder, end)
        print(f"{name} {result.state} ({result.seconds:.0f} s): {result.note}", flush=True)
        if result.state == "failed":
            log = (folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
            print("".join(f"    {line}\n" for line in log.splitlines()[-TAIL:]), flush=True)
        files.write_json(state, as_json(identity, results))
    return {name: results[name] for name in STAGES if name in results}


if __name__ == "__main__":
    sys.exit(main())
