"""How the learning rate changes with the step: pure functions step -> factor."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..checks import number, whole
from ..errors import ArgumentError

__all__ = ["WarmupCosine"]


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
        if step < 0:
            raise ArgumentError(f"steps count from 0, not {step}")
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * done))
