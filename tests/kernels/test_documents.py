"""Attention inside packed documents, against one masked attention over all tokens in float64."""

import pytest
import torch
import torch.nn.functional as F

import kernels
from tests.kernels import cases
from tests.kernels.cases import each_backend, each_dtype, each_fused

# Ends, and a window.
DOCUMENTS = [
    ([0, 7], None),
    ([0, 1, 1, 20, 37], None),
    ([0, 16, 33, 64], 5),
    ([0, 70, 70, 201], None),
    ([0, 70, 70, 201], 33),
]


def masked(q, k, v, ends, window=None):
    """One attention over all tokens, with a mask that separates the documents."""
    documents = torch.bucketize(torch.arange(len(q)), torch.tensor(ends[1:]), right=True)
    seen = (documents[:, None] == documents[None]).tril()
    seen = seen if window is None else seen.triu(1 - window)
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))  # (N, H, D) -> (H, N, D)
    return F.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True).transpose(0, 1)


def run(op, inputs, grad, *rest, **options):
    leaves = cases.require_grad(inputs)
    out = op(*leaves, *rest, **options)
    return [out, *torch.autograd.grad(out, leaves, grad)]


@each_backend
@each_dtype
@pytest.mark.parametrize(("ends", "window"), DOCUMENTS, ids=str)
def test_a_token_sees_its_own_document_as_exactly_as_in_torch(backend, dtype, ends, window):
    inputs = [cases.randn(ends[-1], heads, 16, seed=i, dtype=dtype) for i, heads in enumerate((4, 2, 2))]
    grad = cases.randn(ends[-1], 4, 16, seed=5, dtype=dtype)
    with kernels.use(backend.choice):
        moved = [x.to(backend.device) for x in inputs]
        ours = run(
            kernels.document_attention, moved, grad.to(backend.device), torch.tensor(ends), window=window
        )
    torchs = run(masked, inputs, grad, ends, window)
    exact = run(masked, [x.double() for x in inputs], grad.double(), ends, window)
    for i, (our, torch_own, true) in enumerate(zip(ours, torchs, exact, strict=True)):
        cases.assert_as_exact_as(our, torch_own, true, factor=3 if i else 2, size=1.0 if i else 0.0)


@each_backend
@each_dtype
def test_what_is_not_finite_stays_in_its_document(backend, dtype):
    q, k, v, grad = (cases.randn(40, 2, 8, seed=i, dtype=dtype, device=backend.device) for i in range(4))
    ends = torch.tensor([0, 13, 30, 40])
    with kernels.use(backend.choice):
        before = run(kernels.document_attention, (q, k, v), grad, ends)
        for x in (q, k, v):
            x[13:30] = float("nan")
        after = run(kernels.document_attention, (q, k, v), grad, ends)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[:13], other[:13]) and torch.equal(one[30:], other[30:])
        assert other[13:30].isnan().all()


@each_fused
def test_dropout_and_angles_are_those_of_a_batch_of_documents(backend):
    """Documents of one length, in one sequence and as a batch, give the same numbers."""
    inputs = [cases.randn(3, 33, heads, 16, seed=i, dtype=torch.float32) for i, heads in enumerate((4, 2, 2))]
    inputs, grad = [x.to(backend.device) for x in inputs], cases.randn(3, 33, 4, 16, seed=5).float()
    angles, grad = cases.randn(3, 33, 8).float().to(backend.device), grad.to(backend.device)
    options = {"dropout_p": 0.3, "seed": 7, "scale": 0.4, "window": 20}
    with kernels.use(backend.choice):
        batch = run(kernels.causal_attention, inputs, grad, angles=angles, **options)
        ends, packed = torch.arange(0, 100, 33), [x.flatten(0, 1) for x in inputs]
        found = run(
            kernels.document_attention,
            packed,
            grad.flatten(0, 1),
            ends,
            angles=angles.flatten(0, 1),
            **options,
        )
    for one, other in zip(batch, found, strict=True):
        assert torch.equal(one.flatten(0, 1), other)


@each_fused
def test_all_documents_are_one_call_of_the_op(backend):
    q = cases.randn(40, 2, 8, dtype=torch.float32, device=backend.device)
    with kernels.use(backend.choice), torch.profiler.profile() as profile:
        kernels.document_attention(q, q, q, torch.arange(0, 41, 4))
    assert [e.count for e in profile.key_averages() if e.key.endswith("::causal_attention")] == [1]


@each_backend
def test_no_documents_are_no_tokens(backend):
    nothing = torch.ones(0, 2, 8, device=backend.device)
    with kernels.use(backend.choice):
        assert kernels.document_attention(nothing, nothing, nothing, torch.tensor([0])).shape == (0, 2, 8)


X = torch.ones(6, 2, 8)
MISTAKES = {
    "rank": ((X[None], X, X, torch.tensor([0, 6])), "q has shape"),
    "floats": ((X, X, X, torch.tensor([0.0, 6.0])), "ends has shape"),
    "too short": ((X, X, X, torch.tensor([0, 5])), "ends goes from 0 to 5"),
    "not from 0": ((X, X, X, torch.tensor([1, 6])), "ends goes from 1 to 6"),
    "falling": ((X, X, X, torch.tensor([0, 4, 2, 6])), "it must rise"),
    "fewer keys": ((X, X[:5], X[:5], torch.tensor([0, 6])), "these must be equal"),
}


@pytest.mark.parametrize("arguments, message", MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        kernels.document_attention(*arguments)
