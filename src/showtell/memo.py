"""A function's results, kept: a dict's own lookup costs less than a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["Memo"]

_SHORT, _KEPT = 64, 1 << 16

_Made = TypeVar("_Made")


class Memo(dict[str, _Made]):
    """What has been made of a text, made once; of long texts again each time, so that memory has a bound.

    Example:
        >>> sizes = Memo(len)
        >>> sizes["dog"], sizes["dog" * 50], dict(sizes)
        (3, 150, {'dog': 3})
    """

    def __init__(self, make: Callable[[str], _Made]) -> None:
        """Keep the function."""
        super().__init__()
        self._make = make

    def __missing__(self, key: str) -> _Made:
        """Make it, and keep it if there is room."""
        made = self._make(key)
        if len(key) <= _SHORT and len(self) < _KEPT:
            self[key] = made
        return made
