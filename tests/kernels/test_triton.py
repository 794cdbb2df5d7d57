"""The Triton twins in Triton's interpreter, against float64 and beside torch's own error; skipped without Triton."""

import os

import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined
pytest.importorskip("triton", reason="triton is not installed: pip install triton")

import torch
import torch.nn.functional as F

from kernels import reference
from kernels.triton.attention import causal_attention
from kernels.triton.cross_entropy import cross_entropy
from kernels.triton.layer_norm import layer_norm
from kernels.triton.rms_norm import rms_norm
from tests.kernels import cases
from tests.kernels.cases import by

# the interpreter multiplies bfloat16 wrongly
each_dtype = pytest.mark.parametrize("dtype", **by([torch.float32, torch.float16]))
each_shape = pytest.mark.parametrize("shape", **by([(1, 1), (5, 17), (7, 127), (1, 3, 257), (0, 16)]))


@pytest.fixture(autouse=True, scope="module")
def interpreted():
    """Kernels that were defined without TRITON_INTERPRET would want a GPU."""
    if os.environ["TRITON_INTERPRET"] != "1":
        pytest.skip("TRITON_INTERPRET is not 1")


def run(op, inputs, grad, *rest):
    leaves = cases.require_grad(inputs)
    out = op(*leaves, *rest)
    return [out, *cases.gradients(out, grad, leaves)]


def check(ours, torchs, exact, inputs, *rest):
    grad = cases.randn(*exact(*(x.double() for x in inputs), *rest).shape, seed=9, dtype=inputs[0].dtype)
    found = [
        run(ours, inputs, grad, *rest),
        run(torchs, inputs, grad, *rest),
        run(exact, cases.to_exact(inputs), grad.double(), *rest),
    ]
    for i, (our, torch_own, true) in enumerate(zip(*found, strict=True)):
        cases.assert_as_exact_as(our, torch_own, true, factor=2 if i == 0 else 3, size=1.0 if i else 0.0)


def drawn(*shapes, dtype):
    return [cases.randn(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]


@each_dtype
@each_shape
def test_layer_norm(dtype, shape):
    inputs = drawn(shape, shape[-1:], shape[-1:], dtype=dtype)
    check(layer_norm, lambda x, w, b: F.layer_norm(x, w.shape, w, b), reference.layer_norm, inputs)


@each_dtype
@each_shape
def test_rms_norm(dtype, shape):
    inputs = drawn(shape, shape[-1:], dtype=dtype)
    check(rms_norm, lambda x, w: F.rms_norm(x, w.shape, w, 1e-5), reference.rms_norm, inputs)


@each_dtype
@pytest.mark.parametrize(
    "shape", **by([(1, 1, 1, 1), (1, 17, 2, 16), (2, 33, 1, 24), (1, 65, 1, 40), (1, 0, 2, 8)])
)
def test_attention(dtype, shape):
    def sdpa(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    check(causal_attention, sdpa, reference.causal_attention, drawn(shape, shape, shape, dtype=dtype))


def test_future_tokens_change_nothing_before_them():
    q, k, v = drawn(*((1, 70, 1, 16),) * 3, dtype=torch.float32)
    before = causal_attention(q, k, v)
    for x in (q, k, v):
        x[:, 40:] = 1e17
    assert torch.equal(before[:, :40], causal_attention(q, k, v)[:, :40])


@each_dtype
@pytest.mark.parametrize("size", **by([(1, 1), (7, 97), (3, 1025), (0, 5)]))
def test_cross_entropy(dtype, size):
    rows, vocabulary = size
    targets = torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(0))
    targets[1:2] = -100
    (logits,) = drawn(size, dtype=dtype)

    def exact(logits):
        losses = F.cross_entropy(logits.double(), targets, reduction="sum")
        return losses / (targets != -100).sum().clamp(min=1)

    leaves = [logits.clone().requires_grad_() for _ in range(3)]
    found = [cross_entropy(leaves[0], targets), exact(leaves[1].float()), exact(leaves[2].double())]
    grads = [torch.autograd.grad(loss, leaf)[0] for loss, leaf in zip(found, leaves, strict=True)]
    torch.testing.assert_close(found[0].double(), found[2], rtol=1e-6, atol=1e-6)
    cases.assert_as_exact_as(grads[0], grads[1], grads[2].double(), factor=2)
    assert not grads[0][1:2].any()
