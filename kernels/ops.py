"""The ops of a training step but attention: norms, activations, the loss of the head, and AdamW.

Each is a function that checks its arguments and calls the op of the library that `dispatch` chose, or PyTorch's own
ops if none is. The schemas are in csrc/ops.cpp, and the ops in torch.ops.slm (torch.ops.slm_emulated holds the same
ones on the emulator). The second half of this file gives each op the shapes of its results, so that torch.compile can
trace it, and its derivative. The ops can be differentiated once; a second derivative is refused. Forward-mode
derivatives (torch.func.jvp) are those of PyTorch's ops, which run in place of the kernels there.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import checks, chunked_loss, dispatch, reference
from kernels.chunked_loss import FLOAT16_ROWS, IGNORED, LEAST_ROWS
from kernels.dispatch import autocast, has_tangent, keep, register, statistics

# Bytes of logits in one chunk. On a CPU a chunk of few rows would read and write the whole gradient of the weight for
# little work (but the logits of the first find room in that gradient's memory); on a GPU it would leave SMs idle.
BUDGET = {"cpu": 32 * 2**20, "cuda": 2**30}

LIKE_ROWS = 64  # positions whose multiples are left if those that are ignored are left out
# Of the positions, so many at most are to be left: choosing them costs something, too.
WORTH_LEAVING_OUT = 0.9


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Return (x - mean) / sqrt(var + eps) * weight + bias over the last dimension (Ba et al. 2016).

    x: (..., C) with unit last stride; weight, bias: (C); all of one dtype: float32, float16, bfloat16 or float64.
    Statistics are float32 or better. Under autocast weight and bias take the dtype of x: torch's own on a GPU
    would turn x into float32, and move twice the bytes for the same statistics. Returns (..., C). ValueError
    that names the argument for anything else.
    """
    checks.check_tensors(x=x, weight=weight)
    checks.check_number("eps", eps)
    x, weight, bias = autocast(x.dtype, x, weight, bias)
    library = dispatch.library(x.device.type)
    if library is None or has_tangent(x, weight, bias):
        checks.check_layer_norm(x, None, weight, bias, eps)
        return torch_layer_norm(x, weight, bias, eps)
    return library.layer_norm(x, weight, bias, eps)[0]


def torch_layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Do as layer_norm with PyTorch's op, without checks."""
    return F.layer_norm(x, weight.shape, weight, bias, eps).to(x.dtype)  # a GPU's autocast gives float32 back


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Return layer_norm(x + residual) and x + residual, in one pass over memory; arguments as for layer_norm.

    The sum is rounded to the dtype of x before it is normalized, as if the two were separate ops. Under
    autocast all but float64 take the dtype of the residual.
    """
    checks.check_tensors(x=x, residual=residual, weight=weight)
    checks.check_number("eps", eps)
    x, residual, weight, bias = autocast(residual.dtype, x, residual, weight, bias)
    library = dispatch.library(x.device.type)
    if library is None or has_tangent(x, residual, weight, bias):
        checks.check_layer_norm(x, residual, weight, bias, eps)
        return torch_add_layer_norm(x, residual, weight, bias, eps)
    return library.add_layer_norm(x, residual, weight, bias, eps)[:2]


def torch_add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Do as add_layer_norm with PyTorch's ops, without checks."""
    total = x + residual
    return torch_layer_norm(total, weight, bias, eps), total


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Return x / sqrt(mean(x²) + eps) * weight over the last dimension: layer norm without the mean.

    Zhang and Sennrich 2019. x: (..., C) with unit last stride; weight: (C); float32, float16, bfloat16 or float64,
    both of one dtype. Statistics are float32 or better. Under autocast the weight takes the dtype of x. ValueError that
    names the argument for anything else.
    """
    x, weight = autocast(x.dtype, x, weight)
    library = dispatch.library(x.device.type)
    if library is None or has_tangent(x, weight):
        checks.check_layer_norm(x, None, weight, None, eps)
        return F.rms_norm(x, weight.shape, weight, eps)
    return library.rms_norm(x, weight, eps)[0]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Return rms_norm(x + residual) and x + residual, as add_layer_norm does; arguments as for rms_norm."""
    x, residual, weight = autocast(residual.dtype, x, residual, weight)
    library = dispatch.library(x.device.type)
    if library is None or has_tangent(x, residual, weight):
        checks.check_layer_norm(x, residual, weight, None, eps)
        total = x + residual
        return F.rms_norm(total, weight.shape, weight, eps), total
    return library.add_rms_norm(x, residual, weight, eps)[:2]


def gelu(x: Tensor, bias: Tensor | None = None, approximate: str = "tanh") -> Tensor:
    """Return GELU(x + bias) in one pass over memory: in GPT-2's "tanh" form, or exactly, by erf ("none").

    Hendrycks and Gimpel 2016. x: (..., C) with unit last stride; bias: (C); float32, float16, bfloat16 or float64,
    both of one dtype. The sum is not rounded first. Under autocast the bias takes the dtype of x.
    ValueError that names the argument for anything else.
    """
    x, bias = autocast(x.dtype, x, bias)
    library = dispatch.library(x.device.type)
    if library is None or has_tangent(x, bias):
        checks.check_gelu(x, bias, approximate)
        return F.gelu(x if bias is None else x + bias, approximate=approximate)
    return library.gelu(x, bias, approximate)


def swiglu(gate: Tensor, x: Tensor, gate_bias: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Return silu(gate + gate_bias) * (x + bias) (Shazeer 2020); arguments as for gelu."""
    gate, x, gate_bias, bias = autocast(x.dtype, gate, x, gate_bias, bias)
    library = dispatch.library(x.device.type)
    if library is None or has_tangent(gate, x, gate_bias, bias):
        checks.check_swiglu(gate, x, gate_bias, bias)
        opened = F.silu(gate if gate_bias is None else gate + gate_bias)
        return opened * (x if bias is None else x + bias)
    return library.swiglu(gate, x, gate_bias, bias)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, budget: int | None = None, cap: float | None = None
) -> Tensor:
    """Return the mean cross-entropy, in nats, of the logits hidden @ weight.T; 0 if every target is ignored.

    hidden: (N, C); weight: (V, C); targets: (N) int64 in 0..V-1, or -100 to be ignored. float32, float16, bfloat16
    or float64; under autocast the products are in its dtype, and losses and sums always in float32 or better. Logits
    take no more than `budget` bytes (None: BUDGET), or those of LEAST_ROWS rows. The gradients are formed
    in the forward pass, when autograd is on. With `cap` the logits are soft-capped, cap · tanh(logits / cap), in
    PyTorch's own ops (chunked_loss.py). Returns a scalar. ValueError that names the argument for anything
    else; on a GPU, where looking would stop its queue, a wrong target makes the loss NaN.
    """
    checks.check_linear_cross_entropy(hidden, weight, targets)
    device = hidden.device.type
    dtype = _product_dtype(hidden, weight)
    library = dispatch.library(device)
    if has_tangent(hidden, weight):
        return reference.linear_cross_entropy(hidden, weight, targets, cap)
    if library is None or cap is not None:
        checks.check_targets(targets, len(weight), IGNORED)
        return chunked_loss.linear_cross_entropy(hidden, weight, targets, budget, cap)
    if device == "cpu" and not torch.compiler.is_compiling():  # a GPU's queue would stop to count
        hidden, targets = _mostly_known(hidden, targets)
    budget = BUDGET.get(device, BUDGET["cuda"]) if budget is None else budget
    most = max(LEAST_ROWS, budget // (dtype.itemsize * weight.shape[0]))
    most = min(most, FLOAT16_ROWS) if dtype == torch.float16 else most
    chunks = max(1, -(-hidden.shape[0] // most))
    rows = max(1, -(-hidden.shape[0] // chunks))  # of equal size but for the last
    gradients = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return library.linear_cross_entropy(hidden, weight, targets, dtype, rows, gradients)[0]


def _mostly_known(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return hidden (N, C) and targets (N,) without most of those that are ignored, which cost as much as the others.

    The number that is left is a multiple of LIKE_ROWS: torch keeps compiled products for every one that it meets.
    """
    ignored = targets == IGNORED  # (N,)
    known = len(targets) - int(ignored.sum())
    rows = max(1, -(-known // LIKE_ROWS)) * LIKE_ROWS
    if rows > WORTH_LEAVING_OUT * len(targets):
        return hidden, targets
    # (rows,): the known ones first, in their order
    chosen = ignored.to(torch.uint8).argsort(stable=True)[:rows]
    return hidden.index_select(0, chosen), targets[chosen]


def _product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return autocast's dtype, if that is on, as for any matrix product; float64 stays."""
    device = hidden.device.type
    if hidden.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    checks.check(
        hidden.dtype == weight.dtype,
        f"weight has dtype {weight.dtype} but hidden has {hidden.dtype}: convert one with .to(dtype)",
    )
    return hidden.dtype


def adamw_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    averages: Sequence[Tensor],
    squares: Sequence[Tensor],
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    gradient_scale: float = 1.0,
) -> None:
    """Take one step of AdamW for all parameters in one call, in place (Loshchilov and Hutter 2017, algorithm 2).

    Four lists in one order: parameters, gradients, and the averages of the gradient and of its square; in each place
    contiguous float32 tensors of one shape. step counts from 1. The gradients are read times `gradient_scale`, so that
    clipping costs no pass of its own. ValueError for anything else.
    """
    lists = [list(each) for each in (parameters, gradients, averages, squares)]
    library = dispatch.library(parameters[0].device.type) if lists[0] else None
    options = step, lr, *betas, eps, weight_decay, gradient_scale
    if library is None:
        checks.check_adamw(*lists, step)
        reference.adamw_(*lists, *options)
    else:
        library.adamw_(*lists, *options)


# What torch needs of each op: the shapes of its results (_fake), what its backward reads (_save), its derivative.


def _fake_layer_norm(x, weight, bias, eps):
    checks.check_layer_norm(x, None, weight, bias, eps)
    return x.new_empty(x.shape), _fake_rows(x), _fake_rows(x)


def _fake_add_layer_norm(x, residual, weight, bias, eps):
    checks.check_layer_norm(x, residual, weight, bias, eps)
    return x.new_empty(x.shape), x.new_empty(x.shape), _fake_rows(x), _fake_rows(x)


def _fake_rows(x):
    """Return one empty number for each row, such as its mean."""
    return x.new_empty(x.numel() // x.shape[-1], dtype=statistics(x.dtype))


def _fake_layer_norm_backward(grad_out, x, weight, mean, rstd, grad_residual):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _save_layer_norm(ctx, inputs, output):
    x, weight, bias, _ = inputs
    keep(ctx, x, weight, *output[1:], without_gradient=output[1:])
    ctx.has_bias = bias is not None


def _save_add_layer_norm(ctx, inputs, output):
    _, _, weight, bias, _ = inputs
    keep(ctx, output[1], weight, *output[2:], without_gradient=output[2:])
    ctx.has_bias = bias is not None


def _layer_norm_gradients(library, ctx, grad_out, *_):
    if grad_out is None:
        return (None,) * 4
    grad_x, grad_weight, grad_bias = library.layer_norm_backward(grad_out, *ctx.saved_tensors, None)
    return grad_x, grad_weight, grad_bias if ctx.has_bias else None, None


def _add_layer_norm_gradients(library, ctx, grad_out, grad_sum, *_):
    if grad_out is None:
        return grad_sum, grad_sum, None, None, None
    grad_x, grad_weight, grad_bias = library.layer_norm_backward(grad_out, *ctx.saved_tensors, grad_sum)
    return grad_x, grad_x, grad_weight, grad_bias if ctx.has_bias else None, None


register("layer_norm", _fake_layer_norm, _save_layer_norm, _layer_norm_gradients)
register("add_layer_norm", _fake_add_layer_norm, _save_add_layer_norm, _add_layer_norm_gradients)
register("layer_norm_backward", _fake_layer_norm_backward)


def _fake_rms_norm(x, weight, eps):
    checks.check_layer_norm(x, None, weight, None, eps)
    return x.new_empty(x.shape), _fake_rows(x)


def _fake_add_rms_norm(x, residual, weight, eps):
    checks.check_layer_norm(x, residual, weight, None, eps)
    return x.new_empty(x.shape), x.new_empty(x.shape), _fake_rows(x)


def _fake_rms_norm_backward(grad_out, x, weight, rstd, grad_residual):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _save_rms_norm(ctx, inputs, output):
    x, weight, _ = inputs
    keep(ctx, x, weight, output[-1], without_gradient=output[1:])


def _save_add_rms_norm(ctx, inputs, output):
    keep(ctx, output[1], inputs[2], output[-1], without_gradient=output[2:])


def _rms_norm_gradients(library, ctx, grad_out, *_):
    if grad_out is None:
        return None, None, None
    return *library.rms_norm_backward(grad_out, *ctx.saved_tensors, None), None


def _add_rms_norm_gradients(library, ctx, grad_out, grad_sum, *_):
    if grad_out is None:
        return grad_sum, grad_sum, None, None
    grad_x, grad_weight = library.rms_norm_backward(grad_out, *ctx.saved_tensors, grad_sum)
    return grad_x, grad_x, grad_weight, None


register("rms_norm", _fake_rms_norm, _save_rms_norm, _rms_norm_gradients)
register("add_rms_norm", _fake_add_rms_norm, _save_add_rms_norm, _add_rms_norm_gradients)
register("rms_norm_backward", _fake_rms_norm_backward)


def _fake_gelu(x, bias, approximate):
    checks.check_gelu(x, bias, approximate)
    return x.new_empty(x.shape)


def _fake_gelu_backward(grad_out, x, bias, approximate):
    return x.new_empty(x.shape), x.new_empty(x.shape[-1:])


def _save_gelu(ctx, inputs, output):
    keep(ctx, *inputs[:2])
    ctx.approximate = inputs[2]


def _gelu_gradients(library, ctx, grad_out):
    if grad_out is None:
        return None, None, None
    x, bias = ctx.saved_tensors
    grad_x, grad_bias = library.gelu_backward(grad_out, x, bias, ctx.approximate)
    return grad_x, None if bias is None else grad_bias, None


def _fake_swiglu(gate, x, gate_bias, bias):
    checks.check_swiglu(gate, x, gate_bias, bias)
    return x.new_empty(x.shape)


def _fake_swiglu_backward(grad_out, gate, x, gate_bias, bias):
    return tuple(x.new_empty(shape) for shape in (x.shape, x.shape, x.shape[-1:], x.shape[-1:]))


def _save_swiglu(ctx, inputs, output):
    keep(ctx, *inputs)


def _swiglu_gradients(library, ctx, grad_out):
    inputs = ctx.saved_tensors
    if grad_out is None:
        return (None,) * 4
    found = library.swiglu_backward(grad_out, *inputs)
    return tuple(None if x is None else grad for x, grad in zip(inputs, found, strict=True))


register("gelu", _fake_gelu, _save_gelu, _gelu_gradients)
register("gelu_backward", _fake_gelu_backward)
register("swiglu", _fake_swiglu, _save_swiglu, _swiglu_gradients)
register("swiglu_backward", _fake_swiglu_backward)


def _fake_cross_entropy(hidden, weight, targets, dtype, rows, gradients):
    checks.check_linear_cross_entropy(hidden, weight, targets)
    loss = hidden.new_empty((), dtype=statistics(dtype))
    if not gradients:
        return loss, hidden.new_empty((0, 0)), weight.new_empty((0, 0))
    return loss, hidden.new_empty(hidden.shape), weight.new_empty(weight.shape)


def _save_cross_entropy(ctx, inputs, output):
    keep(ctx, *inputs[:2], *output[1:], without_gradient=output[1:])
    ctx.has_gradients = inputs[-1]


def _cross_entropy_gradients(library, ctx, grad_loss, *_):
    if grad_loss is None:
        return (None,) * 6
    if not ctx.has_gradients:
        raise RuntimeError("linear_cross_entropy was called with gradients=False: it has no backward pass")
    hidden, weight, *gradients = ctx.saved_tensors
    if not _is_one(grad_loss):
        gradients = library.linear_cross_entropy_backward(grad_loss, hidden, weight, *gradients)
    return *gradients, None, None, None, None


def _is_one(factor: Tensor) -> bool:
    """True if no pass over the gradients is needed: the factor is known to be 1, and nothing more is derived."""
    known = type(factor) is Tensor and factor.device.type == "cpu" and not torch.compiler.is_compiling()
    return known and not torch.is_grad_enabled() and factor.item() == 1


register("linear_cross_entropy", _fake_cross_entropy, _save_cross_entropy, _cross_entropy_gradients)
register("adamw_", lambda *_: None)
