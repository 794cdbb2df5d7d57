"""The kernels that ship, with every check of the emulator on: nothing is reported and every result is right."""

import pytest

from kernels.workbench import programs, trials
from kernels.workbench.emulator import Compiler
from kernels.workbench.mutation.cases import CASES
from kernels.workbench.mutation.runner import UNITS
from kernels.workbench.trials import Norm

FIRST, OTHERS = UNITS[: len(CASES)], UNITS[len(CASES) :]


def check(compiler: Compiler, program: str, dtype: str, seeds: range) -> None:
    library = programs.build(compiler, program, dtype)
    for case in CASES[program]:
        trial = trials.prepare(program, case, dtype)
        for seed in seeds:
            assert trial.fault(trial.run(library, seed=seed)) is None, trial.name


@pytest.mark.parametrize("unit", FIRST, ids=str)
def test_kernels_are_right_and_free_of_faults(compiler: Compiler, unit) -> None:
    check(compiler, unit.program, unit.dtype, range(1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS, ids=str)
def test_kernels_are_right_in_twenty_orders(compiler: Compiler, unit) -> None:
    check(compiler, unit.program, unit.dtype, range(20))


@pytest.mark.parametrize("columns", [512, 768, 1024])
def test_the_layer_norms_columns_meet_on_no_bank(compiler: Compiler, columns: int) -> None:
    library = programs.build(compiler, "layer_norm_backward", "bfloat16")
    trials.prepare("layer_norm_backward", Norm(5, columns), "bfloat16").run(library, count=True)
    shared = [count for count in library.counts() if count.space == "shared"]
    assert shared and all(count.cost == count.least for count in shared)
