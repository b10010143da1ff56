"""One photo or several: what the calls that take photos have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from .errors import ArgumentError
from .images import ImageSource
from .protocols import Features, as_features, slice_features

__all__ = ["Photos", "check_batch_size", "is_many", "listed", "part_of", "photos_of"]

Photos = ImageSource | Sequence[ImageSource] | Features
"""One photo, several photos, or the features of N photos as an encoder returns them."""


def is_many(images: object) -> bool:
    """Whether these are several photos; Features aren't photos."""
    return isinstance(images, (list, tuple)) and not isinstance(images, Features)


def listed(images: ImageSource | Sequence[ImageSource]) -> list[ImageSource]:
    """The photos as a list."""
    return list(cast(Sequence[ImageSource], images)) if is_many(images) else [cast(ImageSource, images)]


def photos_of(images: Photos, who: str) -> tuple[list[Any] | Features, int]:
    """The photos as a list, or their features; and how many they are. `who`: what errors begin with, "score takes"."""
    if isinstance(images, Features):
        return as_features(images, who), images.pooled.shape[0]
    photos = listed(cast(Any, images))
    return photos, len(photos)


def part_of(photos: list[Any] | Features, start: int, stop: int) -> list[Any] | Features:
    """Photos start..stop-1."""
    return slice_features(photos, start, stop) if isinstance(photos, Features) else photos[start:stop]


def check_batch_size(batch_size: int) -> None:
    """Refuse what isn't a whole number of at least 1."""
    if type(batch_size) is not int or batch_size < 1:
        raise ArgumentError(f"batch_size must be a whole number of at least 1, not {batch_size!r}")
