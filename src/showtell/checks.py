"""Short checks of configuration values: each returns its value or raises an ArgumentError that names it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

from .errors import ArgumentError

__all__ = ["choice", "flag", "number", "whole"]

T = TypeVar("T")


def whole(name: str, value: Any, low: int, high: int) -> int:
    """A whole number in low..high (bool doesn't count)."""
    if type(value) is not int or not low <= value <= high:
        raise ArgumentError(f"{name} must be a whole number in {low}..{high}, not {_shown(value)}")
    return value


def number(name: str, value: Any, low: float, high: float) -> float:
    """A finite number in low..high (bool doesn't count)."""
    if type(value) not in (int, float) or not low <= value <= high or not math.isfinite(value):
        raise ArgumentError(f"{name} must be a number in {low:g}..{high:g}, not {_shown(value)}")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """True or False and nothing else."""
    if type(value) is not bool:
        raise ArgumentError(f"{name} must be true or false, not {value!r:.100}")
    return value


def choice(name: str, value: T, options: Sequence[T]) -> T:
    """One of the options."""
    if value not in options:
        raise ArgumentError(f"{name} must be one of {', '.join(map(repr, options))}, not {value!r:.100}")
    return value


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.100}"
    except ValueError:  # Python prints no number of more than 4,300 digits
        return "one of thousands of digits"
