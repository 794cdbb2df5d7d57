"""Dynamic loss scaling, which float16 needs (Micikevicius et al. 2017, section 3.2).

float16 cannot hold numbers below 6e-8, where many gradients lie. The loss is multiplied by a large number before the
backward pass, which lifts all gradients, and they are divided by it, in float32, before they are used. The number
doubles after a long time without overflow and is halved at each overflow, whose step is skipped.
"""

import dataclasses


@dataclasses.dataclass
class LossScale:
    """A scale that grows and shrinks as torch.amp.GradScaler's does; 1 and fixed where it is not `active`.

    >>> scale = LossScale(active=True, value=8.0, growth_interval=2)
    >>> [(scale.update(finite), scale.value)[1] for finite in (True, False, True, True)]
    [8.0, 4.0, 4.0, 8.0]
    """

    active: bool
    value: float = 65536.0
    growth_interval: int = 2000
    good_steps: int = 0
    """Steps without overflow since the scale last changed."""

    def __post_init__(self) -> None:
        if not self.active:
            self.value = 1.0

    def update(self, finite: bool) -> bool:
        """Takes note of a step; returns whether an overflow may be the scale's own fault."""
        if not self.active:
            return False
        if not finite:
            self.value, self.good_steps = self.value / 2, 0
            return self.value >= 1.0
        self.good_steps += 1
        if self.good_steps == self.growth_interval:
            self.value, self.good_steps = self.value * 2, 0
        return False
