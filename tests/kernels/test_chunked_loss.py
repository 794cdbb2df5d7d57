"""The loss against torch's cross-entropy: value, gradient, ignored targets, large logits, chunks."""

import pytest
import torch
from functorch.compile import aot_module_simplified, make_boxed_func
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import chunked_loss
from kernels.chunked_loss import IGNORED, cross_entropy, default_budget, linear_cross_entropy


def inputs(rows=23, width=8, vocab=31, ignore=(0, 5)):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocab, width, generator=generator, requires_grad=True)
    targets = torch.randint(vocab, (rows,), generator=generator)
    targets[list(ignore)] = IGNORED
    return hidden, weight, targets


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_losses_and_gradient_equal_torchs(scale, dtype):
    logits = (torch.randn(40, 19, dtype=dtype) * scale).requires_grad_()
    targets = torch.randint(19, (40,))
    targets[3] = IGNORED
    losses, gradient = cross_entropy(logits, targets)
    expected = F.cross_entropy(logits, targets, reduction="none")
    expected.sum().backward()
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(gradient, logits.grad)


@pytest.mark.parametrize("budget", [1, 4 * 31, 4 * 31 * 10, None])
def test_chunks_change_nothing(budget):
    hidden, weight, targets = inputs()
    ours = linear_cross_entropy(hidden, weight, targets, budget)
    ours.backward()
    grads = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    expected = F.cross_entropy(F.linear(hidden, weight), targets)
    expected.backward()
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(grads, (hidden.grad, weight.grad))


@pytest.mark.parametrize("budget", [4 * 31 * 10, None])
def test_a_compiled_loss_is_the_same_and_scatters_nothing(budget):
    """A scatter would be another pass over all logits, in float32."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph.code)
        return make_boxed_func(graph.forward)

    def backend(module, examples):
        return aot_module_simplified(module, examples, fw_compiler=keep)

    compiled = torch.compile(linear_cross_entropy, backend=backend, fullgraph=True)
    found = []
    for way in (linear_cross_entropy, compiled):
        hidden, weight, targets = inputs()
        mean = way(hidden, weight, targets, budget)
        mean.backward()
        found.append((mean, hidden.grad, weight.grad))
    torch.testing.assert_close(*found)
    assert "aten.sum" in graphs[0] and not any("scatter" in code for code in graphs)


def test_chunks_are_of_equal_size_but_for_the_last(monkeypatch):
    sizes = []
    plain = chunked_loss.cross_entropy
    monkeypatch.setattr(
        chunked_loss, "cross_entropy", lambda *both: sizes.append(len(both[0])) or plain(*both)
    )
    linear_cross_entropy(*inputs(), budget=4 * 31 * 10)
    assert sizes == [8, 8, 7]


def test_a_gpu_takes_fewer_and_larger_chunks():
    rows, vocab = 32 * 1024, 50304
    assert [-(-4 * rows * vocab // default_budget(device)) for device in ("cpu", "cuda")] == [50, 7]


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made while it is on held at one time."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        made = op(*args, **(kwargs or {}))
        for tensor in [made] if isinstance(made, torch.Tensor) else []:
            storage = tensor.untyped_storage()
            self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {at: kept for at, kept in self.alive.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return made


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_no_more_than_the_budget_of_logits_and_as_much_of_gradient_exist_at_once(precision):
    hidden, weight, targets = inputs(rows=400, width=2, vocab=3000)
    budget = 4 * 3000 * 40
    with LiveBytes() as live, torch.autocast("cpu", precision, enabled=precision != torch.float32):
        linear_cross_entropy(hidden, weight, targets, budget)
    assert 1.5 * budget < live.peak < 2 * budget + 5 * weight.nbytes  # ten parts of 40 rows each


def test_nothing_but_ignored_targets_is_a_loss_of_zero_without_gradient():
    hidden, weight, _ = inputs()
    ours = linear_cross_entropy(hidden, weight, torch.full((23,), IGNORED))
    ours.backward()
    assert ours.item() == 0 and not hidden.grad.any() and not weight.grad.any()


def test_evaluating_keeps_nothing_for_a_backward_pass():
    with torch.no_grad():
        assert not linear_cross_entropy(*inputs()).requires_grad


def test_many_chunks_in_bfloat16_lose_nothing_in_the_sum():
    hidden, weight, targets = inputs(rows=600)
    with torch.autocast("cpu", torch.bfloat16):
        linear_cross_entropy(hidden, weight, targets, budget=1).backward()
    ours, weight.grad = weight.grad, None
    F.cross_entropy(F.linear(hidden, weight), targets).backward()
    assert (ours - weight.grad).norm() < 0.005 * weight.grad.norm()


def test_many_positions_do_not_overflow_float16():
    rows, generator = 100_000, torch.Generator().manual_seed(0)
    hidden = (1 + torch.rand(rows, 4, generator=generator)).requires_grad_()
    weight = torch.zeros(3, 4, requires_grad=True)
    targets = torch.zeros(rows, dtype=torch.long)  # all the same: every position pulls in one direction
    with torch.autocast("cpu", torch.float16):
        loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    exact = weight.detach().double().requires_grad_()
    F.cross_entropy(hidden.detach().double() @ exact.mT, targets).backward()
    torch.testing.assert_close(weight.grad.double(), exact.grad, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("budget", [4 * 31 * 10, None])
def test_the_loss_of_capped_logits_and_its_gradient_are_autograds(budget):
    hidden = torch.randn(23, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(31, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(31, (23,))
    targets[5] = -100
    loss = linear_cross_entropy(hidden, weight, targets, budget, cap=2.0)
    expected = F.cross_entropy(2 * torch.tanh(hidden @ weight.mT / 2), targets)
    torch.testing.assert_close(loss, expected)
    found, wanted = (torch.autograd.grad(each, [hidden, weight]) for each in (loss, expected))
    torch.testing.assert_close(found, wanted)


def test_a_second_derivative_is_refused():
    hidden, weight, targets = inputs()
    loss = linear_cross_entropy(hidden, weight, targets)
    (grad,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        grad.sum().backward()
