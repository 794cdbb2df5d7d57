"""The state space: its chunks against its recurrence and against the sum written out."""

import pytest
import torch

from model import GPTConfig, ssm
from model.ssm import StateSpace


@pytest.fixture
def parts():
    """Return x (2, 9, 3, 4), decay (2, 9, 3), b and c (2, 9, 5) and a state (2, 3, 4, 5), float64."""
    shapes = [(2, 9, 3, 4), (2, 9, 3), (2, 9, 5), (2, 9, 5), (2, 3, 4, 5)]
    x, decay, b, c, state = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return x, -decay.abs(), b, c, state


@pytest.mark.parametrize("chunk", [1, 2, 4, 9, 64])
def test_chunks_of_any_size_equal_the_recurrence(parts, chunk):
    *sequences, state = parts
    found, last = ssm.ssd(*parts, chunk=chunk)
    for t in range(9):
        expected, state = ssm.step(*(s[:, t : t + 1] for s in sequences), state)
        torch.testing.assert_close(found[:, t : t + 1], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, state, rtol=1e-12, atol=1e-12)


def test_it_is_attention_whose_scores_fade(parts):
    """y_i = Σ_{j <= i} exp(a_{j+1} + … + a_i) (c_i · b_j) x_j, term by term."""
    x, decay, b, c, state = parts
    found, _ = ssm.ssd(x, decay, b, c, torch.zeros_like(state), chunk=4)
    for i in range(9):
        terms = [
            (decay[:, j + 1 : i + 1].sum(1).exp() * (c[:, i] * b[:, j]).sum(-1)[:, None])[..., None] * x[:, j]
            for j in range(i + 1)
        ]
        torch.testing.assert_close(found[:, i], sum(terms), rtol=1e-12, atol=1e-12)


def test_a_decay_so_strong_that_its_exponential_is_zero_gives_no_nan(parts):
    x, decay, b, c, state = parts
    decay = (decay * 1e6).requires_grad_()
    found, last = ssm.ssd(x, decay, b, c, state)
    (found.sum() + last.sum()).backward()
    assert found.isfinite().all() and last.isfinite().all() and decay.grad.isfinite().all()


def test_first_steps_and_decays_are_those_of_the_paper():
    mixer = StateSpace(GPTConfig(n_embd=512, n_head=8, ssm_head=8))
    steps = torch.nn.functional.softplus(mixer.dt_bias)
    assert 0.000999 <= steps.min() < 0.003 and 0.04 < steps.max() <= 0.1001
    assert 1 <= mixer.A_log.exp().min() < 3 and 13 < mixer.A_log.exp().max() <= 16.001
