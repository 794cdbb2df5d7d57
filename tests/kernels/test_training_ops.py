"""The ops beside attention and layer norm as citizens of torch: gradcheck, opcheck, torch.compile, mistakes."""

import functools

import pytest
import torch

import kernels
from kernels import dispatch
from tests.kernels import cases
from tests.kernels.cases import each_backend, each_fused

TARGETS = torch.tensor([3, -100, 0, 12, 3])


def loss(hidden, weight):
    return kernels.linear_cross_entropy(hidden, weight, TARGETS.to(hidden.device))


def turned(x):
    return kernels.rotary(x, torch.linspace(0, 3, 9 * 3, dtype=x.dtype, device=x.device).view(9, 3))


ROWS, ROW = (3, 5, 19), (19,)
OPS = {
    "rms_norm": (kernels.rms_norm, (ROWS, ROW)),
    "add_rms_norm": (kernels.add_rms_norm, (ROWS, ROWS, ROW)),
    "gelu": (kernels.gelu, (ROWS, ROW)),
    "gelu without bias": (kernels.gelu, (ROWS,)),
    "gelu by erf": (lambda x, bias: kernels.gelu(x, bias, "none"), (ROWS, ROW)),
    "swiglu": (kernels.swiglu, (ROWS, ROWS, ROW, ROW)),
    "swiglu without bias": (kernels.swiglu, (ROWS, ROWS)),
    "rotary": (turned, ((2, 9, 2, 6),)),
    "linear_cross_entropy": (loss, ((5, 7), (13, 7))),
}
each_op = pytest.mark.parametrize("name", list(OPS))


def leaves(backend, shapes, dtype=torch.float64):
    made = [cases.randn(*shape, seed=i, dtype=dtype, device=backend.device) for i, shape in enumerate(shapes)]
    return cases.require_grad(made)


@each_fused
@each_op
def test_gradcheck(backend, name):
    op, shapes = OPS[name]
    with kernels.use(backend.choice):
        assert torch.autograd.gradcheck(op, leaves(backend, shapes), fast_mode=False)


def square_sum(tensors):
    return sum(x.square().sum() for x in (tensors if isinstance(tensors, tuple) else (tensors,)))


@each_backend
@each_op
def test_compiles_into_one_graph(backend, name):
    op, shapes = OPS[name]
    inputs = leaves(backend, shapes, dtype=torch.float32)
    torch.compiler.reset()
    with kernels.use(backend.choice):
        expected = op(*inputs)
        found = torch.compile(op, fullgraph=True, backend="aot_eager")(*inputs)
        torch.testing.assert_close(found, expected)
        grads = [torch.autograd.grad(square_sum(out), inputs) for out in (found, expected)]
        torch.testing.assert_close(*grads)


@each_backend
@each_op
def test_forward_mode_derivatives_are_those_of_backward(backend, name):
    """<g, J t> of forward mode is <Jᵀ g, t> of backward mode."""
    op, shapes = OPS[name]
    inputs = leaves(backend, shapes)
    tangents = [cases.randn(*shape, seed=20 + i, device=backend.device) for i, shape in enumerate(shapes)]
    with kernels.use(backend.choice):
        plain = tuple(x.detach() for x in inputs)
        found = torch.func.jvp(lambda *x: square_sum(op(*x)), plain, tuple(tangents))[1]
        grads = torch.autograd.grad(square_sum(op(*inputs)), inputs)
    expected = sum((grad * tangent).sum() for grad, tangent in zip(grads, tangents, strict=True))
    torch.testing.assert_close(found, expected)


@each_fused
@pytest.mark.parametrize("name", [name for name in OPS if name != "rotary"])
def test_a_second_derivative_is_refused(backend, name):
    """Rather than a part of it left out."""
    op, shapes = OPS[name]
    inputs = leaves(backend, shapes)
    with kernels.use(backend.choice):
        grads = torch.autograd.grad(square_sum(op(*inputs)), inputs, create_graph=True)
        with pytest.raises(RuntimeError, match="not implemented"):
            square_sum(grads).backward()


@each_fused
def test_rotary_has_every_derivative(backend):
    with kernels.use(backend.choice):
        assert torch.autograd.gradgradcheck(turned, leaves(backend, OPS["rotary"][1]))


def raw_arguments(library, device):
    """Return the arguments of each op in a library."""
    draw = functools.partial(cases.randn, dtype=torch.float32, device=device)
    x, gate, weight, bias = draw(3, 8), draw(3, 8), draw(8), draw(8)
    leaf = [t.clone().requires_grad_() for t in (x, gate, weight, bias)]
    hidden, head = draw(5, 7).requires_grad_(), draw(13, 7).requires_grad_()
    angles = draw(1, 9, 3)
    _, rstd = library.rms_norm(x, weight, 1e-5)
    moved = [[draw(4, 3), draw(5)] for _ in range(4)]
    return {
        "rms_norm": (leaf[0], leaf[2], 1e-5),
        "add_rms_norm": (*leaf[:3], 1e-5),
        "rms_norm_backward": (gate, x, weight, rstd, x),
        "gelu": (leaf[0], leaf[3], "tanh"),
        "gelu_backward": (gate, x, bias, "none"),
        "swiglu": (leaf[1], leaf[0], None, leaf[3]),
        "swiglu_backward": (gate, gate, x, None, bias),
        "rotary": (draw(2, 9, 2, 6).requires_grad_(), angles.cos(), angles.sin(), False),
        "linear_cross_entropy": (hidden, head, TARGETS.to(device), torch.float32, 2, True),
        "adamw_": (*moved, 1, 1e-3, 0.9, 0.99, 1e-8, 0.1, 1.0),
    }


RAW = ("rms_norm", "add_rms_norm", "rms_norm_backward", "gelu", "gelu_backward", "swiglu", "swiglu_backward")


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch 2.14 says it of its own look at our inputs
@each_fused
@pytest.mark.parametrize("name", [*RAW, "rotary", "linear_cross_entropy", "adamw_"])
def test_opcheck(backend, name):
    with kernels.use(backend.choice):
        library = dispatch.library(backend.device)
    torch.library.opcheck(getattr(library, name), raw_arguments(library, backend.device)[name])


def strided(*shape):
    return torch.ones(*shape, 2)[..., 0]


X, R = torch.ones(3, 8), torch.ones(8)
HEADS, ANGLES = torch.ones(1, 6, 2, 8), torch.ones(6, 4)
HIDDEN, HEAD, LABELS = torch.ones(3, 8), torch.ones(5, 8), torch.zeros(3, dtype=torch.int64)
MISTAKES = {
    "rms_norm: a scalar": (lambda: kernels.rms_norm(torch.tensor(1.0), R), "x has shape"),
    "rms_norm: strided": (lambda: kernels.rms_norm(strided(3, 8), R), "x has stride 2"),
    "rms_norm: weight": (lambda: kernels.rms_norm(X, R[:7]), "weight has shape"),
    "rms_norm: eps": (lambda: kernels.rms_norm(X, R, 0.0), "eps is 0"),
    "add_rms_norm: residual": (lambda: kernels.add_rms_norm(X, X[:2], R), "residual has shape"),
    "gelu: integers": (lambda: kernels.gelu(X.long()), "x has dtype"),
    "gelu: strided": (lambda: kernels.gelu(strided(3, 8)), "x has stride 2"),
    "gelu: bias": (lambda: kernels.gelu(X, R[:7]), "bias has shape"),
    "gelu: bias of another dtype": (lambda: kernels.gelu(X, R.half()), "bias has dtype"),
    "gelu: form": (lambda: kernels.gelu(X, R, "sigmoid"), "approximate is 'sigmoid'"),
    "swiglu: gate": (lambda: kernels.swiglu(X[:2], X), "gate has shape"),
    "swiglu: gate's dtype": (lambda: kernels.swiglu(X.half(), X), "gate has dtype"),
    "swiglu: bias of the gate": (lambda: kernels.swiglu(X, X, R[:7]), "gate_bias has shape"),
    "rotary: rank": (lambda: kernels.rotary(X, ANGLES), "x has shape"),
    "rotary: odd": (lambda: kernels.rotary(HEADS[..., :7], ANGLES), "x has shape"),
    "rotary: angles": (lambda: kernels.rotary(HEADS, ANGLES[:5]), "angles has shape"),
    "rotary: a gradient": (lambda: kernels.rotary(HEADS, ANGLES.clone().requires_grad_()), "angles requires"),
    "loss: rank": (lambda: kernels.linear_cross_entropy(R, HEAD, LABELS), "hidden has shape"),
    "loss: width": (lambda: kernels.linear_cross_entropy(HIDDEN, HEAD[:, :7], LABELS), "weight has shape"),
    "loss: rows": (lambda: kernels.linear_cross_entropy(HIDDEN, HEAD, LABELS[:2]), "targets has shape"),
    "loss: floats": (lambda: kernels.linear_cross_entropy(HIDDEN, HEAD, LABELS.float()), "targets has dtype"),
    "loss: dtypes": (lambda: kernels.linear_cross_entropy(HIDDEN, HEAD.half(), LABELS), "weight has dtype"),
}


@pytest.mark.parametrize("choice", ["torch", *sorted({b.choice for b in cases.BACKENDS} - {"torch"})])
@pytest.mark.parametrize("call, message", MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_named(choice, call, message):
    with kernels.use(choice), pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
