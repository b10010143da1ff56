"""JSON from strangers (bounded in size and depth, no key twice, finite numbers), and what fits JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NoReturn

from .errors import FormatError

__all__ = ["json_problem", "parse_json", "parse_object"]


def parse_object(text: str | bytes, what: str, *, limit: int, depth: int = 20) -> dict[str, Any]:
    """Parse one JSON object and refuse what a careless parser lets through.

    Example:
        >>> parse_object('{"size": 3}', "config.json", limit=1000)
        {'size': 3}

    As `parse_json`; raises FormatError also for a value that is no object.
    """
    value = parse_json(text, what, limit=limit, depth=depth)
    if not isinstance(value, dict):
        raise FormatError(f"{what} must hold a JSON object, not a {type(value).__name__}")
    return value


def parse_json(
    text: str | bytes, what: str, *, limit: int, depth: int = 20, hook: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """Parse one JSON value and refuse what a careless parser lets through.

    Example:
        >>> parse_json('[{"size": 3}, null]', "sizes.json", limit=1000)
        [{'size': 3}, None]

    `what` names the text in errors; `limit` is its longest size in characters (bytes for bytes); `depth` how many
    objects and lists may lie inside each other; `hook` replaces each object as it is read. Raises FormatError for text
    that is too long, not UTF-8 or not JSON, for nesting too deep, a key given twice, and NaN or infinite numbers.
    """
    if len(text) > limit:
        raise FormatError(f"{what} is {len(text):,} characters long; at most {limit:,} are read")

    def checked(pairs: list[tuple[str, Any]]) -> Any:
        return _unique(pairs) if hook is None else hook(_unique(pairs))

    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(text, object_pairs_hook=checked, parse_float=_finite, parse_constant=_no_constant)
    except RecursionError:
        raise FormatError(f"{what} nests deeper than {depth} levels") from None
    except ValueError as error:
        raise FormatError(f"{what} isn't valid JSON: {error!s:.200}") from error
    layer: list[Any] = [value] if isinstance(value, dict | list) else []
    for _ in range(depth):
        children = (child for parent in layer for child in (parent.values() if isinstance(parent, dict) else parent))
        layer = [child for child in children if isinstance(child, dict | list)]
        if not layer:
            return value
    raise FormatError(f"{what} nests deeper than {depth} levels")


def json_problem(config: Any) -> str | None:
    """Why a part's config() can't be saved, as the end of a sentence, or None when it can.

    Example:
        >>> json_problem({"size": 3})
        >>> json_problem({"size": (3, 4)})
        'changes on its way through JSON; use lists instead of tuples and text for keys'
    """
    if not isinstance(config, dict):
        return f"must return a dict, not {type(config).__name__}"
    try:
        same = json.loads(json.dumps(config, allow_nan=False)) == config
    except (TypeError, ValueError, RecursionError) as error:
        return f"isn't JSON: {error!s:.200}"
    return None if same else "changes on its way through JSON; use lists instead of tuples and text for keys"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r:.100} is given twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text:.30} is too large")
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")
