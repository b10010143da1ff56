"""One photo or several: what the calls that take photos have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from .errors import ArgumentError
from .images import ImageSource
from .protocols import Features

__all__ = ["Photos", "check_batch_size", "is_many", "listed"]

Photos = ImageSource | Sequence[ImageSource] | Features
"""One photo, several photos, or the features of N photos as an encoder returns them."""


def is_many(images: object) -> bool:
    """Whether these are several photos; Features aren't photos."""
    return isinstance(images, (list, tuple)) and not isinstance(images, Features)


def listed(images: ImageSource | Sequence[ImageSource]) -> list[ImageSource]:
    """The photos as a list."""
    return list(cast(Sequence[ImageSource], images)) if is_many(images) else [cast(ImageSource, images)]


def check_batch_size(batch_size: int) -> None:
    """Refuse what isn't a whole number of at least 1."""
    if type(batch_size) is not int or batch_size < 1:
        raise ArgumentError(f"batch_size must be a whole number of at least 1, not {batch_size!r}")
