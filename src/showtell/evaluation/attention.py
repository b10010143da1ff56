"""Where a decoder looked at each word of a caption: one forced pass over a photo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from ..captioner import Captioner
from ..errors import ArgumentError
from ..generate import evaluating
from ..images import ImageSource, load_image
from ..pictures import Picture, picture_of, small_picture

__all__ = ["AttentionMaps", "attention_maps"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_MOST_WORDS = 40


@dataclass(frozen=True)
class AttentionMaps:
    """Where a decoder looked, word by word.

    picture: what the encoder saw, possibly scaled down. words: T of them. weights (T, L): of each region, in 0..1; a
    row sums to at most 1, the rest going to a sentinel. boxes (L, 4): the regions, x0 y0 x1 y1 in 0..1 of the picture.
    """

    picture: Picture
    words: tuple[str, ...]
    weights: Array
    boxes: Array


def attention_maps(captioner: Captioner, image: ImageSource, caption: str) -> AttentionMaps:
    """The attention of a captioner while it is made to say `caption` of a photo.

    Example:
        >>> attention_maps(captioner, "dog.jpg", "a dog runs").words  # doctest: +SKIP
        ('a', 'dog', 'runs')

    Words that the vocabulary doesn't know are `<unk>`; of a long caption the first 40 are looked at. The captioner is
    left in the mode it was in.

    Raises:
        ArgumentError: its decoder has no attention or returns maps of another shape than (1, words, regions), or its
            encoder doesn't say where the regions are.
        NotFoundError, ImageError: the photo can't be read.
    """
    if not captioner.decoder.has_attention:
        raise ArgumentError(f"{type(captioner.decoder).__name__} has no attention to show")
    vocabulary = captioner.vocabulary
    ids = vocabulary.encode(caption)[:_MOST_WORDS]
    pixels = load_image(image, captioner.encoder.image_spec)
    picture = _picture(pixels)
    if not ids:
        return AttentionMaps(picture, (), np.zeros((0, 0)), np.zeros((0, 4)))
    features = captioner.encode_pixels(pixels.unsqueeze(0))
    tokens = torch.tensor([[vocabulary.start_id, *ids[:-1]]], device=features.pooled.device)
    with torch.inference_mode(), evaluating(captioner):
        found = captioner(features, tokens, attention=True).attention
    boxes = features.boxes
    if boxes is None:
        raise ArgumentError(f"{type(captioner.encoder).__name__} doesn't say where its regions are (Features.boxes)")
    expected = (1, len(ids), boxes.shape[1])
    if found is None or tuple(found.shape) != expected:
        shape = None if found is None else tuple(found.shape)
        raise ArgumentError(f"{type(captioner.decoder).__name__} returned attention of shape {shape}, not {expected}")
    weights = found[0].float()
    if features.mask is not None:
        weights = weights * features.mask[0]
    weights = weights.nan_to_num(0.0).clamp(0.0, 1.0)
    words = tuple(vocabulary.decode([number]).strip() for number in ids)
    return AttentionMaps(picture, words, weights.cpu().numpy(), boxes[0].float().clamp(0, 1).cpu().numpy())


def _picture(pixels: torch.Tensor) -> Picture:
    return small_picture(pixels, longest=256) if max(pixels.shape[1:]) > 256 else picture_of(pixels)
