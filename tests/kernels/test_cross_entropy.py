"""linear_cross_entropy on every backend: torch's loss and gradients, ignored targets, chunks, memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

import kernels
from kernels import reference
from tests.kernels import cases
from tests.kernels.cases import by, each_backend, each_dtype

# (N, C, V): ragged, one row, one class, a vocabulary of several tiles, its last one narrow
SIZES = [(1, 1, 1), (5, 7, 3), (17, 16, 97), (33, 24, 1023), (130, 8, 513), (11, 40, 2049)]
IGNORED = -100


def inputs(size, dtype=torch.float32, device="cpu", ignore=(0,), spread=1.0):
    rows, width, vocabulary = size
    hidden = (cases.randn(rows, width) * spread).to(device, dtype)
    weight = (cases.randn(vocabulary, width, seed=1)).to(device, dtype)
    targets = torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(0))
    if rows > 1:
        targets[list(ignore)] = IGNORED
    return hidden, weight, targets.to(device)


def torch_loss(hidden, weight, targets):
    """F.cross_entropy of the logits, as one writes it."""
    return F.cross_entropy(F.linear(hidden, weight), targets, ignore_index=IGNORED)


def run(op, hidden, weight, targets, **options):
    leaves = cases.require_grad([hidden, weight])
    loss = op(*leaves, targets, **options)
    return [loss, *torch.autograd.grad(loss, leaves)]


@each_backend
@each_dtype
@pytest.mark.parametrize("size", **by(SIZES))
@pytest.mark.parametrize("budget", [1, None], ids=["few rows a chunk", "one chunk"])
def test_loss_and_gradients_are_as_exact_as_torchs(backend, dtype, size, budget):
    if budget and size[0] > 40 and backend.choice == "emulated":
        pytest.skip("the emulator takes long over so many launches")
    hidden, weight, targets = inputs(size, dtype, backend.device)
    with kernels.use(backend.choice):
        ours = run(kernels.linear_cross_entropy, hidden, weight, targets, budget=budget)
    torchs = run(torch_loss, hidden, weight, targets)
    exact = run(reference.linear_cross_entropy, hidden.cpu().double(), weight.cpu().double(), targets.cpu())
    assert ours[0].dtype == torch.float32
    # the loss and the summed gradient are in float32 here, and torch's in the dtype
    cases.assert_as_exact_as(ours[0].to(dtype), torchs[0], exact[0], factor=2)
    for our, torch_own, true in zip(ours[1:], torchs[1:], exact[1:], strict=True):
        cases.assert_as_exact_as(our, torch_own, true, factor=3)


@each_backend
@pytest.mark.parametrize("spread", [1e3, 1e-3])
def test_large_and_small_logits(backend, spread):
    hidden, weight, targets = inputs((20, 16, 700), spread=spread, device=backend.device)
    with kernels.use(backend.choice):
        ours = run(kernels.linear_cross_entropy, hidden, weight, targets)
    torchs = run(torch_loss, hidden, weight, targets)
    exact = run(reference.linear_cross_entropy, hidden.cpu().double(), weight.cpu().double(), targets.cpu())
    for our, torch_own, true in zip(ours, torchs, exact, strict=True):
        cases.assert_as_exact_as(our, torch_own, true, factor=3)


@each_backend
def test_a_chunk_changes_little_and_two_runs_nothing(backend):
    hidden, weight, targets = inputs((23, 12, 600), device=backend.device)
    with kernels.use(backend.choice):
        found = [
            run(kernels.linear_cross_entropy, hidden, weight, targets, budget=budget)
            for budget in (None, None, 4 * 600 * 10, 1)
        ]
    assert all(torch.equal(a, b) for a, b in zip(*found[:2], strict=True))
    for other in found[2:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-6)


@each_backend
def test_nothing_but_ignored_targets_is_a_loss_of_zero_without_gradient(backend):
    hidden, weight, targets = inputs((9, 8, 530), device=backend.device, ignore=range(9))
    with kernels.use(backend.choice):
        loss, *grads = run(kernels.linear_cross_entropy, hidden, weight, targets)
        nothing = run(kernels.linear_cross_entropy, hidden[:0], weight, targets[:0])
    assert loss.item() == 0 and not any(grad.any() for grad in grads)
    assert nothing[0].item() == 0 and nothing[1].shape == (0, 8) and not nothing[2].any()


@each_backend
def test_ignored_rows_get_no_gradient_and_change_nothing(backend):
    hidden, weight, targets = inputs((9, 8, 530), device=backend.device, ignore=(2, 5))
    kept = targets != IGNORED
    wild = hidden.masked_fill(~kept[:, None], float("nan"))
    with kernels.use(backend.choice):
        alone = run(kernels.linear_cross_entropy, hidden[kept], weight, targets[kept])
        loss, grad_hidden, grad_weight = run(kernels.linear_cross_entropy, hidden, weight, targets)
        if backend.choice != "torch":  # there 0 times NaN is NaN
            assert kernels.linear_cross_entropy(wild, weight, targets).isfinite()
    torch.testing.assert_close((loss, grad_hidden[kept], grad_weight), tuple(alone))
    assert not grad_hidden[~kept].any()


@pytest.mark.parametrize("known", [0, 1, 64, 65, 200, 299])
def test_mostly_ignored_targets_are_left_out_as_torch_leaves_them_out(known):
    """In float64 to rounding, however many are left, in any places; autograd puts the gradients where they belong."""
    size = (300, 8, 530)
    ignored = torch.randperm(300, generator=torch.Generator().manual_seed(1))[known:]
    hidden, weight, targets = inputs(size, torch.float64, ignore=ignored.tolist())
    ours = run(kernels.linear_cross_entropy, hidden, weight, targets)
    if known == 0:  # torch's mean of nothing is NaN
        assert not any(each.any() for each in ours)
        return
    for our, true in zip(ours, run(torch_loss, hidden, weight, targets), strict=True):
        torch.testing.assert_close(our, true, rtol=1e-12, atol=1e-14)


@each_backend
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(backend, bad):
    hidden, weight, targets = inputs((5, 8, 530), device=backend.device)
    hidden[3, 2] = bad
    with kernels.use(backend.choice):
        loss, grad_hidden, _ = run(kernels.linear_cross_entropy, hidden, weight, targets)
    assert loss.isnan() and grad_hidden[3].isnan().all() and grad_hidden[:3].isfinite().all()


@each_backend
def test_impossible_tokens_have_no_gradient(backend):
    """Logits of minus infinity in whole tiles: probabilities of 0, and no NaN."""
    hidden = torch.ones(2, 1, device=backend.device)
    weight = torch.full((1500, 1), -float("inf"), device=backend.device)
    weight[700:703] = torch.tensor([[1.0], [2.0], [3.0]], device=backend.device)
    targets = torch.tensor([700, 702], device=backend.device)
    with kernels.use(backend.choice):
        loss = kernels.linear_cross_entropy(hidden, weight, targets)
    expected = F.cross_entropy(torch.tensor([[1.0, 2.0, 3.0]] * 2), torch.tensor([0, 2]))
    torch.testing.assert_close(loss.cpu(), expected)


@pytest.mark.parametrize("backend", **by([b for b in cases.BACKENDS if b.device == "cpu"]))
@pytest.mark.parametrize("wrong", [-1, 530, -101])
def test_a_wrong_target_is_named(backend, wrong):
    hidden, weight, targets = inputs((5, 8, 530))
    targets[4] = wrong
    with (
        kernels.use(backend.choice),
        pytest.raises(ValueError, match=f"targets holds {wrong}: it must be in 0..529"),
    ):
        kernels.linear_cross_entropy(hidden, weight, targets)


@each_backend
def test_autocast_multiplies_in_its_dtype_and_keeps_float32_gradients(backend):
    hidden, weight, targets = inputs((65, 32, 600), device=backend.device)
    with kernels.use(backend.choice), torch.autocast(backend.device, torch.bfloat16):
        ours = run(kernels.linear_cross_entropy, hidden, weight, targets, budget=2 * 600 * 10)
        torchs = run(torch_loss, hidden, weight, targets)
    rounded = [x.bfloat16().cpu().double() for x in (hidden, weight)]
    exact = run(reference.linear_cross_entropy, *rounded, targets.cpu())
    assert [x.dtype for x in ours] == [torch.float32] * 3
    for our, torch_own, true in zip(ours, torchs, exact, strict=True):
        cases.assert_as_exact_as(our, torch_own.float(), true, factor=2, size=0.1)


@each_backend
def test_a_loss_scale_reaches_the_gradients(backend):
    hidden, weight, targets = inputs((9, 8, 30), device=backend.device)
    with kernels.use(backend.choice):
        plain = run(kernels.linear_cross_entropy, hidden, weight, targets)
        scaled = run(lambda *x: 8 * kernels.linear_cross_entropy(*x), hidden, weight, targets)
    torch.testing.assert_close([x * 8 for x in plain], scaled)


@pytest.mark.skipif(kernels.backends()["cpu"] != "available", reason="the CPU kernels are not built")
def test_no_more_than_a_chunk_of_logits_is_alive():
    hidden, weight, targets = inputs((512, 8, 4000))
    leaves = cases.require_grad([hidden, weight])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kernels.linear_cross_entropy(*leaves, targets, budget=4 * 4000 * 32).backward()
    largest = max(event.self_cpu_memory_usage for event in seen.events())
    assert 4 * 4000 * 32 <= largest < 1.2 * 4 * 4000 * 32


def test_the_reference_is_torchs_and_its_backward_autograds():
    hidden, weight, targets = inputs((9, 8, 30), torch.float64)
    exact = run(torch_loss, hidden, weight, targets)
    torch.testing.assert_close(run(reference.linear_cross_entropy, hidden, weight, targets), exact)
    found = reference.linear_cross_entropy_backward(hidden, weight, targets)
    torch.testing.assert_close(list(found), exact[1:])
