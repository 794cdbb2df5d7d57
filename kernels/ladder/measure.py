"""Measures the rungs of the ladder: sectors, wavefronts and mma on the emulator, and time if there is a GPU.

    python -m kernels ladder [OP] [--json PATH]

Counts are exact, for a small shape; they need a C++ compiler and no GPU. Times are medians between device events,
with the L2 cache flushed, against the shipped op and PyTorch's own.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from common import bench, cli
from kernels import reference
from kernels.chunked_loss import IGNORED
from kernels.ladder import OPS, Cuda, Emulated, Rung, prepare, rungs
from kernels.workbench import bench_gpu
from kernels.workbench.bench_cases import Turn
from kernels.workbench.emulator import Compiler

# (rows, C), (rows, V) and (B, T, H, D): of 32768 rows one SM processes about 256.
COUNTED_SHAPES = {"layer_norm": (256, 384), "cross_entropy": (64, 4096), "attention": (1, 256, 1, 64)}
TIMED_SHAPES = {
    "layer_norm": (32768, 384),
    "cross_entropy": (4096, 50304),
    "attention": (16, 1024, 12, 64),
}
SECTOR_BYTES = 32


@dataclass(frozen=True)
class Options:
    """Count the cost of each rung of the ladder, and time it if there is a GPU."""

    op: Annotated[str, tyro.conf.Positional] = "all"
    """layer_norm_forward, layer_norm_backward, cross_entropy_loss, attention_forward or attention_backward"""
    repeat: int = 20
    """runs on a GPU; their median is reported"""
    json: str | None = None
    """also write the rows to this file"""
    build: Path = Path("build/ladder")
    """folder that caches compiled files"""

    def __post_init__(self) -> None:
        if self.op not in ("all", *OPS):
            raise ValueError(f"no op {self.op!r}: choose one of {', '.join(OPS)}")
        if self.repeat < 1:
            raise ValueError(f"repeat is {self.repeat}: it must be at least 1")

    @property
    def ops(self) -> tuple[str, ...]:
        return OPS if self.op == "all" else (self.op,)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; its options are the fields of Options."""
    options = cli.parse(Options, argv, prog="python -m kernels ladder")
    emulated = Emulated(Compiler(options.build), checked=True)
    rows = [row for op in options.ops for row in counted(op, emulated)]
    if torch.cuda.is_available():
        cuda = Cuda(options.build)
        rows += [row for op in options.ops for row in timed(op, cuda, options.repeat)]
    bench.report("ladder", rows, options.json)
    if not torch.cuda.is_available():
        print("counted only: times need an NVIDIA GPU")


def make_inputs(op: str, shape: tuple[int, ...], device: str = "cpu") -> list[Tensor]:
    """Return inputs of seeded normal numbers for the rungs of `op`. shape: (rows, C), (rows, V) or (B, T, H, 64)."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device, torch.bfloat16)

    if op.startswith("layer_norm"):
        x, weight, bias, grad_out = draw(*shape), 1 + 0.3 * draw(shape[1]), draw(shape[1]), draw(*shape)
        statistics = [x.squeeze(1) for x in reference.moments(x.float(), eps=1e-5)]
        return [x, weight, bias] if op.endswith("forward") else [grad_out, x, weight, *statistics]
    if op == "cross_entropy_loss":
        targets = torch.randint(shape[1], shape[:1], generator=generator)
        targets[1::5] = IGNORED
        scale = 1 / (targets != IGNORED).sum()  # of the mean loss
        return [3 * draw(*shape), targets.to(device), scale[None].to(device)]
    q, k, v, grad_out = (draw(*shape) for _ in range(4))
    if op.endswith("forward"):
        return [q, k, v]
    out = reference.causal_attention(q, k, v).contiguous()
    return [grad_out, q, k, v, out, log_sum_exp(q, k)]


def log_sum_exp(q: Tensor, k: Tensor) -> Tensor:
    """Return the log-sum-exp of the scores that each query sees: (B, H, T), float32."""
    scores = torch.einsum("bihd,bjhd->bhij", q.float(), k.float()) * q.shape[-1] ** -0.5
    return scores.masked_fill(
        ~reference.seen(q.shape[1], device=q.device, window=None), -torch.inf
    ).logsumexp(-1)


def counted(op: str, emulated: Emulated) -> list[bench.Row]:
    """Return rows for the cost of an op's rungs, counted by the emulator."""
    shape = COUNTED_SHAPES[op.rsplit("_", 1)[0]]
    inputs = make_inputs(op, shape)
    outputs = prepare(op, inputs, Emulated.SM_COUNT, stream=0).outputs
    once = sum(x.nbytes for x in (*inputs, *outputs)) / SECTOR_BYTES
    return [row for rung in rungs(op) for row in _count(rung, f"{op} {shape}", inputs, once, emulated)]


def _count(rung: Rung, case: str, inputs: list[Tensor], once: float, emulated: Emulated) -> list[bench.Row]:
    """Return rows for sectors against one access to each tensor, wavefronts against none in conflict, and mma."""
    cost, least = {}, {}
    for count in emulated.counts(rung, inputs):
        cost[count.space] = cost.get(count.space, 0) + count.cost
        least[count.space] = least.get(count.space, 0) + count.least
    name = f"{case} {rung.name}"
    rows = [bench.Row(name, cost["global"], "sectors", "each tensor once", once, less_is_better=True)]
    if "shared" in cost:
        conflict_free = least["shared"]
        rows.append(
            bench.Row(
                name, cost["shared"], "wavefronts", "no bank conflicts", conflict_free, less_is_better=True
            )
        )
    if "tensor cores" in cost:
        rows.append(bench.Row(name, cost["tensor cores"], "mma"))
    return rows


def timed(op: str, cuda: Cuda, repeat: int) -> list[bench.Row]:
    """Return rows for the microseconds of an op's rungs on the GPU, against the shipped op and PyTorch's own."""
    shape = TIMED_SHAPES[op.rsplit("_", 1)[0]]
    inputs = make_inputs(op, shape, "cuda")
    climbed = [rung for rung in rungs(op) if not rung.ships]
    call = cuda.prepare(op, inputs)
    has_op = op != "cross_entropy_loss"  # no op has these kernels alone, without the products
    ships = shipped(op, inputs) if has_op else functools.partial(cuda.enqueue, rungs(op)[-1], call)
    peers = {"shipped": ships, "PyTorch": torchs(op, inputs)}
    turns = {rung.name: Turn(functools.partial(cuda.enqueue, rung, call)) for rung in climbed}
    turns |= {name: Turn(peer) for name, peer in peers.items()}
    seconds = bench_gpu.eager_seconds(turns, repeat)
    return [
        bench.Row(
            f"{op} {shape} {name}", seconds[name] * 1e6, "µs", peer, seconds[peer] * 1e6, less_is_better=True
        )
        for name in (*(rung.name for rung in climbed), "shipped")
        for peer in peers
        if name != peer
    ]


def shipped(op: str, inputs: list[Tensor]) -> Callable[[], object]:
    """Return a call of the shipped op with the inputs of a rung."""
    ops = torch.ops.slm
    if op == "layer_norm_forward":
        return lambda: ops.layer_norm(*inputs, 1e-5)
    if op == "layer_norm_backward":
        return lambda: ops.layer_norm_backward(*inputs, None)
    scale = inputs[0].shape[-1] ** -0.5
    if op == "attention_forward":
        return lambda: ops.causal_attention(*inputs, scale, None, 0.0, None)
    return lambda: ops.causal_attention_backward(*inputs, scale, None, 0.0, None)


def torchs(op: str, inputs: list[Tensor]) -> Callable[[], object]:
    """Return a call of PyTorch's op with the inputs of a rung; a backward repeats over one forward."""
    if op == "cross_entropy_loss":
        logits = inputs[0].detach().requires_grad_()
        return lambda: torch.autograd.grad(F.cross_entropy(logits, inputs[1]), logits)
    if op == "layer_norm_forward":
        x, weight, bias = inputs
        return lambda: F.layer_norm(x, weight.shape, weight, bias)
    if op == "attention_forward":
        return lambda: sdpa(*inputs)
    grad_out = inputs[0]
    if op == "layer_norm_backward":
        x, weight = (t.detach().requires_grad_() for t in inputs[1:3])
        leaves = [x, weight, torch.zeros_like(weight).requires_grad_()]
        out = F.layer_norm(x, weight.shape, weight, leaves[2])
    else:
        leaves = [t.detach().requires_grad_() for t in inputs[1:4]]
        out = sdpa(*leaves)
    return lambda: torch.autograd.grad(out, leaves, grad_out, retain_graph=True)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return PyTorch's causal attention for (B, T, H, D)."""
    out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True)
    return out.transpose(1, 2)  # (B, H, T, D) -> (B, T, H, D)
