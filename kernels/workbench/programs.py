"""Builds and calls the kernels of csrc/cuda on the emulator, one dtype per build; used by trace and mutation test.

    library = programs.build(Compiler(folder), "attention_short_forward", "bfloat16")
    out, lse = programs.attention_forward(library, q, k, v)

Arrays are numpy's; bfloat16, which numpy lacks, is stored in uint16. What a kernel does not write stays NaN.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kernels import reference
from kernels.workbench.emulator import Compiler, Event, Library

# The dtypes: their names in C++, and the numpy dtypes that store them.
CXX_NAMES = {"float32": "float", "float64": "double", "float16": "__half", "bfloat16": "__nv_bfloat16"}
STORAGE = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": np.uint16}
KINDS = STORAGE | {"int32": np.int32, "int64": np.int64}
MMA_KINDS = {"bf16": "bfloat16", "f16": "float16", "tf32": "float32"}


@dataclass(frozen=True)
class Program:
    """A source file in csrc/programs, the header of kernels that it includes, and its launch with arguments p."""

    source: str
    kernels: str
    call: str = ""


DISPATCH = "attention(p, slm::cuda::Limits{80, 163 * 1024}, nullptr)"
BENDS = {"gelu": "slm::cuda::GeluTanh", "gelu_erf": "slm::cuda::GeluErf", "swiglu": "slm::cuda::Silu"}
PROGRAMS = {
    "layer_norm_forward": Program("layer_norm_forward.cu", "layer_norm_forward.cuh"),
    "layer_norm_backward": Program("layer_norm_backward.cu", "layer_norm_backward.cuh"),
    **{
        f"attention_{kind}_{way}": Program(
            f"attention_{way}.cu", f"{header}.cuh", f"attention_{kind}(p, nullptr)"
        )
        for way in ("forward", "backward")
        for kind, header in (
            ("short", f"attention_short_{way}"),
            ("long", f"attention_long_{way}"),
            ("simple", "attention_simple"),
        )
    },
    "rms_norm_forward": Program("rms_norm_forward.cu", "rms_norm.cuh"),
    "rms_norm_backward": Program("rms_norm_backward.cu", "rms_norm.cuh"),
    **{
        f"{name}_{way}": Program(
            f"activation_{way}.cu", "activation.cuh", f"activation_{way}<{kind}>({rest})"
        )
        for name, kind in BENDS.items()
        for way, rest in (("forward", "p, 1, nullptr"), ("backward", "p, nullptr"))
    },
    "cross_entropy": Program("cross_entropy.cu", "cross_entropy.cuh"),
    "rotary": Program("rotary.cu", "rotary.cuh"),
    "adamw": Program("adamw.cu", "adamw.cuh"),
    "attention_forward": Program("attention_forward.cu", "attention_any.h", DISPATCH),
    "attention_backward": Program("attention_backward.cu", "attention_any.h", DISPATCH),
}


def build(compiler: Compiler, name: str, dtype: str, *, flags: Sequence[str] = ()) -> Library:
    """Compile the program `name` of PROGRAMS for a dtype, with all checks on."""
    program = PROGRAMS[name]
    names = [
        f"-DSLM_T={CXX_NAMES[dtype]}",
        f'-DSLM_KERNELS="{program.kernels}"',
        f"-DSLM_CALL(p)={program.call}",
    ]
    source = compiler.csrc / "programs" / program.source
    return compiler.compile(source, checked=True, flags=[*names, *flags])


def decode(data: bytes, kind: str) -> np.ndarray:
    """Return the numbers in bytes of memory; bfloat16 becomes float32.

    >>> decode(bytes.fromhex("803f00c0"), "bfloat16").tolist()
    [1.0, -2.0]
    """
    if len(data) % np.dtype(KINDS[kind]).itemsize:
        return np.frombuffer(data, np.uint8)
    values = np.frombuffer(data, KINDS[kind])
    return (values.astype(np.uint32) << 16).view(np.float32) if kind == "bfloat16" else values


def encode(values: np.ndarray, kind: str) -> np.ndarray:
    """Return `values` (float64) as `kind` is stored; bfloat16 is the truncated upper half of a float32."""
    if kind == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(KINDS[kind])


def values_of(event: Event, tensors: Sequence[str], registers: str) -> list[np.ndarray]:
    """Return the numbers that a lane gave and got; for a mma the registers of a, b, c and the new c.

    tensors: the dtype of each tensor; registers: how to read registers and shared memory.
    """
    if event.operation.startswith("mma"):
        kind = MMA_KINDS[event.operation.rsplit(".", 1)[1]]
        a, b, c = event.given[:16], event.given[16:24], event.given[24:]
        return [decode(a, kind), decode(b, kind), decode(c, "float32"), decode(event.got, "float32")]
    region, _, number = event.memory.partition(" + ")[0].partition(" ")
    kind = tensors[int(number)] if region == "tensor" else registers
    return [part for part in (decode(event.given, kind), decode(event.got, kind)) if part.size]


def unwritten(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Return an aligned array with all bits set, which is NaN in every floating dtype.

    The alignment makes the count of sectors reproducible.
    """
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.full(count + 64, 0xFF, np.uint8)
    return room[-room.ctypes.data % 64 :][:count].view(dtype).reshape(shape)


def statistics(dtype: np.dtype) -> type:
    """Return the dtype of the statistics for tensors of this dtype."""
    return np.float64 if dtype == np.float64 else np.float32


# The tensors of each program, in the order in which it takes them.
TENSORS = {
    "layer_norm_forward": ("x", "weight", "bias", "residual", "out", "sum", "mean", "rstd"),
    "layer_norm_backward": (
        *("grad_out", "x", "weight", "mean", "rstd", "grad_residual"),
        *("grad_x", "grad_weight", "grad_bias", "partials"),
    ),
    "rms_norm_forward": ("x", "weight", "residual", "out", "sum", "rstd"),
    "rms_norm_backward": (
        *("grad_out", "x", "weight", "rstd", "grad_residual"),
        *("grad_x", "grad_weight", "partials"),
    ),
    "activation_forward": ("gate", "gate_bias", "x", "bias", "out"),
    "activation_backward": (
        *("grad_out", "gate", "gate_bias", "x", "bias"),
        *("grad_gate", "grad_x", "grad_gate_bias", "grad_bias", "partials", "x_partials"),
    ),
    "cross_entropy": ("logits", "targets", "largest", "total", "target", "scale"),
    "attention_forward": ("q", "k", "v", "out", "lse", "seed", "ends"),
    "attention_backward": (
        *("grad_out", "q", "k", "v", "out", "dq", "dk", "dv"),
        *("lse", "delta", "dq_sum", "seed", "ends"),
    ),
}


WIDE = (
    "mean",
    "rstd",
    "partials",
    "x_partials",
    "lse",
    "delta",
    "dq_sum",
    "largest",
    "total",
    "target",
    "scale",
)


def kind_of(name: str, dtype: str) -> str:
    """Return the dtype of the tensor `name` in a program for `dtype`."""
    if name in ("seed", "ends", "targets"):
        return "int64"
    wide = name in WIDE and dtype != "float64"
    return "float32" if wide else dtype


def layer_norm_forward(
    library: Library, x, weight, bias=None, residual=None, sm_count: int = 1, **how
) -> dict[str, np.ndarray]:
    """Return out, mean, rstd and, with a residual, sum, for x and residual of (rows, C)."""
    rows, columns = x.shape
    wide = statistics(x.dtype)
    made = [
        unwritten(x.shape, x.dtype),
        unwritten(x.shape, x.dtype),
        *(unwritten((rows,), wide) for _ in range(2)),
    ]
    given = [x, weight, weight if bias is None else bias, x if residual is None else residual]
    strides = [given[0].strides[0] // x.itemsize, given[3].strides[0] // x.itemsize]
    numbers = [rows, columns, *strides, bias is not None, residual is not None, sm_count]
    library.run("run", [*map(memory, given), *made], numbers, **how)
    return dict(zip(TENSORS["layer_norm_forward"][4:], made, strict=True))


def layer_norm_backward(
    library: Library, grad_out, x, weight, mean, rstd, grad_residual=None, sm_count: int = 1, **how
) -> dict[str, np.ndarray]:
    """Return the gradients of x (rows, C), weight (C) and bias (C)."""
    rows, columns = x.shape
    lines = 4 * sm_count  # layer_norm_partials
    made = [unwritten(shape, x.dtype) for shape in ((rows, columns), (columns,), (columns,))]
    made.append(unwritten((lines, 2, columns), statistics(x.dtype)))
    passed = grad_out if grad_residual is None else grad_residual
    strides = [tensor.strides[0] // x.itemsize for tensor in (grad_out, x, passed)]
    given = map(memory, (grad_out, x, weight, mean, rstd, passed))
    numbers = [rows, columns, *strides, grad_residual is not None, sm_count]
    library.run("run", [*given, *made], numbers, **how)
    return dict(zip(TENSORS["layer_norm_backward"][6:], made, strict=True))


LINES = 64  # kMostLines in columns.cuh


def rms_norm_forward(
    library: Library, x, weight, residual=None, sm_count: int = 1, **how
) -> dict[str, np.ndarray]:
    """Return out, rstd and, with a residual, sum, for x and residual of (rows, C)."""
    rows, columns = x.shape
    made = [unwritten(x.shape, x.dtype), unwritten(x.shape, x.dtype), unwritten((rows,), statistics(x.dtype))]
    given = [x, weight, x if residual is None else residual]
    strides = [given[0].strides[0] // x.itemsize, given[2].strides[0] // x.itemsize]
    numbers = [rows, columns, *strides, residual is not None, sm_count]
    library.run("run", [*map(memory, given), *made], numbers, **how)
    return dict(zip(TENSORS["rms_norm_forward"][3:], made, strict=True))


def rms_norm_backward(
    library: Library, grad_out, x, weight, rstd, grad_residual=None, sm_count: int = 1, **how
) -> dict[str, np.ndarray]:
    """Return the gradients of x (rows, C) and weight (C)."""
    rows, columns = x.shape
    made = [unwritten(shape, x.dtype) for shape in ((rows, columns), (columns,))]
    made.append(unwritten((LINES, columns), statistics(x.dtype)))
    passed = grad_out if grad_residual is None else grad_residual
    strides = [tensor.strides[0] // x.itemsize for tensor in (grad_out, x, passed)]
    given = map(memory, (grad_out, x, weight, rstd, passed))
    numbers = [rows, columns, *strides, grad_residual is not None, sm_count]
    library.run("run", [*given, *made], numbers, **how)
    return dict(zip(TENSORS["rms_norm_backward"][5:], made, strict=True))


def activation_forward(library: Library, gate, gate_bias, x=None, bias=None, **how) -> dict[str, np.ndarray]:
    """Return out (rows, C); gate_bias and bias: (C), both or neither; x: for SwiGLU."""
    (rows, columns), gated = gate.shape, x is not None
    given = _activation_inputs(gate, gate_bias, x, bias)
    made = unwritten(gate.shape, gate.dtype)
    strides = [tensor.strides[0] // gate.itemsize for tensor in (given[0], given[2])]
    numbers = [rows, columns, *strides, gate_bias is not None, gated]
    library.run("run", [*map(memory, given), made], numbers, **how)
    return {"out": made}


def activation_backward(
    library: Library, grad_out, gate, gate_bias, x=None, bias=None, **how
) -> dict[str, np.ndarray]:
    """Return the gradients of gate and its bias, and for SwiGLU of x and its bias."""
    (rows, columns), gated = gate.shape, x is not None
    given = [grad_out, *_activation_inputs(gate, gate_bias, x, bias)]
    made = [unwritten(shape, gate.dtype) for shape in (gate.shape, gate.shape, (columns,), (columns,))]
    scratch = [unwritten((LINES, columns), statistics(gate.dtype)) for _ in range(2)]
    strides = [given[i].strides[0] // gate.itemsize for i in (0, 1, 3)]
    numbers = [rows, columns, *strides, gate_bias is not None, gated]
    library.run("run", [*map(memory, given), *made, *scratch], numbers, **how)
    return dict(zip(TENSORS["activation_backward"][5:9], made, strict=True))


def _activation_inputs(gate, gate_bias, x, bias) -> list[np.ndarray]:
    """Return what a kernel is handed; in place of an input that it is told to leave out, any memory."""
    gate_bias = gate[0] if gate_bias is None else gate_bias
    return [gate, gate_bias, gate if x is None else x, gate_bias if bias is None else bias]


def cross_entropy(library: Library, logits, targets, scale, **how) -> dict[str, np.ndarray]:
    """Return the gradient (rows, V) and the statistics (rows,); logits contiguous."""
    rows, columns = logits.shape
    gradient = unwritten(logits.shape, logits.dtype)
    gradient[...] = logits
    made = [unwritten((rows,), statistics(logits.dtype)) for _ in range(3)]
    library.run("run", [gradient, targets, *made, scale], [rows, columns], **how)
    return {"gradient": gradient, **dict(zip(("largest", "total", "target"), made, strict=True))}


def rotary(library: Library, x, cos, sin, back: bool, **how) -> dict[str, np.ndarray]:
    """Return out for x (B, T, H, D) and cos and sin (1 or B, T, D/2); back: turned the other way."""
    (batch, length, heads, width), made = x.shape, unwritten(x.shape, x.dtype)
    strides = [stride // x.itemsize for stride in x.strides[:3]]
    numbers = [batch, length, heads, width // 2, *strides, 0 if len(cos) == 1 else cos[0].size, back]
    library.run("run", [memory(x), cos, sin, made], numbers, **how)
    return {"out": made}


def adamw(library: Library, *lists: Sequence[np.ndarray], options: Sequence[float], **how):
    """Return parameters, averages and squares after a step, each as one array.

    lists: parameters, gradients, averages, squares; options: beta1, beta2, eps, kept, rate, root and gradient_scale, as
    adamw.cuh has them.
    """
    copies = [[tensor.copy() for tensor in each] for each in lists]
    tensors = [tensor for group in zip(*copies, strict=True) for tensor in group]
    numbers = [len(copies[0]), *(tensor.size for tensor in copies[0])]
    library.run("run", [np.array(options, np.float32), *tensors], numbers, **how)
    made = {"parameter": copies[0], "average": copies[2], "square": copies[3]}
    return {name: np.concatenate(each) for name, each in made.items()}


def attention_forward(library: Library, q, k, v, options: dict, **how) -> dict[str, np.ndarray]:
    """Return out and lse (B, H, T), for q (B, T, H, D) and k, v (B, T, Hkv, D). options: see `attention_numbers`."""
    batch, length, heads, _ = q.shape
    made = [unwritten(q.shape, q.dtype), unwritten((batch, heads, length), statistics(q.dtype))]
    numbers, *rest = attention_numbers([q, k, v, made[0]], q, k, **options)
    library.run("run", [*map(memory, (q, k, v)), *made, *rest], numbers, **how)
    return {"out": made[0], "lse": made[1]}


def attention_backward(
    library: Library, grad_out, q, k, v, out, lse, options: dict, **how
) -> dict[str, np.ndarray]:
    """Return dq, dk and dv."""
    batch, length, heads, width = q.shape
    made = [unwritten(tensor.shape, q.dtype) for tensor in (q, k, v)]
    given = [grad_out, q, k, v, out]
    numbers, *rest = attention_numbers([*given, *made], q, k, **options)
    scratch = [unwritten(lse.shape, lse.dtype), unwritten((batch, heads, length, width), lse.dtype)]
    tensors = [*map(memory, given), *made, lse, *scratch, *rest]
    library.run("run", tensors, numbers, **how)
    return dict(zip(("dq", "dk", "dv"), made, strict=True))


def attention_numbers(
    tensors: Sequence[np.ndarray],
    q,
    k,
    *,
    scale=None,
    window=None,
    dropout_p=0.0,
    seed=0,
    any_order=False,
    ends: Sequence[int] = (),
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Return the numbers that csrc/programs/attention.h reads, and the tensors of the seed and of the documents."""
    batch, length, heads, width = q.shape
    (bits,) = struct.unpack("q", struct.pack("d", width**-0.5 if scale is None else scale))
    threshold = reference.keep_threshold(dropout_p) if dropout_p else 0
    shape = [
        len(ends) - 1 if ends else batch,
        length,
        heads,
        k.shape[2],
        width,
        min(window or length, length),
        bits,
        threshold,
        any_order,
        bool(ends),
    ]
    strides = [stride // tensor.itemsize for tensor in tensors for stride in tensor.strides[:3]]
    return shape + strides, np.array([seed], np.int64), np.array(ends or [0], np.int64)


def memory(tensor: np.ndarray) -> np.ndarray:
    """Return the memory of a view, from its first to its last element."""
    if not tensor.size:
        return tensor
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    return np.lib.stride_tricks.as_strided(tensor, (last // tensor.itemsize + 1,), (tensor.itemsize,))
