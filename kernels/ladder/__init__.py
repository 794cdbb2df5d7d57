"""The kernels step by step: each op from a naive CUDA kernel to the shipped one, in files that differ by one idea.

    layer_norm/forward_1_thread_per_row.cuh … forward_5_shipped.cuh, backward_1_… to backward_5_…
    attention/forward_1_materialized.cuh … forward_7_shipped.cuh, backward_1_… to backward_5_…
    cross_entropy/loss_1_thread_per_row.cuh … loss_5_shipped.cuh, the loss's statistics and its gradient

Each file is a rung of the ladder. It exports `extern "C" void OP_NAME(void** tensors, const long long* numbers)`, as in
`layer_norm_forward_thread_per_row`; arguments.cuh in the same folder lists the tensors and numbers. A C++ compiler
builds it for the emulator, nvcc for a GPU, where it runs on torch's current stream:

    compiler = Compiler("build/ladder")
    out, mean, rstd = Emulated(compiler).run(rungs("layer_norm_forward")[0], [x, weight, bias])

Inputs are bfloat16, targets int64; attention has D = 64. docs/kernels/ladder.md explains each rung, `python -m kernels
ladder` measures them.
"""

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kernels import toolchain
from kernels.workbench.emulator import AccessCount, Compiler, Library

HERE = Path(__file__).parent
WIDTH = 64  # D in attention/arguments.cuh
OPS = (
    "layer_norm_forward",
    "layer_norm_backward",
    "cross_entropy_loss",
    "attention_forward",
    "attention_backward",
)


@dataclass(frozen=True)
class Rung:
    """One step of the ladder of `op`; `source` is its file."""

    op: str
    name: str
    source: Path

    def __str__(self) -> str:
        return f"{self.op}_{self.name}"

    @property
    def ships(self) -> bool:
        """True if this is the kernel of csrc/cuda."""
        return self.name == "shipped"

    @property
    def unit(self) -> Path:
        """Return the file to compile, which includes this rung and others."""
        return self.source.parent / ("shipped.cu" if self.ships else f"{self.op.rsplit('_', 1)[1]}.cu")


def rungs(op: str) -> list[Rung]:
    """Return the rungs of an op of OPS, the naive one first.

    >>> [rung.name for rung in rungs("layer_norm_forward")][:2]
    ['thread_per_row', 'block_per_row']
    """
    folder, part = op.rsplit("_", 1)
    sources = sorted((HERE / folder).glob(f"{part}_*.cuh"))
    return [Rung(op, source.stem.split("_", 2)[2], source) for source in sources]


@dataclass(frozen=True)
class Call:
    """The arguments of a rung: all tensors in its order, the outputs among them, and the numbers."""

    tensors: list[Tensor]
    outputs: list[Tensor]
    numbers: list[int]


def prepare(op: str, inputs: Sequence[Tensor], sm_count: int, stream: int) -> Call:
    """Allocate the outputs of an op. inputs: contiguous, as arguments.cuh lists them.

    They are bfloat16, statistics float32, targets int64.
    """
    if not all(x.is_contiguous() for x in inputs):
        raise ValueError("a rung takes contiguous tensors only: call .contiguous() on them")
    if inputs[0].dtype != torch.bfloat16:
        raise ValueError(f"a rung takes bfloat16, not {inputs[0].dtype}: call .bfloat16() on its tensors")
    if op.startswith("attention") and inputs[0].shape[-1] != WIDTH:
        raise ValueError(f"a rung of attention takes (B, T, H, {WIDTH}), not {tuple(inputs[0].shape)}")
    make = {
        "layer_norm_forward": _layer_norm_forward,
        "layer_norm_backward": _layer_norm_backward,
        "cross_entropy_loss": _cross_entropy_loss,
        "attention_forward": _attention_forward,
        "attention_backward": _attention_backward,
    }[op]
    outputs, scratch, sizes = make(*inputs, sm_count=sm_count)
    return Call([*inputs, *outputs, scratch], outputs, [*sizes, sm_count, stream])


def _layer_norm_forward(x, weight, bias, *, sm_count):
    rows, size = x.shape
    statistics = [x.new_empty(rows, dtype=torch.float32) for _ in range(2)]
    return [torch.empty_like(x), *statistics], x.new_empty(1), [rows, size]


def _layer_norm_backward(grad_out, x, weight, mean, rstd, *, sm_count):
    rows, size = x.shape
    outputs = [torch.empty_like(like) for like in (x, weight, weight)]
    lines = 16 * sm_count  # partial_lines in arguments.cuh
    return outputs, mean.new_empty(lines, 2, size), [rows, size]


def _cross_entropy_loss(logits, targets, scale, *, sm_count):
    rows, size = logits.shape
    statistics = [scale.new_empty(rows) for _ in range(3)]  # largest, total, logit of the target
    return [logits.clone(), *statistics], scale.new_empty(1), [rows, size]  # the copy becomes the gradient


def _attention_forward(q, k, v, *, sm_count):
    batch, length, heads, _ = q.shape
    lse = q.new_empty(batch, heads, length, dtype=torch.float32)
    return [torch.empty_like(q), lse], lse.new_empty(batch, heads, length, length), [batch, length, heads]


def _attention_backward(grad_out, q, k, v, out, lse, *, sm_count):
    batch, length, heads, width = q.shape
    matrices = 2 * lse.numel() * length  # used by rung 1
    sums = lse.numel() * (1 + width)  # delta and dq, used by rung 2
    outputs = [torch.empty_like(q) for _ in range(3)]
    return outputs, lse.new_empty(max(matrices, sums)), [batch, length, heads]


class Emulated:
    """Runs rungs of CPU tensors on the emulator. `checked` reports races, and counts (docs/kernels/emulator.md)."""

    SM_COUNT = 1  # SMs of the emulated GPU

    def __init__(self, compiler: Compiler, *, checked: bool = False):
        self._compiler, self._checked = compiler, checked
        self._libraries: dict[Path, Library] = {}

    def library(self, rung: Rung) -> Library:
        """Return the compiled file of a rung, which holds others of its op too."""
        if rung.unit not in self._libraries:
            self._libraries[rung.unit] = self._compiler.compile(rung.unit, checked=self._checked)
        return self._libraries[rung.unit]

    def run(self, rung: Rung, inputs: Sequence[Tensor], **options) -> list[Tensor]:
        """Return the outputs of a rung; options are those of emulator.Library.run."""
        call = prepare(rung.op, inputs, self.SM_COUNT, stream=0)
        arrays = [x.view(torch.int16).numpy() if x.element_size() == 2 else x.numpy() for x in call.tensors]
        self.library(rung).run(str(rung), arrays, call.numbers, **options)
        return call.outputs

    def counts(self, rung: Rung, inputs: Sequence[Tensor]) -> list[AccessCount]:
        """Return the cost of each line of a rung; `checked` only."""
        self.run(rung, inputs, count=True)
        return self.library(rung).counts()


class Cuda:
    """Runs rungs on the current GPU, compiled by nvcc into `folder`; the shipped ones are in the extension instead."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._libraries: dict[Path, ctypes.CDLL] = {}

    def run(self, rung: Rung, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the outputs of a rung, enqueued on torch's current stream."""
        call = self.prepare(rung.op, inputs)
        self.enqueue(rung, call)
        return call.outputs

    def prepare(self, op: str, inputs: Sequence[Tensor]) -> Call:
        """Return the arguments of any rung of an op on the GPU of its inputs."""
        properties = torch.cuda.get_device_properties(inputs[0].device)
        return prepare(op, inputs, properties.multi_processor_count, torch.cuda.current_stream().cuda_stream)

    def enqueue(self, rung: Rung, call: Call) -> None:
        """Launch the kernels of a rung without waiting for them."""
        if rung.unit not in self._libraries:
            architecture = "sm_{}{}".format(*torch.cuda.get_device_capability())
            self._libraries[rung.unit] = load(compile_for_gpu(rung.unit, self._folder, architecture))
        error = launch(self._libraries[rung.unit], rung, [x.data_ptr() for x in call.tensors], call.numbers)
        if error:
            raise RuntimeError(f"{rung}: {error}")


def compile_for_gpu(unit: Path, folder: Path, architecture: str) -> Path:
    """Compile the rungs of a unit by nvcc for one architecture ("sm_80"); a hash of all inputs is in the file name."""
    nvcc = toolchain.nvcc()
    files = [unit, *sorted(HERE.rglob("*.cuh"))]
    digest = hashlib.sha256(f"{nvcc} {architecture} {toolchain.source_hash()}".encode())
    for file in files:
        digest.update(file.read_bytes())
    library = folder / f"{unit.parent.name}-{unit.stem}-{digest.hexdigest()[:16]}-{architecture}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        aside = library.with_suffix(f".{os.getpid()}.part")
        flags = ["-std=c++17", "-O3", "-shared", "-Xcompiler=-fPIC", f"-arch={architecture}"]
        command = [
            nvcc,
            *flags,
            f"-I{toolchain.CSRC / 'cuda'}",
            unit,
            "-o",
            aside,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{unit.name} does not compile:\n{done.stderr}")
        aside.rename(library)
    return library


def load(path: Path) -> ctypes.CDLL:
    """Load a library of compile_for_gpu."""
    library = ctypes.CDLL(str(path))
    library.ladder_call.restype = ctypes.c_char_p
    return library


def launch(library: ctypes.CDLL, rung: Rung, addresses: Sequence[int], numbers: Sequence[int]) -> str | None:
    """Call a rung with device addresses; return None, or the error."""
    error = library.ladder_call(
        getattr(library, str(rung)),
        (ctypes.c_void_p * len(addresses))(*addresses),
        (ctypes.c_longlong * len(numbers))(*numbers),
    )
    return error.decode() if error else None
