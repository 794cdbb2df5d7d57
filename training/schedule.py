"""The learning rate over the run: linear warm-up, then half a cosine (Loshchilov and Hutter 2016, section 3)."""

import math


def learning_rate(step: int, *, peak: float, final: float, warmup_steps: int, steps: int) -> float:
    """The rate for optimizer step `step`, counted from 0.

    The rate reaches `peak` at the end of the warm-up and `final` at the last step.

    >>> [round(learning_rate(s, peak=1.0, final=0.0, warmup_steps=2, steps=7), 2) for s in range(7)]
    [0.5, 1.0, 0.9, 0.65, 0.35, 0.1, 0.0]
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min((step + 1 - warmup_steps) / max(steps - warmup_steps, 1), 1.0)
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2
