"""adamw_ on every backend against torch.optim.AdamW."""

import pytest
import torch

import kernels
from tests.kernels import cases
from tests.kernels.cases import each_backend

SHAPES = [(1,), (3, 5), (17,), (100, 100), (9001,), (0, 4)]
OPTIONS = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def draw(seed, device):
    return [
        cases.randn(*shape, seed=seed + i, dtype=torch.float32, device=device)
        for i, shape in enumerate(SHAPES)
    ]


@each_backend
def test_several_steps_are_torchs(backend):
    ours, theirs = draw(0, backend.device), [torch.nn.Parameter(x) for x in draw(0, backend.device)]
    peer = torch.optim.AdamW(theirs, **OPTIONS)
    state = [[torch.zeros_like(x) for x in ours] for _ in range(2)]
    for step in range(1, 6):
        gradients = draw(10 * step, backend.device)
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient * 0.5
        peer.step()
        with kernels.use(backend.choice):
            kernels.adamw_(ours, gradients, *state, step=step, gradient_scale=0.5, **OPTIONS)
    torch.testing.assert_close(ours, [x.detach() for x in theirs], rtol=2e-6, atol=2e-7)
    for mine, name in zip(state, ("exp_avg", "exp_avg_sq"), strict=True):
        torch.testing.assert_close(mine, [peer.state[x][name] for x in theirs], rtol=2e-6, atol=1e-7)


@each_backend
def test_a_gradient_that_is_not_a_number_is_not_hidden(backend):
    x, state = (
        torch.ones(20, device=backend.device),
        [torch.zeros(20, device=backend.device) for _ in range(2)],
    )
    gradient = torch.ones(20, device=backend.device)
    gradient[7] = float("nan")
    with kernels.use(backend.choice):
        kernels.adamw_([x], [gradient], [state[0]], [state[1]], step=1, **OPTIONS)
    assert x[7].isnan() and x.isnan().sum() == 1


MISTAKES = {
    "another shape": (lambda x: x.reshape(2, 2), "has a gradient or a state that is"),
    "another dtype": (lambda x: x.double(), "has a gradient or a state that is"),
    "strided": (lambda x: x.repeat_interleave(2)[::2], "has a gradient or a state that is"),
}


@each_backend
@pytest.mark.parametrize("change, message", MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_named_and_moves_nothing(backend, change, message):
    x, *rest = (torch.ones(4, device=backend.device) for _ in range(4))
    with kernels.use(backend.choice):
        with pytest.raises(ValueError, match=message):
            kernels.adamw_([x], [change(rest[0])], [rest[1]], [rest[2]], step=1, **OPTIONS)
        with pytest.raises(ValueError, match="these must be as many"):
            kernels.adamw_([x], [], [rest[1]], [rest[2]], step=1, **OPTIONS)
        with pytest.raises(ValueError, match="step is 0"):
            kernels.adamw_([x], [rest[0]], [rest[1]], [rest[2]], step=0, **OPTIONS)
    assert torch.equal(x, torch.ones(4, device=backend.device))


@each_backend
def test_no_parameters_are_no_work(backend):
    with kernels.use(backend.choice):
        kernels.adamw_([], [], [], [], step=1, **OPTIONS)
