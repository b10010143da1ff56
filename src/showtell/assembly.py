"""Encoder and decoder <-> the entries that config.json holds for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import storage, weights
from .errors import ArgumentError, ComponentError, FormatError
from .image_spec import ImageSpec
from .protocols import Decoder, Encoder
from .registry import Kind, class_path, component_name, find_component

__all__ = ["build_part", "check_part", "part_entry", "rebuild_problem", "shapes_only"]

_DRAWS = {
    "normal_",
    "uniform_",
    "trunc_normal_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "xavier_normal_",
    "xavier_uniform_",
}

_MEMBERS = {
    "encoder": ("feature_dim", "image_spec", "config"),
    "decoder": ("vocab_size", "has_attention", "prepare", "initial_state", "step", "config"),
}


class _WithoutDraws(TorchFunctionMode):
    """Leaves out random initialisation: on the meta device it does nothing but import a compiler for seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")  # Tensor.normal_(t, ...) and nn.init.normal_(tensor=t, ...)
        if getattr(func, "__name__", "") in _DRAWS and isinstance(target, Tensor) and target.is_meta:
            return target
        return func(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """What is built inside has shapes and no memory, and draws no random numbers."""
    with torch.device("meta"), _WithoutDraws():
        yield


def check_part(kind: Kind, part: Any) -> None:
    """Raise ArgumentError unless the part is a module with what its protocol asks for."""
    missing = [name for name in _MEMBERS[kind] if not hasattr(part, name)]
    if missing or not isinstance(part, nn.Module):
        hint = "; pass an object, not the class" if isinstance(part, type) else ""
        raise ArgumentError(
            f"the {kind} must be a torch.nn.Module that follows showtell.{kind.capitalize()}; "
            f"{getattr(part, '__name__', type(part).__name__)} lacks {', '.join(missing) or 'torch.nn.Module'}{hint}"
        )
    config: Any = part.config
    if not callable(config):
        raise ArgumentError(f"the {kind}'s config must be a method, not {type(config).__name__}")
    if kind == "encoder" and not isinstance(part.image_spec, ImageSpec):
        raise ArgumentError(f"the encoder's image_spec must be an ImageSpec, not {part.image_spec!r:.100}")


def rebuild_problem(kind: Kind, part: Encoder | Decoder) -> str | None:
    """Why a part that is saved now couldn't be built again from its `config()`, or None when it can.

    Raises ArgumentError when it can't even be saved.
    """
    config = part_entry(kind, part)["config"]
    call = f"{type(part).__name__}(**config())"
    try:
        with shapes_only():
            again = type(part)(**config)
        found, wanted = (weights.expected_tensors({kind: cast(nn.Module, p)}, "float32") for p in (again, part))
        weights.match(wanted, found, call)
    except Exception as error:  # the constructor is somebody else's
        return f"{call} fails: {error}" if str(call) not in str(error) else str(error)
    return None


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
        check_part(kind, maker)
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
    check_part(kind, part)
    return part
