"""The schedule against torch's own warm-up and cosine schedulers."""

import warnings

import pytest
import torch
from torch.optim import lr_scheduler

from training.optimizer import learning_rate


@pytest.mark.parametrize("shape", ["wsd", "constant"])
def test_level_schedules_equal_torchs_in_sequence(shape):
    steps, warmup, share, peak = 40, 5, 0.25, 3e-3
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    up = lr_scheduler.LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)
    level = lr_scheduler.ConstantLR(optimizer, 1.0, 1)
    down = lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 10)
    pieces, turns = ([up, level, down], [warmup, 29]) if shape == "wsd" else ([up, level], [warmup])
    theirs, expected = lr_scheduler.SequentialLR(optimizer, pieces, turns), []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    options = {"peak": peak, "final": peak / 10, "warmup_steps": warmup, "steps": steps}
    ours = [learning_rate(s, **options, shape=shape, decay_share=share) for s in range(steps)]
    assert ours == pytest.approx(expected)


@pytest.mark.parametrize(("warmup", "steps"), [(5, 40), (0, 10), (1, 30)])
def test_equal_to_torchs_linear_warmup_and_cosine(warmup, steps):
    peak, final = 3e-3, 3e-4
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    # torch's cosine is at its peak one step earlier than ours begins: ours has peaked at the end of the warm-up.
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps - warmup, eta_min=final)
    theirs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "call optimizer.step() first": only the rates are wanted here
        for _ in range(steps - warmup):
            cosine.step()
            theirs.append(optimizer.param_groups[0]["lr"])
    ours = [learning_rate(s, peak=peak, final=final, warmup_steps=warmup, steps=steps) for s in range(steps)]
    assert ours[warmup:] == pytest.approx(theirs)
    assert ours[:warmup] == pytest.approx([peak * (s + 1) / max(warmup, 1) for s in range(warmup)])


def test_the_rate_stays_at_its_final_value_past_the_end():
    rates = [learning_rate(s, peak=1.0, final=0.1, warmup_steps=2, steps=5) for s in (4, 5, 100)]
    assert rates == pytest.approx([0.1, 0.1, 0.1])


def test_a_run_shorter_than_its_warmup_only_rises():
    rates = [learning_rate(s, peak=1.0, final=0.1, warmup_steps=10, steps=5) for s in range(5)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
