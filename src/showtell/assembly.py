"""Encoder and decoder <-> the entries that config.json holds for them."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from . import storage
from .errors import ArgumentError, ComponentError, FormatError
from .protocols import Decoder, Encoder
from .registry import Kind, class_path, component_name, find_component

__all__ = ["build_part", "part_entry"]


def part_entry(kind: Kind, part: Encoder | Decoder) -> dict[str, Any]:
    """What config.json says of a part; raises ArgumentError when its `config()` can't be written as JSON."""
    config = part.config()
    problem = storage.json_problem(config)
    if problem:
        raise ArgumentError(f"the {kind} can't be saved: config() of {type(part).__name__} {problem}")
    return {"name": component_name(kind, type(part)), "class": class_path(type(part)), "config": config}


def build_part(kind: Kind, entry: dict[str, Any], maker: Any = None) -> Encoder | Decoder:
    """A part from its entry: an instance as it is, a class or factory called, else the class of the saved name.

    Raises ComponentError when the name isn't known here, FormatError when the saved config doesn't fit.
    """
    if isinstance(maker, nn.Module):
        return cast(Encoder | Decoder, maker)
    if maker is None:
        if entry["name"] is None:
            raise ComponentError(
                f"the {kind} of this captioner is {entry['class']!r}, which was saved without a registered name; "
                f"pass it: Captioner.from_pretrained(..., {kind}={entry['class'].split(':')[-1]})"
            )
        maker = find_component(kind, entry["name"])
    try:
        part: Encoder | Decoder = maker(**entry["config"])
    except TypeError as error:
        raise FormatError(
            f"the saved {kind} config doesn't fit {getattr(maker, '__name__', maker)}: {error}"
        ) from error
    except ArgumentError as error:
        raise FormatError(f"the saved {kind} config makes no sense: {error}") from error
    return part
