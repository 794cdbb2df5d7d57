"""The ops as citizens of torch: gradcheck, opcheck, torch.compile, autocast, fake tensors, CUDA graphs."""

import functools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

import kernels
from kernels import dispatch
from tests.kernels import cases
from tests.kernels.cases import AttentionCase, Backend, each_backend, each_fused

OPTIONS = {"window": 7, "dropout_p": 0.2, "seed": 5}
ENDS = torch.tensor([0, 4, 4, 9])
TARGETS = torch.tensor([3, -100, 0, 12, 3])


def loss(hidden, weight):
    return kernels.linear_cross_entropy(hidden, weight, TARGETS.to(hidden.device))


def angles_like(x):
    return torch.linspace(0, 3, 9 * 3, dtype=x.dtype, device=x.device).view(9, 3)


def turned(x):
    return kernels.rotary(x, angles_like(x))


def leaves(backend, *shapes, dtype=torch.float64):
    made = [cases.randn(*shape, seed=i, dtype=dtype, device=backend.device) for i, shape in enumerate(shapes)]
    return cases.require_grad(made)


ROWS, ROW = (3, 5, 19), (19,)
# Of each op a call and the shapes of its tensors.
OPS = {
    "layer_norm": (kernels.layer_norm, (ROWS, ROW, ROW)),
    "layer_norm without bias": (kernels.layer_norm, (ROWS, ROW)),
    "add_layer_norm": (kernels.add_layer_norm, (ROWS, ROWS, ROW, ROW)),
    "rms_norm": (kernels.rms_norm, (ROWS, ROW)),
    "add_rms_norm": (kernels.add_rms_norm, (ROWS, ROWS, ROW)),
    "gelu": (kernels.gelu, (ROWS, ROW)),
    "gelu without bias": (kernels.gelu, (ROWS,)),
    "gelu by erf": (lambda x, bias: kernels.gelu(x, bias, "none"), (ROWS, ROW)),
    "swiglu": (kernels.swiglu, (ROWS, ROWS, ROW, ROW)),
    "swiglu without bias": (kernels.swiglu, (ROWS, ROWS)),
    "linear_cross_entropy": (loss, ((5, 7), (13, 7))),
    "rotary": (turned, ((2, 9, 2, 6),)),
    "causal_attention": (kernels.causal_attention, ((2, 9, 2, 5),) * 3),
    "grouped heads, window, dropout": (
        lambda q, k, v: kernels.causal_attention(q, k, v, **OPTIONS),
        ((1, 9, 4, 5), (1, 9, 2, 5), (1, 9, 2, 5)),
    ),
    "causal_attention_qkvpacked": (kernels.causal_attention_qkvpacked, ((2, 9, 3, 2, 5),)),
    "causal_attention with angles": (
        lambda q, k, v: kernels.causal_attention(q, k, v, angles=angles_like(q)),
        ((2, 9, 4, 6), (2, 9, 2, 6), (2, 9, 2, 6)),
    ),
    "causal_attention_qkvpacked with angles": (
        lambda qkv: kernels.causal_attention_qkvpacked(qkv, angles=angles_like(qkv)),
        ((2, 9, 3, 2, 6),),
    ),
    "document_attention": (
        lambda q, k, v: kernels.document_attention(q, k, v, ENDS, window=3),
        ((9, 4, 5), (9, 2, 5), (9, 2, 5)),
    ),
}
each_op = pytest.mark.parametrize("name", list(OPS))


@each_fused
@each_op
def test_gradcheck(backend, name):
    op, shapes = OPS[name]
    # The emulator takes a second for a hundred numbers, and the slow mode calls an op twice for each: there, random
    # directions are compared in place of all of them.
    fast = backend.choice == "emulated"
    with kernels.use(backend.choice):
        assert torch.autograd.gradcheck(op, leaves(backend, *shapes), fast_mode=fast)


def raw_attention(library, device):
    """Return the arguments of the attention ops in a library."""
    q, k, v = leaves(Backend("", device), *((1, 6, 2, 8),) * 3, dtype=torch.float32)
    (qkv,) = leaves(Backend("", device), (1, 6, 3, 2, 8), dtype=torch.float32)
    options = (0.3, 4, 0.1, torch.tensor(3, device=device), False)
    turned = [torch.ones(1, 6, 4, device=device)] * 2
    documents = (torch.tensor([0, 2, 6]), *turned)
    plain = [t.detach() for t in (q, k, v, *library.causal_attention(q, k, v, *options, *documents))]
    packed = [t.detach() for t in (qkv, *library.causal_attention_qkvpacked(qkv, *options, *turned))]
    return {
        "causal_attention": (q, k, v, *options, *documents),
        "causal_attention_backward": (plain[3], *plain, *options, *documents),
        "causal_attention_qkvpacked": (qkv, *options, *turned),
        "causal_attention_qkvpacked_backward": (packed[1], *packed, *options, *turned),
    }


def raw_arguments(library, device):
    """Return the arguments of each op in a library."""
    draw = functools.partial(cases.randn, dtype=torch.float32, device=device)
    x, other, weight, bias = draw(3, 8), draw(3, 8), draw(8), draw(8)
    leaf = [t.clone().requires_grad_() for t in (x, other, weight, bias)]
    _, mean, norm_rstd = library.layer_norm(x, weight, bias, 1e-5)
    _, rstd = library.rms_norm(x, weight, 1e-5)
    angles = draw(1, 9, 3)
    hidden, head = draw(5, 7).requires_grad_(), draw(13, 7).requires_grad_()
    moved = [[draw(4, 3), draw(5)] for _ in range(4)]
    return raw_attention(library, device) | {
        "layer_norm": (leaf[0], *leaf[2:], 1e-5),
        "add_layer_norm": (*leaf[:3], None, 1e-5),
        "layer_norm_backward": (other, x, weight, mean, norm_rstd, other),
        "rms_norm": (leaf[0], leaf[2], 1e-5),
        "add_rms_norm": (*leaf[:3], 1e-5),
        "rms_norm_backward": (other, x, weight, rstd, x),
        "gelu": (leaf[0], leaf[3], "tanh"),
        "gelu_backward": (other, x, bias, "none"),
        "swiglu": (leaf[1], leaf[0], None, leaf[3]),
        "swiglu_backward": (other, other, x, None, bias),
        "rotary": (draw(2, 9, 2, 6).requires_grad_(), angles.cos(), angles.sin(), False),
        "linear_cross_entropy": (hidden, head, TARGETS.to(device), torch.float32, 2, True),
        "adamw_": (*moved, 1, 1e-3, 0.9, 0.99, 1e-8, 0.1, 1.0),
    }


WITH_BACKWARD = (
    "layer_norm",
    "rms_norm",
    "gelu",
    "swiglu",
    "causal_attention",
    "causal_attention_qkvpacked",
)
RAW = [f"{op}{suffix}" for op in WITH_BACKWARD for suffix in ("", "_backward")]
RAW += ["add_layer_norm", "add_rms_norm", "rotary", "linear_cross_entropy", "adamw_"]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch 2.14 says it of its own look at our inputs
@each_fused
@pytest.mark.parametrize("name", RAW)
def test_opcheck(backend, name):
    with kernels.use(backend.choice):
        library = dispatch.library(backend.device).ops
    torch.library.opcheck(getattr(library, name), raw_arguments(library, backend.device)[name])


@each_backend
@each_op
def test_compiles_into_one_graph(backend, name):
    if backend.choice == "torch" and name == "document_attention":
        pytest.skip(
            "PyTorch's own attention takes documents as a batch, padded to the longest: a number of the data"
        )
    op, shapes = OPS[name]
    inputs = leaves(backend, *shapes, dtype=torch.float32)
    torch.compiler.reset()  # each backend is one more graph of the op, and their number is limited
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
    inputs = leaves(backend, *shapes)
    tangents = [cases.randn(*shape, seed=20 + i, device=backend.device) for i, shape in enumerate(shapes)]
    with kernels.use(backend.choice):
        found = torch.func.jvp(
            lambda *x: square_sum(op(*x)), tuple(x.detach() for x in inputs), tuple(tangents)
        )[1]
        grads = torch.autograd.grad(square_sum(op(*inputs)), inputs)
    expected = sum((grad * tangent).sum() for grad, tangent in zip(grads, tangents, strict=True))
    torch.testing.assert_close(found, expected)


@each_backend
def test_seeds_windows_and_scales_of_q_compile_once(backend):
    """The first value of a number is a constant of the graph; the second makes it a variable."""
    q = cases.randn(1, 9, 2, 8, dtype=torch.float32, device=backend.device)

    def op(q, window, seed, scale):
        return kernels.causal_attention(q * scale, q, q, window=window, dropout_p=0.2, seed=seed, scale=1.0)

    torch.compiler.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    with kernels.use(backend.choice):
        compiled = torch.compile(op, fullgraph=True, backend=graphs)
        for options in ((3, 5, 0.3), (4, 6, 0.4), (5, 7, 0.5), (6, 2**40, 0.6), (7, -3, 0.7)):
            torch.testing.assert_close(compiled(q, *options), op(q, *options))
    assert graphs.frame_count == 2


@each_fused
def test_a_mask_that_recomputation_would_change_is_refused(backend):
    """torch.compile then draws random numbers twice, also those of its own dropout."""
    q = leaves(backend, (1, 9, 2, 8), dtype=torch.float32)[0]

    def op(q, seed):
        return kernels.causal_attention(q, q, q, dropout_p=0.5, seed=seed)

    torch.compiler.reset()
    compiled = torch.compile(op, backend="aot_eager")
    with kernels.use(backend.choice), torch._functorch.config.patch(activation_memory_budget=0.5):
        with pytest.raises(Exception, match="pass a seed"):
            compiled(q, None)
        torch.testing.assert_close(compiled(q, 3), op(q, 3))


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-50, 1e-42])
def test_a_scale_of_almost_nothing_averages_what_is_seen(backend, dtype, scale):
    q, k, v = cases.attention_inputs(AttentionCase(1, 9, 1, 8), dtype, backend.device)
    with kernels.use(backend.choice):
        found = kernels.causal_attention(q, k, v, scale=scale)
    count = torch.arange(1, 10, device=backend.device).view(1, 9, 1, 1)
    torch.testing.assert_close(
        found.double(), v.double().cumsum(1) / count, rtol=0, atol=4 * torch.finfo(dtype).eps
    )


@each_backend
def test_meta_tensors_have_shapes(backend, capfd):
    q, k = torch.ones(1, 6, 4, 8, device="meta"), torch.ones(1, 6, 2, 8, device="meta")
    with kernels.use(backend.choice):
        out = kernels.causal_attention(q, k, k, dropout_p=0.1, seed=3)
        assert out.is_meta and out.shape == q.shape
        assert kernels.layer_norm(q, q[0, 0, 0]).shape == q.shape
    assert capfd.readouterr().err == ""


@each_fused
@pytest.mark.parametrize("name", [name for name in OPS if name != "rotary"])
def test_a_second_derivative_is_refused(backend, name):
    """Rather than a part of it left out."""
    op, shapes = OPS[name]
    inputs = leaves(backend, *shapes)
    with kernels.use(backend.choice):
        grads = torch.autograd.grad(square_sum(op(*inputs)), inputs, create_graph=True)
        with pytest.raises(RuntimeError, match="not implemented"):
            square_sum(grads).backward()


@each_fused
def test_rotary_has_every_derivative(backend):
    with kernels.use(backend.choice):
        assert torch.autograd.gradgradcheck(turned, leaves(backend, *OPS["rotary"][1]))


def square_sum(outputs):
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return sum(out.square().sum() for out in outputs)


@each_backend
def test_autocast_keeps_the_dtype_of_the_stream(backend):
    """Layer norm runs in the dtype of x or the residual, attention in the lower precision; parameters keep theirs."""
    x, weight = leaves(backend, (4, 6, 2, 8), (8,), dtype=torch.float32)
    with kernels.use(backend.choice), torch.autocast(backend.device, torch.bfloat16):
        assert kernels.layer_norm(x, weight).dtype == torch.float32
        low = kernels.layer_norm(x.bfloat16(), weight)
        assert low.dtype == torch.bfloat16
        normed, total = kernels.add_layer_norm(x.bfloat16(), x, weight)
        assert normed.dtype == total.dtype == torch.float32
        normed, total = kernels.add_layer_norm(x, x.bfloat16(), weight)
        assert normed.dtype == total.dtype == torch.bfloat16
        out = kernels.causal_attention(x, x.bfloat16(), x)
        assert out.dtype == torch.bfloat16
        assert kernels.causal_attention_qkvpacked(x[:, :, None].expand(4, 6, 3, 2, 8)).dtype == torch.bfloat16
    torch.testing.assert_close(low, F.layer_norm(x.bfloat16(), (8,), weight.bfloat16()))
    gradient = torch.autograd.grad(out.float().sum() + normed.float().square().sum(), (x, weight))
    assert all(g.dtype == torch.float32 for g in gradient)


@each_fused
def test_gradients_of_any_stride_are_taken(backend):
    """Autograd hands over expanded and transposed gradients."""
    x, weight = leaves(backend, (3, 5, 8), (8,), dtype=torch.float32)
    q, k, v = leaves(backend, *((1, 6, 2, 8),) * 3, dtype=torch.float32)
    with kernels.use(backend.choice):
        norm, attention = kernels.layer_norm(x, weight), kernels.causal_attention(q, k, v)
        for out, inputs in ((norm, (x, weight)), (attention, (q, k, v))):
            expanded = torch.ones((), device=backend.device).expand(out.shape)
            transposed = cases.randn(*out.shape[::-1], dtype=torch.float32, device=backend.device).permute(
                *range(out.dim())[::-1]
            )
            for grad in (expanded, transposed):
                found = torch.autograd.grad(out, inputs, grad, retain_graph=True)
                expected = torch.autograd.grad(out, inputs, grad.contiguous(), retain_graph=True)
                torch.testing.assert_close(found, expected)


@each_backend
def test_only_what_is_asked_for_gets_a_gradient(backend):
    x, residual, weight = leaves(backend, (3, 8), (3, 8), (8,), dtype=torch.float32)
    with kernels.use(backend.choice):
        normed, total = kernels.add_layer_norm(x, residual.detach(), weight)
        (from_sum,) = torch.autograd.grad(total.sum(), x, retain_graph=True)
        (from_normed,) = torch.autograd.grad(normed.square().sum(), x)
    torch.testing.assert_close(from_sum, torch.ones_like(x))
    assert from_normed.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_replay_with_new_inputs_and_seeds():
    backend = Backend("fused", "cuda")
    inputs = cases.attention_inputs(AttentionCase(2, 65, 2, 64), torch.bfloat16, "cuda")
    q, k, v = cases.require_grad(inputs)
    weight = torch.ones(64, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    seed = torch.tensor(1, device="cuda")

    def step():
        out = kernels.layer_norm(kernels.causal_attention(q, k, v, dropout_p=0.3, seed=seed), weight)
        return [out.detach(), *torch.autograd.grad(square_sum(out), (q, k, v, weight))]

    with kernels.use(backend.choice):
        aside = torch.cuda.Stream()  # nothing may be captured before it has run once, on another stream
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        for value in (1, 2):
            seed.fill_(value)
            q.detach().copy_(torch.randn_like(q))
            graph.replay()
            assert all(torch.equal(ours, again) for ours, again in zip(captured, step(), strict=True))
