"""Photos that look a little different in every epoch: mirrored, cut and stretched, in other light."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple
from unicodedata import category, normalize

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..checks import number, whole
from ..errors import ArgumentError
from ..image_spec import ImageSpec
from .records import Record

__all__ = ["Augmentation", "Augmented", "View", "refused"]

_Floats = NDArray[np.float32]
_RED, _GREEN, _BLUE = np.float32(0.299), np.float32(0.587), np.float32(0.114)
_UNSPACED = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")
_OFF = {"flip": 0.0, "crop_area": 1.0, "squash": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
_MOST_PIXELS = 4095  # a side, rounded up to at most 4096


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How photos are changed at random while training; every part is off by default.

    Example:
        >>> Augmentation(flip=0.5, brightness=0.2).names()
        ('flip', 'brightness')

    The parts follow one another in this order: cut and stretch, mirror, brightness, contrast, saturation.

    Args:
        flip: how likely a photo is mirrored left to right, 0..1. One whose captions hold a word of `flip_guard` never
            is: mirrored, its captions would lie.
        flip_guard: the words that speak of a side, compared without case, as whole words; those of scripts that put no
            spaces between words (Chinese, Japanese, Thai) are found anywhere.
        crop_area: the smallest share of the photo's area to cut out, 0.05..1; the share is even in crop_area..1, the
            place anywhere.
        squash: how far the cut-out may be stretched: its width to its height in 1 / squash..squash times the photo's,
            1..4.
        brightness, contrast, saturation: each factor is even in 1 - x..1 + x, x in 0..1.

    Raises:
        ArgumentError: a value out of its range, or words to guard that aren't words.
    """

    flip: float = 0.0
    flip_guard: tuple[str, ...] = ("left", "right", "leftmost", "rightmost")
    crop_area: float = 1.0
    squash: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name, low, high in (("crop_area", 0.05, 1.0), ("squash", 1.0, 4.0)):
            object.__setattr__(self, name, number(name, getattr(self, name), low, high))
        for name in ("flip", "brightness", "contrast", "saturation"):
            object.__setattr__(self, name, number(name, getattr(self, name), 0.0, 1.0))
        words = self.flip_guard
        if not isinstance(words, list | tuple) or not all(
            isinstance(w, str) and _words(w) == {_folded(w)} for w in words
        ):
            raise ArgumentError(f'flip_guard is a list of single words such as ["left", "right"], not {words!r:.200}')
        object.__setattr__(self, "flip_guard", tuple(words))

    def names(self) -> tuple[str, ...]:
        """The parts that are on; none: nothing is ever changed."""
        return tuple(name for name, off in _OFF.items() if getattr(self, name) != off)

    def may_flip(self, captions: Sequence[str]) -> bool:
        """Whether a photo with these captions may be mirrored.

        Example:
            >>> guard = Augmentation(flip=1.0)
            >>> guard.may_flip(["a man in a bright hat"]), guard.may_flip(["a man", "his left-hand glove"])
            (True, False)
        """
        guarded = {_folded(word) for word in self.flip_guard}
        whole_words = {word for caption in captions for word in _words(caption)}
        unspaced = [word for word in guarded if _UNSPACED.search(word)]
        return not guarded & whole_words and not any(word in _folded(each) for each in captions for word in unspaced)


class Augmented:
    """An augmentation at work on the photos of some records: a function of (seed, epoch, position of the photo).

    Example:
        >>> records = [Record("", None, (caption,), "train", "") for caption in ("a dog", "the left dog")]
        >>> augmented = Augmented(Augmentation(flip=1.0), records, ImageSpec(1, 2), seed=0)
        >>> dark_then_bright = torch.tensor([0.0, 1.0]).expand(2, 3, 1, 2)
        >>> augmented(dark_then_bright, [0, 1], epoch=0)[:, 0, 0].tolist()
        [[1.0, 0.0], [0.0, 1.0]]

    Whatever the batch, its order and the number of threads, a photo of an epoch comes out the same. Turning a part on
    or off doesn't change what the others draw.

    Args:
        augmentation: what may happen.
        records: the photos' captions, for `flip_guard`.
        spec: what the encoder asks for; photos are to be loaded as `self.spec` says, which is larger where a part of
            the photo is cut out, so that what is cut out is as sharp as the whole.
        seed: of all that is random.
    """

    def __init__(self, augmentation: Augmentation, records: Sequence[Record], spec: ImageSpec, *, seed: int) -> None:
        """Look which photos may be mirrored; none is read."""
        self.augmentation = augmentation
        self.seed = whole("seed", seed, 0, 2**63 - 1)
        self._size = (spec.height, spec.width)
        self._mode = "bicubic" if spec.interpolation in ("bicubic", "lanczos") else "bilinear"
        larger = math.sqrt(augmentation.squash / augmentation.crop_area)
        larger = min(larger, _MOST_PIXELS / max(spec.height, spec.width, spec.short_side or 1))
        short = None if spec.short_side is None else math.ceil(spec.short_side * larger)
        height, width = (math.ceil(side * larger) for side in self._size)
        self.spec = replace(spec, height=height, width=width, short_side=short) if larger > 1 else spec
        self._may_flip = [augmentation.may_flip(record.captions) for record in records]

    def __call__(self, images: Tensor, positions: Sequence[int], *, epoch: int) -> Tensor:
        """Images (N, 3, H, W) float in 0..1, as `self.spec` loads them -> (N, 3, height, width) of the encoder."""
        out = images.new_empty(len(images), 3, *self._size)

        def change(number: int) -> None:
            out[number] = self._changed(images[number], positions[number], epoch)

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="showtell-augment") as pool:
            list(pool.map(change, range(len(images))))
        return out

    def view(self, number: int) -> View:
        """The photos as they look in epoch `number`, for a feature cache."""
        return View(self, number)

    def _changed(self, image: Tensor, position: int, epoch: int) -> Tensor:
        """One photo (3, H, W)."""
        plan = self.augmentation
        draws = np.random.default_rng([self.seed, 2, epoch, position]).random(8)
        image = self._cut(image, *draws[:4].tolist())
        if draws[4] < plan.flip and self._may_flip[position]:
            image = image.flip(2)
        light, contrast, saturation = (
            1.0 + strength * (2.0 * float(draw) - 1.0)
            for strength, draw in zip((plan.brightness, plan.contrast, plan.saturation), draws[5:], strict=True)
        )
        # numpy: torch's sums depend in their last digits on the number of threads.
        pixels = image.numpy()
        if plan.brightness:
            pixels = _blend(pixels, np.float32(0), light)
        if plan.contrast:
            pixels = _blend(pixels, np.float32(_grey(pixels).mean(dtype=np.float64)), contrast)
        if plan.saturation:
            pixels = _blend(pixels, _grey(pixels), saturation)
        return torch.from_numpy(pixels)

    def _cut(self, image: Tensor, area: float, ratio: float, x: float, y: float) -> Tensor:
        """A part of the photo, at the encoder's size; area, ratio, x and y are draws from 0..1."""
        plan = self.augmentation
        rows, columns = image.shape[1:]
        share = 1.0 - area * (1.0 - plan.crop_area)
        stretch = math.exp((2.0 * ratio - 1.0) * math.log(plan.squash))
        width = max(1, round(columns * min(1.0, math.sqrt(share * stretch))))
        height = max(1, round(rows * min(1.0, math.sqrt(share / stretch))))
        left, top = math.floor(x * (columns - width + 1)), math.floor(y * (rows - height + 1))
        part = image[:, top : top + height, left : left + width]
        if part.shape[1:] == self._size:
            return part
        sized = F.interpolate(part[None], self._size, mode=self._mode, antialias=True, align_corners=False)
        return sized[0].clamp(0, 1)


class View(NamedTuple):
    """One look of all photos, always the same: what `Augmented` makes of them in one epoch."""

    augmented: Augmented
    epoch: int

    @property
    def spec(self) -> ImageSpec:
        """How to load the photos."""
        return self.augmented.spec

    def key(self) -> str:
        """SHA-256 of all that decides how the photos look."""
        made = self.augmented
        facts = [asdict(made.augmentation), made.seed, self.epoch, made._size, made._mode, made._may_flip]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def __call__(self, images: Tensor, positions: Sequence[int]) -> Tensor:
        """Images (N, 3, H, W), as `spec` loads them -> (N, 3, height, width) of the encoder."""
        return self.augmented(images, positions, epoch=self.epoch)


def refused(augmentation: Augmentation) -> ArgumentError:
    """The error that says, by name, what can't go together with features from a cache."""
    on = ", ".join(f"{name} = {getattr(augmentation, name):g}" for name in augmentation.names())
    return ArgumentError(
        f"augmentation ({on}) changes photos, but the encoder's trunk is frozen and its features come from a cache, "
        "where no photo is looked at again; set how many views of each photo are kept there (views = 4), train the "
        "encoder too (train_encoder = true or its last parts), or turn it off: "
        + ", ".join(f"{name} = {_OFF[name]:g}" for name in augmentation.names())
    )


def _blend(pixels: _Floats, other: _Floats | np.float32, share: float) -> _Floats:
    """`share` of the pixels and the rest of something else; a share over 1 goes away from it."""
    return np.clip(pixels * np.float32(share) + other * np.float32(1.0 - share), np.float32(0), np.float32(1))


def _grey(pixels: _Floats) -> _Floats:
    """(3, H, W) -> (H, W): how bright each pixel looks."""
    red, green, blue = pixels
    grey: _Floats = red * _RED + green * _GREEN + blue * _BLUE
    return grey


def _words(text: str) -> set[str]:
    text = _folded(text)
    if text.isascii():
        return set(re.findall(r"\w+", text))
    # re's \w leaves out marks that are part of words, such as the vowel signs of Hindi and Thai.
    return set("".join(each if each.isalnum() or category(each)[0] == "M" else " " for each in text).split())


def _folded(text: str) -> str:
    return normalize("NFC", text.casefold())
