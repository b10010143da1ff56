"""How sure a mean over photos is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from torch import Tensor

__all__ = ["LEAST_PHOTOS", "Interval", "difference", "mean_interval"]

LEAST_PHOTOS = 20
"""Photos that a check of a captioner needs: below, an interval is too wide to say anything and too rough to believe."""

_CONFIDENCE = 0.99


@dataclass(frozen=True)
class Interval:
    """A mean and where the true one lies with the confidence asked for."""

    mean: float
    low: float
    high: float


def mean_interval(values: Tensor, confidence: float = _CONFIDENCE) -> Interval:
    """The mean of independent values (N,), N >= 2, with Student's interval.

    Example:
        >>> import torch
        >>> found = mean_interval(torch.tensor([1.0, 2.0, 3.0, 4.0]).repeat(5))
        >>> found.mean, round(found.low, 2), round(found.high, 2)
        (2.5, 1.77, 3.23)
    """
    wide = values.double()
    mean, error = float(wide.mean()), float(wide.std()) / math.sqrt(len(wide))
    half = error * _student(len(wide) - 1, confidence)
    return Interval(mean, mean - half, mean + half)


def difference(first: Tensor, second: Tensor, confidence: float = _CONFIDENCE) -> Interval:
    """The mean of `second` less that of `first`, two independent sets of values."""
    a, b = first.double(), second.double()
    mean = float(b.mean() - a.mean())
    error = math.sqrt(float(a.var()) / len(a) + float(b.var()) / len(b))
    half = error * _student(min(len(a), len(b)) - 1, confidence)
    return Interval(mean, mean - half, mean + half)


def _student(freedom: int, confidence: float) -> float:
    """The quantile of Student's t by its expansion in 1 / freedom (Abramowitz and Stegun, 26.7.5): exact to 0.1 % from
    19 degrees of freedom on."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
