"""Encoders: photos to features. Each is imported when first asked for; torchvision and timm cost time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError

if TYPE_CHECKING:
    from .base import BackboneEncoder

__all__ = ["create_pretrained", "create_untrained"]


def create_pretrained(name: str, **options: Any) -> BackboneEncoder:
    """An encoder with its pretrained weights, by name.

    Example:
        >>> create_pretrained("resnet50")
        Traceback (most recent call last):
        ...
        showtell.errors.ArgumentError: no encoder 'resnet50'; did you mean 'torchvision:resnet50'? ...

    Names: "efficientnet-lite0" (1, 2); "torchvision:resnet50", or "torchvision:resnet50:IMAGENET1K_V1" for certain
    weights; "timm:resnet50.a1_in1k"; "inception-v3-tf:FILE.safetensors". `options` are those of the encoder's
    constructor. Raises ArgumentError for an unknown name, HubError when weights can't be fetched, NotFoundError and
    FormatError for a file, MissingPackageError when a package is needed for them.
    """
    kind, rest = _parts(name)
    if kind == "torchvision":
        from .torchvision import TorchvisionEncoder

        backbone, _, weights = rest.partition(":")
        return TorchvisionEncoder.pretrained(backbone, weights=weights or "DEFAULT", **options)
    if kind == "timm":
        from .timm import TimmEncoder

        return TimmEncoder.pretrained(rest, **options)
    if kind == "inception-v3-tf":
        from .inception_tf import InceptionV3TF

        if not rest:
            raise ArgumentError(
                "the weights of inception-v3-tf come from a file: name it, as in "
                "'inception-v3-tf:inception_v3_2015.safetensors'; docs/recipes.md says how to make one"
            )
        return InceptionV3TF.pretrained(rest, **options)
    from .efficientnet_lite import EfficientNetLite

    return EfficientNetLite.pretrained(int(kind[-1]), **options)


def create_untrained(name: str, **options: Any) -> BackboneEncoder:
    """The same encoder with random weights: nothing is fetched, no file is read; see `settle` for its batch norms.

    Example:
        >>> create_untrained("efficientnet-lite0", image_size=64).feature_dim
        1280

    Names and options as for `create_pretrained`; what a name says of weights is left aside. To try out a layout, or to
    train a backbone from scratch. Raises ArgumentError for an unknown name.
    """
    made = _untrained(*_parts(name), options)
    from .settle import settle

    settle(made)
    return made


def _untrained(kind: str, rest: str, options: dict[str, Any]) -> BackboneEncoder:
    if kind == "torchvision":
        from .torchvision import TorchvisionEncoder

        return TorchvisionEncoder(rest.partition(":")[0], **options)
    if kind == "timm":
        from .timm import TimmEncoder

        return TimmEncoder(rest.partition(".")[0], **options)
    if kind == "inception-v3-tf":
        from .inception_tf import InceptionV3TF

        return InceptionV3TF(**options)
    from .efficientnet_lite import EfficientNetLite

    return EfficientNetLite(int(kind[-1]), **options)


_LITE = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")


def _parts(name: str) -> tuple[str, str]:
    """(kind, the rest of the name); raises ArgumentError for a name that no encoder has."""
    kind, _, rest = name.partition(":") if isinstance(name, str) else ("", "", "")
    if (kind in ("torchvision", "timm") and rest) or (kind in _LITE and name == kind) or kind == "inception-v3-tf":
        return kind, rest
    hint = f"did you mean 'torchvision:{name}'? " if isinstance(name, str) and name.isidentifier() else ""
    raise ArgumentError(
        f"no encoder {name!r:.100}; {hint}Known are efficientnet-lite0, -lite1, -lite2, torchvision:NAME, timm:NAME "
        "and inception-v3-tf:FILE"
    )
