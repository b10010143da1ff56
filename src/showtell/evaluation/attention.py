"""Where a decoder looked at each word of a caption, over a picture of what the encoder saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from ..attention import look, words_of
from ..captioner import Captioner
from ..images import ImageSource, load_image
from ..pictures import Picture, picture_of, small_picture

__all__ = ["SeenMaps", "attention_maps"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_MOST_WORDS = 40


@dataclass(frozen=True)
class SeenMaps:
    """Where a decoder looked, word by word.

    picture: what the encoder saw, possibly scaled down. words: T of them. weights (T, L): of each region, in 0..1; a
    row sums to at most 1, the rest going to a sentinel. boxes (L, 4): the regions, x0 y0 x1 y1 in 0..1 of the picture.
    """

    picture: Picture
    words: tuple[str, ...]
    weights: Array
    boxes: Array


def attention_maps(captioner: Captioner, image: ImageSource, caption: str) -> SeenMaps:
    """The attention of a captioner while it is made to say `caption` of a photo.

    Example:
        >>> attention_maps(captioner, "dog.jpg", "a dog runs").words  # doctest: +SKIP
        ('a', 'dog', 'runs')

    As `Captioner.attend`, but on what the encoder saw. Of a long caption the first 40 words are looked at.

    Raises:
        ArgumentError: its decoder has no attention or returns maps of another shape than (1, words, regions), or its
            encoder doesn't say where the regions are.
        NotFoundError, ImageError: the photo can't be read.
    """
    ids = captioner.vocabulary.encode(caption)[:_MOST_WORDS]
    pixels = load_image(image, captioner.encoder.image_spec)
    looked = look(captioner, captioner.encode_pixels(pixels.unsqueeze(0)), [ids])
    words = words_of(captioner.vocabulary, ids)
    return SeenMaps(_picture(pixels), words, looked.weights[0].numpy(), looked.boxes[0].numpy())


def _picture(pixels: torch.Tensor) -> Picture:
    return small_picture(pixels, longest=256) if max(pixels.shape[1:]) > 256 else picture_of(pixels)
