"""Small JPEGs of photos, as text that a page can hold."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from .checks import whole
from .errors import ArgumentError
from .image_spec import ImageSpec
from .images import ImageSource, load_image, photo_size

__all__ = ["Picture", "picture_of", "small_picture"]


@dataclass(frozen=True)
class Picture:
    """A JPEG and its size in pixels.

    Example:
        >>> import torch
        >>> picture_of(torch.zeros(3, 2, 4)).height
        2
    """

    jpeg: bytes
    width: int
    height: int

    @property
    def uri(self) -> str:
        """The whole picture as a `data:` address."""
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode("ascii")


def small_picture(source: ImageSource, *, longest: int = 320, quality: int = 75) -> Picture:
    """A small copy of a photo, upright and in its own proportions.

    Example:
        >>> import numpy as np
        >>> picture = small_picture(np.zeros((600, 800, 3), np.uint8))
        >>> picture.width, picture.height, picture.uri[:23]
        (320, 240, 'data:image/jpeg;base64,')

    Args:
        source: as for `load_image`.
        longest: the most pixels of the longer side, 1..4096; a smaller photo stays as large as it is.
        quality: JPEG's, 1..95.

    Raises:
        NotFoundError: no such file.
        ImageError: it can't be read as a photo.
    """
    whole("longest", longest, 1, 4096)
    width, height = photo_size(source)
    scale = min(1.0, longest / max(width, height))
    spec = ImageSpec(max(1, round(height * scale)), max(1, round(width * scale)), interpolation="lanczos")
    return picture_of(load_image(source, spec), quality=quality)


def picture_of(pixels: Tensor, *, quality: int = 75) -> Picture:
    """Pixels (3, H, W) in 0..1 as a JPEG; values outside are cut off.

    Example:
        >>> import torch
        >>> picture_of(torch.rand(3, 20, 30)).width
        30

    `quality` is JPEG's, 1..95. Raises ArgumentError for another shape.
    """
    whole("quality", quality, 1, 95)
    if pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
        raise ArgumentError(f"a picture is made of pixels (3, height, width), not {tuple(pixels.shape)}")
    levels = (pixels.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu()
    image, file = Image.fromarray(levels.contiguous().numpy()), io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    return Picture(file.getvalue(), image.width, image.height)
