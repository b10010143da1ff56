"""How the learning rate, or a probability, changes with the step: pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..checks import number, whole
from ..errors import ArgumentError

__all__ = ["InverseSigmoidRise", "LinearRise", "WarmupCosine"]


@dataclass(frozen=True)
class WarmupCosine:
    """A straight rise over `warmup` steps, then half a cosine down to `floor` at step `total`.

    Example:
        >>> schedule = WarmupCosine(warmup=2, total=10, floor=0.1)
        >>> [round(schedule(step), 2) for step in (0, 1, 2, 6, 10, 99)]
        [0.5, 1.0, 1.0, 0.55, 0.1, 0.1]

    Steps count from 0. After Loshchilov and Hutter, "SGDR", 2017.

    Args:
        warmup: steps, 0..total.
        total: steps, at least 1.
        floor: the factor at the end, 0..1.

    Raises:
        ArgumentError: a value out of range.
    """

    warmup: int
    total: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        whole("total", self.total, 1, 10**9)
        whole("warmup", self.warmup, 0, self.total)
        number("floor", self.floor, 0.0, 1.0)

    def __call__(self, step: int) -> float:
        """The factor of the learning rate for that step, 0..1."""
        if _counted(step) < self.warmup:
            return (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True)
class LinearRise:
    """A probability that rises in a straight line from 0 to `most` over `steps` steps, and stays there.

    Example:
        >>> [LinearRise(most=0.5, steps=10)(step) for step in (0, 5, 10, 99)]
        [0.0, 0.25, 0.5, 0.5]

    Args:
        most: 0..1.
        steps: at least 1.

    Raises:
        ArgumentError: a value out of range.
    """

    most: float
    steps: int

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        object.__setattr__(self, "most", number("most", self.most, 0.0, 1.0))
        whole("steps", self.steps, 1, 10**9)

    def __call__(self, step: int) -> float:
        """The probability at that step, from 0."""
        return self.most * min(1.0, _counted(step) / self.steps)


@dataclass(frozen=True)
class InverseSigmoidRise:
    """A probability that rises slowly, then fast, then slowly from near 0 to `most`; half of it is reached at `middle`.

    Example:
        >>> rise = InverseSigmoidRise(most=0.5, middle=100)
        >>> [round(rise(step), 3) for step in (0, 50, 100, 200)]
        [0.016, 0.078, 0.25, 0.484]

    most * (1 - k / (k + exp(step / k))), the inverse sigmoid of Bengio et al. 2015 (arXiv:1506.03099), with the k for
    which k ln k is `middle`.

    Args:
        most: 0..1.
        middle: at least 1.

    Raises:
        ArgumentError: a value out of range.
    """

    most: float
    middle: int

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        object.__setattr__(self, "most", number("most", self.most, 0.0, 1.0))
        whole("middle", self.middle, 1, 10**9)

    def __call__(self, step: int) -> float:
        """The probability at that step, from 0."""
        low, high = 1.0, self.middle + 2.0
        for _ in range(100):  # k ln k rises with k
            k = (low + high) / 2
            low, high = (k, high) if k * math.log(k) < self.middle else (low, k)
        # k / (k + exp(x)) as a sigmoid, which doesn't overflow.
        x = _counted(step) / low - math.log(low)
        return self.most * (1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x)))


def _counted(step: int) -> int:
    if step < 0:
        raise ArgumentError(f"steps count from 0, not {step}")
    return step
