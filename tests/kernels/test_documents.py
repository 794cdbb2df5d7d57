"""Attention inside packed documents, against one masked attention over all tokens in float64."""

import pytest
import torch
import torch.nn.functional as F

import kernels
from tests.kernels import cases
from tests.kernels.cases import by, each_backend, each_dtype

ENDS = [[0, 7], [0, 1, 1, 20, 37], [0, 16, 33, 64], [0]]


def masked(q, k, v, ends):
    """One attention over all tokens, with a mask that separates the documents."""
    documents = torch.bucketize(torch.arange(len(q)), torch.tensor(ends[1:]), right=True)
    seen = (documents[:, None] == documents[None]).tril()
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))  # (N, H, D) -> (H, N, D)
    if not q.numel():
        return (q * 1).transpose(0, 1)
    return F.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True).transpose(0, 1)


def run(op, inputs, grad, *rest):
    leaves = cases.require_grad(inputs)
    out = op(*leaves, *rest)
    return [out, *torch.autograd.grad(out, leaves, grad)]


@each_backend
@each_dtype
@pytest.mark.parametrize("ends", **by([e for e in ENDS if len(e) > 1]))
def test_a_token_sees_its_own_document_as_exactly_as_in_torch(backend, dtype, ends):
    inputs = [cases.randn(ends[-1], heads, 16, seed=i, dtype=dtype) for i, heads in enumerate((4, 2, 2))]
    grad = cases.randn(ends[-1], 4, 16, seed=5, dtype=dtype)
    with kernels.use(backend.choice):
        moved = [x.to(backend.device) for x in inputs]
        ours = run(kernels.document_attention, moved, grad.to(backend.device), torch.tensor(ends))
    torchs = run(masked, inputs, grad, ends)
    exact = run(masked, [x.double() for x in inputs], grad.double(), ends)
    for i, (our, torch_own, true) in enumerate(zip(ours, torchs, exact, strict=True)):
        cases.assert_as_exact_as(our, torch_own, true, factor=3 if i else 2, size=1.0 if i else 0.0)


@each_backend
def test_other_documents_change_nothing(backend):
    q, k, v = (cases.randn(40, 2, 8, seed=i, dtype=torch.float32, device=backend.device) for i in range(3))
    ends = torch.tensor([0, 13, 30, 40])
    with kernels.use(backend.choice):
        before = kernels.document_attention(q, k, v, ends)
        for x in (q, k, v):
            x[13:30] = float("nan")
        after = kernels.document_attention(q, k, v, ends)
    assert torch.equal(before[:13], after[:13]) and torch.equal(before[30:], after[30:])
    assert after[13:30].isnan().all()


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
