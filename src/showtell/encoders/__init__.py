"""Encoders: photos to features. Each is imported when first asked for; torchvision and timm cost time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError

if TYPE_CHECKING:
    from .base import BackboneEncoder

__all__ = ["create_pretrained"]


def create_pretrained(name: str, **options: Any) -> BackboneEncoder:
    """An encoder with its pretrained weights, by name.

    Example:
        >>> create_pretrained("resnet50")
        Traceback (most recent call last):
        ...
        showtell.errors.ArgumentError: no encoder 'resnet50'; did you mean 'torchvision:resnet50'? ...

    Names: "efficientnet-lite0" (1, 2); "torchvision:resnet50", or "torchvision:resnet50:IMAGENET1K_V1" for certain
    weights; "timm:resnet50.a1_in1k". `options` are those of the encoder's constructor. Raises ArgumentError for an
    unknown name, HubError when weights can't be fetched, MissingPackageError when a package is needed for them.
    """
    kind, _, rest = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind == "torchvision" and rest:
        from .torchvision import TorchvisionEncoder

        backbone, _, weights = rest.partition(":")
        return TorchvisionEncoder.pretrained(backbone, weights=weights or "DEFAULT", **options)
    if kind == "timm" and rest:
        from .timm import TimmEncoder

        return TimmEncoder.pretrained(rest, **options)
    if kind in ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2") and not rest:
        from .efficientnet_lite import EfficientNetLite

        return EfficientNetLite.pretrained(int(kind[-1]), **options)
    hint = f"did you mean 'torchvision:{name}'? " if isinstance(name, str) and name.isidentifier() else ""
    raise ArgumentError(
        f"no encoder {name!r:.100}; {hint}Known are efficientnet-lite0, -lite1, -lite2, torchvision:NAME and timm:NAME"
    )
