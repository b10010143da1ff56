"""A search as JSON values and as the command line spells it."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from ..errors import ArgumentError
from .base import Search
from .beam import Beam
from .diverse import DiverseBeam
from .greedy import Greedy
from .sample import Sample

__all__ = ["as_search", "parse_search", "search_from_config", "search_text", "search_to_config"]

_SEARCHES: dict[str, Any] = {"greedy": Greedy, "beam": Beam, "diverse": DiverseBeam, "sample": Sample}
_BARE = {"beam": "size", "diverse": "size", "sample": "count"}  # what a number without a name is
_VALUE = re.compile(r"-?[0-9]{1,19}(\.[0-9]{1,25})?(e[+-]?[0-9]{1,3})?|[a-z]{1,20}", re.ASCII)
_NEWER = {"penalty": "power"}  # left out at this value: older config files and signatures stay as they are


def search_to_config(search: Search) -> dict[str, Any]:
    """A search as JSON values, what config.json keeps as generation defaults.

    Example:
        >>> search_to_config(Beam(size=5))
        {'name': 'beam', 'size': 5, 'max_length': 20, 'length_penalty': 0.0}

    Raises ArgumentError for a search that isn't one of showtell's own.
    """
    for name, cls in _SEARCHES.items():
        if type(search) is cls:
            options = {option: getattr(search, option) for option in _options(cls)}
            return {"name": name, **{key: value for key, value in options.items() if _NEWER.get(key, ...) != value}}
    raise ArgumentError(f"a captioner's default search is one of {', '.join(_SEARCHES)}, not {search!r:.200}")


def search_text(search: Search) -> str:
    """A search in the command line's spelling, its options written out: what a score's signature keeps.

    Example:
        >>> search_text(Beam(size=3, length_penalty=0.7))
        'beam:size=3,max_length=20,length_penalty=0.7'
        >>> parse_search(search_text(Beam(size=3))) == Beam(size=3)
        True

    A search of another class is what its `repr` says.
    """
    if type(search) not in _SEARCHES.values():
        return repr(search)
    config = search_to_config(search)
    return f"{config.pop('name')}:" + ",".join(
        f"{key}={str(value).lower() if type(value) is bool else value}"
        for key, value in config.items()
        if value is not None
    )


def search_from_config(config: dict[str, Any]) -> Search:
    """Read what `search_to_config` wrote.

    Example:
        >>> search_from_config({"name": "greedy", "max_length": 30})
        Greedy(max_length=30)

    Options left out have their defaults. Raises ArgumentError for anything else.
    """
    if not isinstance(config, dict) or not isinstance(config.get("name"), str) or config["name"] not in _SEARCHES:
        raise ArgumentError(f"a search is a dict with a name out of {', '.join(_SEARCHES)}, not {config!r:.200}")
    cls = _SEARCHES[config["name"]]
    options = {key: value for key, value in config.items() if key != "name"}
    known = _options(cls)
    surplus = sorted(repr(key)[:50] for key in options if key not in known)
    if surplus:
        raise ArgumentError(
            f"the search {config['name']!r} has no option {', '.join(surplus)}; it has {', '.join(known)}"
        )
    found: Search = cls(**options)
    return found


def as_search(search: Search | str) -> Search:
    """A search, or the command line's spelling of one, as a search.

    Example:
        >>> as_search("beam:5") == as_search(Beam(size=5))
        True

    Raises ArgumentError for anything else, the class itself for instance.
    """
    if isinstance(search, str):
        return parse_search(search)
    if isinstance(search, type) or not isinstance(search, Search):
        raise ArgumentError(f'a search is Greedy(), Beam(size=3) or a text such as "beam:3", not {search!r:.100}')
    return search


def parse_search(text: str) -> Search:
    """Read a search from the command line's spelling: a name, then options after a colon.

    Example:
        >>> parse_search("beam:5,max_length=30,length_penalty=0.7")
        Beam(size=5, max_length=30, length_penalty=0.7, penalty='power')
        >>> parse_search("greedy")
        Greedy(max_length=20)

    A bare number is the size of a beam or the count of samples. Raises ArgumentError for anything else.
    """
    wrong = ArgumentError(
        f'{text!r:.100} is no search; write "greedy", "greedy:max_length=30", "beam:5", '
        '"beam:5,max_length=30,length_penalty=0.7", "diverse:6,groups=3,diversity=0.5" or '
        '"sample:3,temperature=0.8,top_p=0.9,seed=1"'
    )
    if not isinstance(text, str):
        raise wrong
    name, colon, rest = text.partition(":")
    if name not in _SEARCHES:
        raise wrong
    config: dict[str, Any] = {"name": name}
    for place, part in enumerate(rest.split(",") if colon else []):
        key, equals, value = part.partition("=")
        if place == 0 and not equals and name in _BARE and part[:1].isdecimal():
            key, value = _BARE[name], part
        if key in config or not _VALUE.fullmatch(value):
            raise wrong
        config[key] = _value(value)
    return search_from_config(config)


def _options(cls: Any) -> list[str]:
    return [field.name for field in fields(cls)]


def _value(text: str) -> Any:
    if text[-1].isdigit():
        return int(text) if text.lstrip("-").isdecimal() else float(text)
    return {"true": True, "false": False}.get(text, text)
