"""Where the inputs of a batch come from: photos decoded each time, or rows of a feature cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DataError, ShowtellError
from ..image_spec import ImageSpec
from ..images import load_image, load_images
from ..progress import bar
from ..protocols import Features
from ..ranks import ALONE, Ranks
from .records import Record, listed

if TYPE_CHECKING:
    from .cache import FeatureCache

__all__ = ["CachedInputs", "CachedViews", "ImageInputs", "load_records", "unreadable"]

_AT_ONCE = 64


class ImageInputs:
    """Photos by position, decoded anew each time: for encoders whose trunk is trained.

    Example:
        >>> import numpy as np
        >>> record = Record("a", np.zeros((9, 9, 3), np.uint8), ("a dog",), "train", "made up")
        >>> tuple(ImageInputs([record], ImageSpec(8, 8))([0, 0]).shape)
        (2, 3, 8, 8)
    """

    def __init__(self, records: Sequence[Record], spec: ImageSpec) -> None:
        """Keep the records; nothing is read yet."""
        self.records = records
        self.spec = spec

    def __call__(self, positions: Sequence[int]) -> Tensor:
        """Images (N, 3, H, W) float32 in 0..1; raises DataError that lists the photos that can't be read."""
        images, bad = load_records([self.records[i] for i in positions], self.spec)
        if bad:
            raise DataError(f"photos that can't be read:{listed(list(bad.values()), len(bad))}")
        return images


class CachedInputs:
    """Rows of a feature cache for some of its records: position i is row `rows[i]` of the cache.

    A cache holds all records of a run; a split, or the records without the unreadable ones, is a choice of rows.
    """

    def __init__(self, cache: FeatureCache, rows: Sequence[int]) -> None:
        """Keep the choice of rows."""
        self.cache = cache
        self.rows = rows

    def __call__(self, positions: Sequence[int]) -> Features:
        """Features of N photos, float32."""
        return self.cache.features([self.rows[i] for i in positions])


class CachedViews:
    """Features of several views of the same photos, taken in turn, epoch by epoch.

    Example:
        >>> CachedViews(["the first", "the second"]).of(epoch=3)
        'the second'

    Each of `views` is what `CachedInputs` is, for the same photos. `Batches` takes the epoch's; called itself it gives
    the first.
    """

    def __init__(self, views: Sequence[CachedInputs]) -> None:
        """Keep the views."""
        self.views = views

    def __call__(self, positions: Sequence[int]) -> Features:
        """Features of N photos, float32, in the first view."""
        return self.views[0](positions)

    def of(self, epoch: int) -> CachedInputs:
        """The view of that epoch, from 0."""
        return self.views[epoch % len(self.views)]


def unreadable(records: Sequence[Record], *, show: bool | None, ranks: Ranks = ALONE) -> dict[int, str]:
    """Which photos can't be read, and why: found out before long work rather than in the middle of it.

    show: a progress bar; None: where standard error is a terminal. ranks: the processes that share the photos.
    """
    tiny = ImageSpec(32, 32)
    found: list[dict[int, str]] = []
    own = ranks.own([range(start, min(len(records), start + _AT_ONCE)) for start in range(0, len(records), _AT_ONCE)])
    with bar(sum(map(len, own)), "opening photos", unit="photo", show=show) as progress:
        for some in own:
            bad = load_records([records[i] for i in some], tiny)[1]
            found.append({some.start + number: reason for number, reason in bad.items()})
            progress.update(len(some))
    return {position: reason for bad in ranks.woven(found) for position, reason in bad.items()}


def load_records(records: Sequence[Record], spec: ImageSpec) -> tuple[Tensor, dict[int, str]]:
    """The photos of some records, (N, 3, H, W), and why some are black: {number in `records`: "id: reason"}."""
    bad: dict[int, str] = {}
    photos: list[Any] = []
    for number, record in enumerate(records):
        try:
            photos.append(record.photo())
        except ShowtellError as error:
            photos.append(None)
            bad[number] = f"{record.id}: {error}"
    if not bad:
        try:
            return load_images(photos, spec), bad
        except ShowtellError:
            pass  # at least one is bad: find out which, one by one
    images = torch.zeros(len(records), 3, spec.height, spec.width)
    for number, photo in enumerate(photos):
        if number in bad:
            continue
        try:
            images[number] = load_image(photo, spec)
        except ShowtellError as error:
            bad[number] = f"{records[number].id}: {error}"
    return images, bad
