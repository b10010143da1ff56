"""Component name <-> class: built in, registered in this process, or an entry point of an installed package."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeVar

import torch

from .errors import ArgumentError, ComponentError

__all__ = ["class_path", "component_name", "find_component", "register_decoder", "register_encoder"]

Kind = Literal["encoder", "decoder"]
C = TypeVar("C", bound=type)

_BUILT_IN: dict[Kind, dict[str, str]] = {
    "encoder": {
        "efficientnet-lite.v1": "showtell.encoders.efficientnet_lite:EfficientNetLite",
        "inception-v3-tf.v1": "showtell.encoders.inception_tf:InceptionV3TF",
        "joined.v1": "showtell.encoders.joined:JoinedEncoder",
        "precomputed.v1": "showtell.encoders.precomputed:PrecomputedFeatures",
        "timm.v1": "showtell.encoders.timm:TimmEncoder",
        "torchvision.v1": "showtell.encoders.torchvision:TorchvisionEncoder",
    },
    "decoder": {
        "adaptive-lstm.v1": "showtell.decoders.adaptive_lstm:AdaptiveLSTMDecoder",
        "attention-lstm.v1": "showtell.decoders.attention_lstm:AttentionLSTMDecoder",
        "lstm.v1": "showtell.decoders.lstm:LSTMDecoder",
        "transformer.v1": "showtell.decoders.transformer:TransformerDecoder",
    },
}
_NAME = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*\.v[1-9][0-9]{0,3}")
_registered: dict[Kind, dict[str, type]] = {"encoder": {}, "decoder": {}}


def register_encoder(name: str) -> Callable[[C], C]:
    """Register an encoder class under a versioned name, for this process.

    Example:
        >>> @register_encoder("my-encoder.v1")
        ... class MyEncoder: ...

    A package does the same for every process by an entry point in the group `showtell.encoders`. Raises
    ArgumentError when the name has no version (`.v1`) or belongs to another class.
    """
    return _register("encoder", name)


def register_decoder(name: str) -> Callable[[C], C]:
    """Register a decoder class under a versioned name, for this process; see `register_encoder`."""
    return _register("decoder", name)


def _register(kind: Kind, name: str) -> Callable[[C], C]:
    if not isinstance(name, str) or len(name) > 100 or not _NAME.fullmatch(name):
        raise ArgumentError(
            f"{name!r:.120} can't be a component name; use lower-case letters, digits and dashes, "
            'then a version, as in "my-encoder.v1"'
        )

    def keep(cls: C) -> C:
        other = _registered[kind].get(name)
        taken = name in _BUILT_IN[kind] or (other is not None and class_path(other) != class_path(cls))
        if taken:
            raise ArgumentError(f"the {kind} name {name!r} is taken; choose another name or raise the version")
        _registered[kind][name] = cls
        return cls

    return keep


def class_path(cls: type) -> str:
    """Where a class lives, as text: "package.module:Class"."""
    return f"{cls.__module__}:{cls.__qualname__}"


def _entry_points(kind: Kind, name: str | None = None) -> list[EntryPoint]:
    group = f"showtell.{kind}s"
    found = entry_points(group=group) if name is None else entry_points(group=group, name=name)
    # One installation may be listed twice on sys.path (an editable install beside its own metadata).
    return list({(e.name, e.value, e.dist.name if e.dist else ""): e for e in found}.values())


def find_component(kind: Kind, name: str) -> type:
    """The class of that name: built in, registered in this process, or one installed entry point.

    Example:
        >>> find_component("decoder", "lstm.v1").__name__
        'LSTMDecoder'

    Nothing but the entry point of exactly that name is imported, and not on a device that is set around it: what is
    imported computes there, and torch 2.8 can't on the meta device. Raises ComponentError when there is none or
    more than one.
    """
    if not isinstance(name, str) or len(name) > 100 or not _NAME.fullmatch(name):
        raise ComponentError(f"{name!r:.120} is no {kind} name; names look like 'lstm.v1'")
    if name in _BUILT_IN[kind]:
        module, attribute = _BUILT_IN[kind][name].split(":")
        with torch.device("cpu"):
            built_in: type = getattr(importlib.import_module(module), attribute)
        return built_in
    if name in _registered[kind]:
        return _registered[kind][name]
    found = _entry_points(kind, name)
    if len(found) > 1:
        owners = ", ".join(sorted(e.dist.name if e.dist else e.value for e in found))
        raise ComponentError(f"{len(found)} installed packages offer a {kind} named {name!r} ({owners}); remove one")
    if found:
        with torch.device("cpu"):
            loaded: Any = found[0].load()
        if not isinstance(loaded, type):
            raise ComponentError(f"the entry point {name!r} ({found[0].value}) is no class")
        return loaded
    raise ComponentError(
        f"no {kind} named {name!r} is known. Three ways out: pass it ({kind}=MyClass), register it "
        f"(@showtell.register_{kind}({name!r}) before loading), or install the package that offers it as an entry "
        f"point in the group showtell.{kind}s"
    )


def component_name(kind: Kind, cls: type) -> str | None:
    """The name under which a class can be found again, or None when it is registered nowhere."""
    path = class_path(cls)
    for name, value in _BUILT_IN[kind].items():
        if value == path:
            return name
    for name, known in _registered[kind].items():
        if known is cls:
            return name
    package = cls.__module__.split(".")[0]
    for entry in _entry_points(kind):
        same_package = entry.value.split(":")[0].split(".")[0] == package
        if same_package and _NAME.fullmatch(entry.name) and entry.load() is cls:
            return entry.name
    return None
