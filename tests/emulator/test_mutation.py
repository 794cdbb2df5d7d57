"""The mutation test notices what it must, lets pass what is the same, and remembers."""

import pytest

from kernels.workbench.emulator import Compiler
from kernels.workbench.mutation import operators, report, runner

NORM = runner.Unit("layer_norm_forward", "float32")
CHANGES = {  # the changed line: how it is noticed
    "values.store(p.sum - row * p.size + column);": "reported by the emulator",
    "const A normalized = (widen(values.at[e]) + mean) * rstd;": "wrong result",
    "return p.size % kPackSize<T> == 0 || in_packs(p.x, p.x_stride) && in_packs(p.residual, p.residual_stride) &&": (
        "reported by the emulator"
    ),
    "Pack<T, N> values = Pack<T, N>::load(p.x - row * p.x_stride + column);": "reported by the emulator",
}


@pytest.fixture(scope="module")
def judge(compiler: Compiler) -> runner.Runner:
    made = runner.Runner(compiler.folder, [NORM])
    made.prepare()
    return made


def changes(lines) -> dict[str, operators.Mutant]:
    text = (runner.CUDA / "layer_norm_forward.cuh").read_text()
    found = {
        m.changed_line(text): m for m in operators.mutants("layer_norm_forward.cuh", text, thorough=True)
    }
    return {line: found[line] for line in lines}


def test_changes_are_noticed_and_remembered(judge: runner.Runner) -> None:
    mutants = changes(CHANGES)
    noticed = {line: judge.judge(mutant) for line, mutant in mutants.items()}
    assert {line: report.kind(verdict) for line, verdict in noticed.items()} == CHANGES
    again = runner.Runner(judge.folder, [NORM])
    assert {line: again.judge(mutant) for line, mutant in mutants.items()} == noticed


def test_comments_directives_and_templates_stay_as_they_are() -> None:
    text = '#include "a < b"\n// a < b\ntemplate <class T, int N = 1 + 1>\nvoid f(T<1> a);\n'
    assert not list(operators.mutants("x.cuh", text, thorough=True))


def test_every_barrier_wait_and_comparison_of_a_kernel_is_changed() -> None:
    text = (runner.CUDA / "attention_short_backward.cuh").read_text()
    found = list(operators.mutants("attention_short_backward.cuh", text, thorough=True))
    code = operators.blank(text)
    for what, count in (
        ("barrier removed", code.count("__syncthreads();")),
        ("wait removed", code.count("ptx::cp_async_")),
        ("comparison", sum(code.count(f" {sign} ") for sign in ("<", "<=", ">", ">=", "==", "!="))),
    ):
        assert sum(mutant.operator == what for mutant in found) == count > 0
    assert len({mutant.apply(text) for mutant in found}) == len(found)


def test_a_sample_of_which_nothing_compiles_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    mutant = operators.Mutant("x.cuh", "comparison", 0, 1, 1, "<", "<=")
    report.show(report.summary({mutant: "does not compile"}, {"x.cuh": "<"}))
    assert "no mutant compiles" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["every", "processes"])
def test_a_number_below_one_is_refused(option: str, refused) -> None:
    assert f"{option} is 0: it must be at least 1" in refused(report.main, f"--{option}", "0")
