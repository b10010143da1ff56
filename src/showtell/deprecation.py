"""Names that go away: they keep working, with a warning, for two minor releases."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = ["Moved", "finder"]


class Moved(NamedTuple):
    """What took a name's place, since which version the old one warns, and in which it will be gone."""

    name: str
    since: str
    gone: str


def finder(module: str, moved: Mapping[str, Moved], found: Mapping[str, Any]) -> Callable[[str], Any]:
    """A module's `__getattr__`: an old name gives the new one's object and a FutureWarning that says what to write.

    Example:
        >>> look = finder("showtell", {"Old": Moved("New", "0.2", "0.4")}, {"New": 1})
        >>> with warnings.catch_warnings(record=True) as said:
        ...     warnings.simplefilter("always")
        ...     print(look("Old"), said[0].message)
        1 showtell.Old is called showtell.New since 0.2 and will be gone in 0.4; write showtell.New

    `found` is the module's own dictionary. Any other name raises AttributeError, as in a module without this.
    """

    def look(name: str) -> Any:
        if name not in moved:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new, since, gone = moved[name]
        warnings.warn(
            f"{module}.{name} is called {module}.{new} since {since} and will be gone in {gone}; write {module}.{new}",
            FutureWarning,
            stacklevel=2,
        )
        return found[new]

    return look
