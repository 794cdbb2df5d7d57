"""One binary for every processor: the CPU kernels of each instruction set, chosen when the extension is loaded.

torch's own variable ATEN_CPU_CAPABILITY sets the choice, for its ops and for ours.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernels
from kernels import toolchain

pytestmark = pytest.mark.skipif(
    kernels.backends()["cpu"] != "available", reason="the CPU kernels are not built"
)
ORDER = ["DEFAULT", "AVX2", "AVX512"]
# Every CPU op, forward and backward, against the reference in float64; ragged sizes leave partial vectors everywhere.
PROGRAM = """
import torch, kernels
from kernels import _C, decode, reference

torch.manual_seed(0)
print(_C.CPU_CAPABILITY)

def errors(ours, exact, *shapes):
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    found, wanted = ours(*inputs), exact(*wide)
    grad = torch.randn(found.shape)
    grads = torch.autograd.grad(found, inputs, grad), torch.autograd.grad(wanted, wide, grad.double())
    for x, y in zip([found, *grads[0]], [wanted, *grads[1]]):
        yield ((x.double() - y).norm() / y.norm()).item()

shape = (2, 77, 3, 37)
found = [
    *errors(kernels.layer_norm, reference.layer_norm, (9, 77), (77,), (77,)),
    *errors(kernels.causal_attention, reference.causal_attention, shape, shape, shape),
]
x, weight = torch.randn(3, 37), torch.randn(70, 37)
out = decode.packed_linear(x, decode.pack_weight(weight), 70)
found.append(((out.double() - x.double() @ weight.double().T).norm() / out.norm()).item())
print(max(found, key=lambda error: (error != error, error)))
"""


def levels_of_this_processor() -> list[str]:
    """Return what can run here, the baseline first; nothing on a processor that is not x86-64."""
    best = torch.backends.cpu.get_cpu_capability()
    if best not in ORDER:
        return []
    built = ["DEFAULT", *toolchain.levels(toolchain.compiler() or ["c++"])]
    return [level for level in ORDER if level in built and ORDER.index(level) <= ORDER.index(best)]


@pytest.mark.parametrize("level", levels_of_this_processor())
def test_every_level_is_right(level):
    checkout = str(Path(kernels.__file__).parents[1])
    environment = os.environ | {"ATEN_CPU_CAPABILITY": level.lower(), "PYTHONPATH": checkout}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    chosen, error = done.stdout.split()
    assert chosen == level
    assert float(error) < 1e-6


@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump")
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ORDER, reason="not an x86-64 processor")
def test_what_runs_before_the_choice_needs_no_instruction_set():
    """Static initializers run when the binary is loaded, on any processor; so do functions outside the levels."""
    from kernels import _C

    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", _C.__file__], capture_output=True, text=True, check=True
    ).stdout
    functions = re.findall(r"^[0-9a-f]+ <([^>]+)>:\n((?:.+\n)+)", listing, re.MULTILINE)
    assert any("AVX512" in name and "%zmm" in body for name, body in functions)
    wide = [name for name, body in functions if re.search("%[yz]mm", body)]
    assert [name for name in wide if name.startswith("_GLOBAL__sub_I_")] == []
    assert [name for name in wide if "3slm" in name and "AVX" not in name] == []
