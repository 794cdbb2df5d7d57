"""The learning rate over the run: a linear warm-up, then one of three schedules.

    cosine    half a cosine down (Loshchilov and Hutter 2016, section 3)
    wsd       warm-up, stable, decay: constant, then linear decay over the last steps (Hu et al. 2024, section 4)
    constant

A wsd run that was stopped while it was stable can be continued with more steps.
"""

import math


def learning_rate(
    step: int,
    *,
    peak: float,
    final: float,
    warmup_steps: int,
    steps: int,
    shape: str = "cosine",
    decay_share: float = 0.2,
) -> float:
    """Return the rate for optimizer step `step`, counted from 0.

    The rate reaches `peak` at the end of the warm-up and, unless the shape is constant, `final` at the last step.

    >>> [round(learning_rate(s, peak=1.0, final=0.0, warmup_steps=2, steps=7), 2) for s in range(7)]
    [0.5, 1.0, 0.9, 0.65, 0.35, 0.1, 0.0]
    >>> wsd = {"shape": "wsd", "decay_share": 0.4}
    >>> [round(learning_rate(s, peak=1.0, final=0.0, warmup_steps=2, steps=10, **wsd), 2) for s in range(10)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if shape == "constant":
        return peak
    down = steps - warmup_steps
    if shape == "wsd":
        down = min(down, round(decay_share * steps))
    progress = min(max(step + 1 - (steps - down), 0) / max(down, 1), 1.0)
    fall = progress if shape == "wsd" else (1 - math.cos(math.pi * progress)) / 2
    return peak + (final - peak) * fall
