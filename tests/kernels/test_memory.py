"""No kernel reads outside its tensors: on the CPU they lie against pages that may not be touched."""

import ctypes
import faulthandler
import functools
import itertools
import mmap
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

import kernels
from kernels import decode
from tests.kernels import cases
from tests.kernels.cases import AttentionCase, Backend, by
from tests.kernels.test_decode import step_arguments

PAGE = mmap.PAGESIZE
ON_THE_CPU = [backend for backend in cases.BACKENDS if backend.device == "cpu" and backend.choice != "torch"]
DTYPES = (torch.float32, torch.bfloat16)  # without tensor cores and with them
CASES = [
    *(AttentionCase(1, length, 2, 16) for length in (1, 17, 65)),
    AttentionCase(1, 130, 1, 64),
    AttentionCase(1, 129, 2, 40, kv_heads=1, layout="transposed", dropout_p=0.1),
    AttentionCase(1, 33, 2, 24, layout="sliced"),
    AttentionCase(2, 31, 1, 1),
    AttentionCase(1, 140, 1, 104, window=20),
]
NORM_SHAPES = [(1, 1), (3, 7), (5, 48), (2, 384), (3, 1025)]


def guarded(x: torch.Tensor, edge: str) -> torch.Tensor:
    """A copy with the same strides that begins ("start") or ends ("end") at a page which may not be touched."""
    reach = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    size = reach * x.element_size()
    room = -(-size // PAGE) * PAGE
    memory = mmap.mmap(-1, room + 2 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for page in (address, address + PAGE + room):
        assert protect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0) == 0, ctypes.get_errno()
    offset = PAGE if edge == "start" else PAGE + room - size
    flat = torch.frombuffer(memory, dtype=x.dtype, offset=offset, count=reach)
    flat.copy_(x.as_strided((reach,), (1,)))
    return flat.as_strided(x.shape, x.stride())


def overlapping(dtype: torch.dtype) -> list[torch.Tensor]:
    """(B, T, H, D) whose rows are the same memory, or share some of it."""
    row = cases.randn(1, 1, 1, 16, dtype=dtype).expand(2, 40, 2, 16)
    return [row, row[:, :, :1], cases.randn(64, dtype=dtype).as_strided((1, 40, 1, 8), (64, 1, 8, 1))]


def backward_too(op, *inputs: torch.Tensor, **options) -> list[torch.Tensor]:
    """The result and the gradients, for a gradient that lies against the forbidden page itself."""
    leaves = cases.require_grad(inputs)
    out = op(*leaves, **options)
    grad = guarded(cases.randn(*out.shape, seed=3, dtype=out.dtype), "end")
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def run_between_guards(backend: Backend) -> None:
    """Every op on every case, at both edges; a touch outside ends the process."""
    faulthandler.enable()
    torch.use_deterministic_algorithms(True)
    with kernels.use(backend.choice):
        for edge in ("start", "end"):
            for dtype in DTYPES:
                for case in CASES:
                    inputs = [guarded(x, edge) for x in cases.attention_inputs(case, dtype, "cpu")]
                    for deterministic in (True, False):
                        found = backward_too(
                            kernels.causal_attention, *inputs, **case.options, deterministic=deterministic
                        )
                        assert all(x.isfinite().all() for x in found), (edge, dtype, case)
                for x in overlapping(dtype):
                    assert_as_a_copy(kernels.causal_attention, [guarded(x, edge)] * 3)
                for shape in NORM_SHAPES:
                    x, weight = cases.randn(*shape, dtype=dtype), cases.randn(shape[-1], dtype=dtype)
                    assert_as_a_copy(kernels.layer_norm, [guarded(x, edge), guarded(weight, edge)])
                    assert_as_a_copy(kernels.layer_norm, [guarded(x[:1].expand(4, -1), edge), weight])
                    assert_as_a_copy(kernels.rms_norm, [guarded(x, edge), guarded(weight, edge)])
                    assert_as_a_copy(kernels.gelu, [guarded(x, edge), guarded(weight, edge)])
                    twice = [guarded(x, edge), guarded(x, edge), guarded(weight, edge), guarded(weight, edge)]
                    assert_as_a_copy(kernels.swiglu, twice)
                run_losses(edge, dtype)
                run_turned_and_divided(edge, dtype)
            run_decoding(edge)
            run_adamw(edge)


def run_losses(edge: str, dtype: torch.dtype) -> None:
    for rows, width, ids in ((1, 1, 1), (5, 24, 53), (33, 48, 1030)):
        hidden, weight = cases.randn(rows, width, dtype=dtype), cases.randn(ids, width, dtype=dtype)
        targets = guarded(torch.arange(rows) * 7 % ids, edge)
        loss = functools.partial(row_of_one, kernels.linear_cross_entropy, targets=targets)
        assert_as_a_copy(loss, [guarded(hidden, edge), guarded(weight, edge)])


def row_of_one(op, *inputs: torch.Tensor, **options) -> torch.Tensor:
    return op(*inputs, **options)[None]


def run_turned_and_divided(edge: str, dtype: torch.dtype) -> None:
    """Rotary positions, as an op and in attention's load; documents of 1, 0, 16 and 23 tokens."""
    ends = guarded(torch.tensor([0, 1, 1, 17, 40]), edge)
    for size in (2, 12, 16, 40):
        q, k, v = (guarded(cases.randn(40, 2, size, seed=seed, dtype=dtype), edge) for seed in range(3))
        angles = guarded(cases.randn(40, size // 2), edge)
        assert_as_a_copy(lambda x, turns=angles: kernels.rotary(x, turns), [q[None]])
        for turns in (None, angles):
            attend = functools.partial(kernels.document_attention, ends=ends, angles=turns)
            assert_as_a_copy(attend, [q, k, v])
            attend = functools.partial(kernels.causal_attention, angles=turns)
            assert_as_a_copy(attend, [q[None], k[None], v[None]])


def single(*shape: int, seed: int = 0) -> torch.Tensor:
    return cases.randn(*shape, seed=seed, dtype=torch.float32)


def run_decoding(edge: str) -> None:
    for width, outputs, kind in itertools.product((1, 24, 130), (1, 65), (torch.float32, torch.bfloat16)):
        weight = decode.pack_weight(single(outputs, width).to(kind))
        x, bias = guarded(single(3, width), edge), guarded(single(outputs), edge)
        residual = guarded(single(3, outputs), edge)
        packed = guarded(weight, edge)
        found = decode.packed_linear(x, packed, outputs, bias=bias, activation="gelu", residual=residual)
        assert found.isfinite().all()
    for size, length in ((2, 3), (12, 17), (64, 33)):
        keys, values = (guarded(single(2, 1, length, size, seed=seed), edge) for seed in (1, 2))
        qkv = guarded(single(2, 1, 4, size), edge)
        angles = guarded(single(2, 1, size // 2), edge)
        last = guarded(torch.tensor([[length - 1], [0]]), edge)
        assert decode.cached_attention(qkv, keys, values, last, angles=angles).isfinite().all()
        pages = guarded(torch.tensor([[0], [1]]), edge)
        assert decode.cached_attention(qkv, keys, values, last, pages=pages).isfinite().all()
    for size in (1, 5, 255, 300):
        logits = guarded(single(2, size), edge)
        assert decode.likeliest(logits).tolist() == logits.argmax(-1).tolist()
    step = {
        name: [x if x is None else guarded(x, edge) for x in value] if isinstance(value, list) else value
        for name, value in step_arguments().items()
    }
    assert decode.step(**step).isfinite().all()


def run_adamw(edge: str) -> None:
    for size in (1, 7, 130):
        four = [[guarded(single(size, seed=seed).abs(), edge)] for seed in range(4)]
        kernels.adamw_(*four, step=1, lr=0.1)
        assert four[0][0].isfinite().all()


def assert_as_a_copy(op, inputs: list[torch.Tensor]) -> None:
    """The strides change nothing."""
    found = backward_too(op, *inputs)
    expected = backward_too(op, *(x.contiguous() for x in inputs))
    tolerance = 4 * torch.finfo(found[0].dtype).eps
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", **by(ON_THE_CPU))
def test_nothing_outside_the_tensors_is_read(backend):
    process = multiprocessing.get_context("spawn").Process(target=run_between_guards, args=(backend,))
    process.start()
    process.join()
    assert process.exitcode == 0


def touch(edge: str, distance: int) -> None:
    x = guarded(torch.ones(3), edge)
    ctypes.string_at(x.data_ptr() + distance, 1)


@pytest.mark.parametrize("edge, outside", [("start", -1), ("end", 12)])
def test_the_guard_ends_a_process_that_reads_outside(edge, outside):
    touch(edge, 0)
    touch(edge, 11)
    process = multiprocessing.get_context("spawn").Process(target=touch, args=(edge, outside))
    process.start()
    process.join()
    assert process.exitcode < 0


def growth_of_a_grouped_backward() -> float:
    """How many megabytes the backward takes at its peak, where 256 heads of q, 16 MB, share one of k and v."""
    torch.set_num_threads(1)
    q, k, v = (torch.ones(1, 256, heads, 64, requires_grad=True) for heads in (256, 1, 1))
    out = kernels.causal_attention(q, k, v)
    grad = torch.ones_like(out)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.autograd.grad(out, (q, k, v), grad)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


@pytest.mark.skipif(kernels.backends()["cpu"] != "available", reason="the CPU kernels are not built")
def test_scratch_does_not_grow_with_the_heads_that_share_keys():
    """16 MB are the gradient of q itself; all heads packed at once took 48 MB more for each thread."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        assert process.submit(growth_of_a_grouped_backward).result() < 30
