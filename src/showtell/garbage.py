"""Python's cyclic garbage collector, and when it is in the way."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["uncollected"]


@contextmanager
def uncollected() -> Iterator[None]:
    """No collection while very many objects are made that stay: it would look at all of them again and again.

    Example:
        >>> with uncollected():
        ...     with uncollected():
        ...         pass
        ...     gc.isenabled()
        False
        >>> gc.isenabled()
        True

    Where it was off already it stays off. What has no cycles is freed as ever.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
