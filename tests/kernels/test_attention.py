"""causal_attention and its packed form on every backend, against float64 and beside torch's own error."""

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import reference
from tests.kernels import cases
from tests.kernels.cases import AttentionCase, by, each_backend, each_dtype, each_fused

each_case = pytest.mark.parametrize("case", **by(cases.ATTENTION_CASES))


def torch_attention(q, k, v, *, scale, window, dropout_p, seed):
    """PyTorch's op; with dropout its own math in the dtype at hand, given the mask."""
    if not q.numel():
        return q * k.sum() * v.sum()
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, T, H, D) -> (B, H, T, D)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    seen = reference.seen(q.shape[2], window, q.device)
    if not dropout_p:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale).transpose(1, 2)
    factors = reference.dropout_factors(q.transpose(1, 2), dropout_p, seed).to(q.dtype)
    scores = (q @ k.mT * (scale or q.shape[-1] ** -0.5)).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) * factors @ v).transpose(1, 2)


def run(op, inputs, grad, options):
    """The result of an op and the gradients of its inputs."""
    leaves = cases.require_grad(inputs)
    out = op(*leaves, **options)
    return [out, *cases.gradients(out, grad, leaves)]


def check(case, dtype, backend, **options):
    """options: of ours beside those of the case."""
    inputs = cases.attention_inputs(case, dtype, backend.device)
    grad = cases.randn(*inputs[0].shape, seed=5, dtype=dtype, device=backend.device)
    with kernels.use(backend.choice):
        ours = run(kernels.causal_attention, inputs, grad, case.options | options)
    torchs = run(torch_attention, inputs, grad, case.options)
    exact = run(reference.causal_attention, *(cases.to_exact(inputs), *cases.to_exact([grad])), case.options)
    cases.assert_as_exact_as(ours[0], torchs[0], exact[0], factor=2)
    for our, torch_own, true in zip(ours[1:], torchs[1:], exact[1:], strict=True):
        # near a one-hot softmax, terms of the size of grad_out (about 1) cancel to nothing
        cases.assert_as_exact_as(our, torch_own, true, factor=3, size=1.0)


@each_backend
@each_dtype
@each_case
def test_attention_is_as_exact_as_torch(backend, dtype, case):
    check(case, dtype, backend)


@pytest.mark.slow
@each_backend
@each_dtype
@pytest.mark.parametrize("case", **by(cases.LONG_ATTENTION_CASES))
def test_long_attention_is_as_exact_as_torch(backend, dtype, case):
    check(case, dtype, backend)


@each_backend
@each_dtype
@pytest.mark.parametrize("case", **by(cases.UNORDERED_CASES))
def test_the_backward_in_no_certain_order_is_as_exact_as_torch(backend, dtype, case):
    check(case, dtype, backend, deterministic=False)


@pytest.mark.parametrize("backend", **by([b for b in cases.BACKENDS if str(b) in ("emulated", "fused-cuda")]))
@pytest.mark.parametrize("dtype", **by(cases.HALVES))
def test_only_dq_depends_on_whether_its_order_is_certain(backend, dtype):
    """Over 257 tokens dq is added up from five tiles of keys, in float32; dk and dv have one owner either way."""
    case = AttentionCase(1, 257, 2, 64)
    inputs = cases.attention_inputs(case, dtype, backend.device)
    grad = cases.randn(*inputs[0].shape, seed=5, dtype=dtype, device=backend.device)
    with kernels.use(backend.choice):
        (_, dq, dk, dv), (_, sum_dq, sum_dk, sum_dv) = (
            run(kernels.causal_attention, inputs, grad, {"deterministic": deterministic})
            for deterministic in (True, False)
        )
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close((sum_dk, sum_dv), (dk, dv), rtol=unit, atol=unit)
    assert not torch.equal(sum_dq, dq)


@each_backend
@each_dtype
def test_packed_is_the_same_bit_for_bit(backend, dtype):
    qkv = cases.randn(2, 37, 3, 3, 40, dtype=dtype, device=backend.device).requires_grad_()
    grad = cases.randn(2, 37, 3, 40, seed=1, dtype=dtype, device=backend.device)
    options = {"dropout_p": 0.2, "seed": 3, "window": 20, "scale": 0.3}
    with kernels.use(backend.choice):
        packed = kernels.causal_attention_qkvpacked(qkv, **options)
        apart = kernels.causal_attention(*qkv.unbind(2), **options)
        packed_grad, apart_grad = (torch.autograd.grad(out, qkv, grad)[0] for out in (packed, apart))
    assert torch.equal(packed, apart)
    assert torch.equal(packed_grad, apart_grad)


@each_backend
@pytest.mark.parametrize("window", [None, 40])
def test_future_tokens_change_nothing_before_them(backend, window):
    q, k, v = cases.attention_inputs(AttentionCase(1, 100, 2, 16), torch.float32, backend.device)
    with kernels.use(backend.choice):
        before = kernels.causal_attention(q, k, v, window=window)
        for x in (q, k, v):
            x[:, 70:] = 1e30
        after = kernels.causal_attention(q, k, v, window=window)
    assert torch.equal(before[:, :70], after[:, :70])


@each_backend
def test_no_gradient_reaches_keys_that_no_query_saw(backend):
    leaves = cases.require_grad(
        cases.attention_inputs(AttentionCase(1, 90, 1, 16), torch.float32, backend.device)
    )
    with kernels.use(backend.choice):
        grads = torch.autograd.grad(kernels.causal_attention(*leaves, window=10)[:, 50:60].sum(), leaves)
    for grad, (first, last) in zip(grads, ((50, 60), (41, 60), (41, 60)), strict=True):
        assert not grad[:, :first].any() and not grad[:, last:].any()
        assert grad[:, first:last].any(dim=-1).all()


@each_fused
@each_dtype
@pytest.mark.parametrize(
    "case", **by([AttentionCase(2, 130, 4, 40, kv_heads=2, dropout_p=0.2), AttentionCase(1, 128, 2, 64)])
)
def test_two_runs_are_bitwise_equal(backend, dtype, case):
    inputs = cases.attention_inputs(case, dtype, backend.device)
    grad = cases.randn(*inputs[0].shape, seed=5, dtype=dtype, device=backend.device)
    with kernels.use(backend.choice):
        first, second = (run(kernels.causal_attention, inputs, grad, case.options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@each_fused
@each_dtype
def test_log_sum_exp_is_exact(backend, dtype):
    q, k, v = cases.attention_inputs(AttentionCase(2, 70, 2, 24), dtype, backend.device)
    with kernels.use(backend.choice):
        lse = kernels.dispatch.library(backend.device).causal_attention(q, k, v, 0.2, None, 0.0, None)[1]
    scores = torch.einsum("bihd,bjhd->bhij", q.double(), k.double()) * 0.2
    exact = scores.masked_fill(~reference.seen(70, None, q.device), -torch.inf).logsumexp(-1)
    assert lse.dtype == torch.float32
    torch.testing.assert_close(lse.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(kernels.backends()["cpu"] != "available", reason="the CPU kernels are not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_single_head_is_shared_out_to_the_threads(dtype):
    """With fewer heads than threads the backward takes another way: keys in turns, dQ in parts."""
    case = AttentionCase(1, 200, 2, 24, kv_heads=1)
    inputs = cases.attention_inputs(case, dtype, "cpu")
    grad = cases.randn(*inputs[0].shape, seed=5, dtype=dtype)
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(run(kernels.causal_attention, inputs, grad, {}))
    finally:
        torch.set_num_threads(threads)
    tolerance = 4 * torch.finfo(dtype).eps
    for one, three in zip(*results, strict=True):
        torch.testing.assert_close(one, three, rtol=tolerance, atol=tolerance)
