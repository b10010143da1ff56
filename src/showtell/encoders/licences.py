"""Whose licence pretrained weights come under, as far as their makers say."""

from __future__ import annotations

__all__ = ["weights_licence"]

_IMAGENET = "they were trained on ImageNet, whose terms are for research"
_LITE = "Apache-2.0 (Google's EfficientNet-Lite)"
_MADE = "the file is that of scripts/convert-inception, whose source names no licence for the weights"


def weights_licence(name: str) -> str | None:
    """The licence of the weights that `create_pretrained(name)` gives, one line; None where it isn't known.

    Example:
        >>> weights_licence("efficientnet-lite0")
        "Apache-2.0 (Google's EfficientNet-Lite)"
        >>> weights_licence("mine") is None
        True

    "default" is the encoder of the bundled captioner. Nothing is fetched.
    """
    kind, _, rest = name.partition(":")
    if kind in ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"):
        return _LITE
    if name == "default":
        return f"research and non-commercial use, as its fine-tuning on Flickr8k is; before that {_LITE}"
    if kind == "inception-v3-tf" and rest:
        return f"Apache-2.0 (TensorFlow's release of Inception-v3, if {_MADE}); {_IMAGENET}"
    if kind == "torchvision" and rest:
        from .torchvision import stated_licence

        backbone, _, weights = rest.partition(":")
        stated = stated_licence(backbone, weights or "DEFAULT")
        return stated or f"torchvision's own is BSD-3-Clause, and it names none for these weights; {_IMAGENET}"
    if kind == "timm" and rest:
        from .timm import stated_licence as stated_by_timm

        stated = stated_by_timm(rest)
        return None if stated is None else f"{stated}, as timm says"
    return None
