"""Random numbers that are a function of what they are for: the same ones in any batch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["uniforms"]

_GOLDEN = -0x61C8864680B583EB  # 2 ** 64 / the golden ratio, as a signed number
_FIRST = -0x40A7B892E31B1A47
_SECOND = -0x6B2FB644ECCEEE15


def uniforms(seed: int, positions: Tensor, count: int, steps: int) -> Tensor:
    """Numbers in (0, 1), float64 (N, count, steps): of (seed, an image's position, sample, step).

    Example:
        >>> one = uniforms(7, torch.tensor([5]), 2, 3)
        >>> bool((one == uniforms(7, torch.tensor([4, 5, 6]), 4, 9)[1:2, :2, :3]).all())
        True

    `seed` 0..2**63 - 1; `positions` (N,) int64 on the CPU. Each number is SplitMix64's finaliser (Steele et al. 2014,
    "Fast splittable pseudorandom number generators") applied once a coordinate, in 64-bit numbers that wrap around.
    """
    mixed = _mix(torch.tensor(seed) + _GOLDEN)
    for place, coordinate in enumerate((positions, torch.arange(count), torch.arange(steps))):
        shape = [1, 1, 1]
        shape[place] = -1
        mixed = _mix(mixed + (coordinate.view(shape) + 1) * _GOLDEN)
    return _shifted(mixed, 11).double() * 2.0**-53 + 2.0**-54


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """A shift to the right that fills up with zeros, as of an unsigned number."""
    return (x >> by) & ((1 << (64 - by)) - 1)
