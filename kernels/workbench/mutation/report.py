"""python -m kernels mutate: changes the CUDA kernels, one small change at a time, and counts those that go unnoticed.

The files of attention take an hour on one core, a thorough run twice as long; a run that was stopped resumes.
"""

import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import bench, cli, files
from kernels.workbench.mutation.operators import Mutant, mutants

EXPLANATIONS = Path(__file__).with_name("survivors.toml")
# The columns of the table, and the prefixes of the verdicts of runner.py.
KINDS = {
    "wrong result": ("wrong",),
    "reported by the emulator": ("reported",),
    "hangs or crashes": ("hangs", "crashes"),
    "more work": ("more work",),
    "does not compile": ("does not compile",),
    "survived": ("survived",),
}


@dataclass(frozen=True)
class Options:
    """Change the CUDA kernels, one small change at a time, and count those that go unnoticed."""

    files: tuple[str, ...] = ()
    """only these files of csrc/cuda, such as score_tile.cuh"""
    thorough: bool = False
    """also swap + and -, and remove each statement: twice as many changes"""
    every: int = 1
    """sample: only every n-th mutant"""
    processes: int = 2
    """number of mutants that run at once"""
    folder: Path = Path("build/mutation")
    """folder that caches builds and verdicts"""
    json: Path | None = None
    """write the counts and the survivors to this file"""

    def __post_init__(self) -> None:
        for name, value in (("every", self.every), ("processes", self.processes)):
            if value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")


def kind(verdict: str) -> str:
    """Return the kind of a verdict, a key of KINDS.

    >>> kind("wrong dq: off by 0.5, allowed 0.1")
    'wrong result'
    """
    return next(name for name, starts in KINDS.items() if verdict.startswith(starts))


def explanations() -> dict[tuple[str, str], dict]:
    """Return the reasons why changes have no noticeable effect, by file and changed line."""
    groups = tomllib.loads(EXPLANATIONS.read_text(encoding="utf-8")).get("survivor", [])
    return {(group["file"], line): group for group in groups for line in group["lines"]}


def survivors(verdicts: dict[Mutant, str], texts: dict[str, str]) -> list[dict]:
    """Return the mutants that nothing noticed, each with its reason or None."""
    reasons = explanations()
    found = []
    for mutant in sorted((m for m in verdicts if verdicts[m] == "survived"), key=lambda m: (m.file, m.start)):
        line = mutant.changed_line(texts[mutant.file])
        row = {"file": mutant.file, "line": mutant.line, "operator": mutant.operator, "becomes": line}
        group = reasons.get((mutant.file, line), {})
        found.append(row | {"reason": group.get("reason"), "wrong": group.get("wrong", not group)})
    return found


def summary(verdicts: dict[Mutant, str], texts: dict[str, str]) -> dict:
    """Return the contents of the file that --json writes."""
    counts = Counter(kind(verdict) for verdict in verdicts.values())
    built = len(verdicts) - counts["does not compile"]
    unnoticed = survivors(verdicts, texts)
    equivalent = sum(not row["wrong"] for row in unnoticed)
    killed = built - counts["survived"]

    def share(of: int) -> float | None:
        return round(killed / of, 4) if of else None

    by_file = {name: Counter(kind(v) for m, v in verdicts.items() if m.file == name) for name in texts}
    return {
        "machine": bench.machine(),
        "mutants": len(verdicts),
        "killed_of_those_that_compile": share(built),
        "killed_of_those_that_change_a_result": share(built - equivalent),
        "counts": {name: counts[name] for name in KINDS},
        "files": {name: {k: found[k] for k in KINDS} for name, found in by_file.items() if found},
        "operators": dict(Counter(mutant.operator for mutant in verdicts)),
        "survivors": unnoticed,
    }


def show(result: dict) -> None:
    """Print the counts as a table, then the survivors without a reason."""
    from rich.console import Console
    from rich.table import Table

    table = Table("file", *KINDS)
    for name, counts in (result["files"] | {"all": result["counts"]}).items():
        table.add_row(name, *(str(count) for count in counts.values()))
    console = Console()
    console.print(table)
    whole, wrong = (result[f"killed_of_those_that_{what}"] for what in ("compile", "change_a_result"))
    console.print(
        "no mutant compiles"
        if whole is None
        else f"killed: {whole:.1%} of the mutants that compile, {wrong:.1%} of those that change a result"
    )
    for row in result["survivors"]:
        if row["reason"] is None:
            console.print(f"unexplained: {row['file']}:{row['line']} {row['becomes']}", markup=False)


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; its options are the fields of Options. Exit code 1 if a survivor has no reason."""
    from rich.progress import track

    from kernels.workbench.mutation.runner import STAGES, Runner, judge_all, kernel_files

    options = cli.parse(Options, argv, prog="python -m kernels mutate")
    texts = {path.name: path.read_text() for path in kernel_files()}
    unknown = set(options.files) - set(texts)
    if unknown:
        raise ValueError(f"no kernel is called {', '.join(sorted(unknown))}: there are {', '.join(texts)}")
    chosen = [m for name in options.files or texts for m in mutants(name, texts[name], options.thorough)][
        :: options.every
    ]
    changed = {mutant.file for mutant in chosen}
    runner = Runner(options.folder, [unit for unit in STAGES if unit.includes() & changed])
    runner.prepare()
    verdicts = {}
    for mutant, verdict in track(judge_all(runner, chosen, options.processes), "mutants", len(chosen)):
        verdicts[mutant] = verdict
    result = summary(verdicts, texts)
    if options.json:
        files.write_json(options.json, result)
    show(result)
    if any(row["reason"] is None for row in result["survivors"]):
        raise SystemExit(1)
