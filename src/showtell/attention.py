"""Where a decoder looked at each word of a caption: one forced pass, and boxes of the original photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from .caption import Caption
from .checks import whole
from .errors import ArgumentError
from .generate import evaluating
from .image_spec import ImageSpec
from .images import load_images, photo_size
from .photos import Photos, check_batch_size, is_many, part_of, photos_of
from .protocols import Decoder, Encoder, Features
from .vocabulary import Vocabulary

__all__ = ["Attending", "AttentionMaps", "Looked", "attend", "look", "words_of"]


class Attending(Protocol):
    """What is asked of a captioner here."""

    encoder: Encoder
    decoder: Decoder
    vocabulary: Vocabulary

    def encode_pixels(self, pixels: Tensor) -> Features:
        """Resized images (N, 3, H, W) in 0..1 to features."""
        ...

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Features, tokens (N, T) and attention=True -> Forced."""
        ...


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Where a decoder looked, word by word, on the original photo.

    Example:
        >>> maps = AttentionMaps(
        ...     words=("a", "dog"),
        ...     weights=torch.tensor([[0.25, 0.25], [0.0, 1.0]]),
        ...     boxes=torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]),
        ... )
        >>> maps.sentinel.tolist(), maps.boxes[maps.weights[1].argmax()].tolist()
        ([0.5, 0.0], [0.5, 0.0, 1.0, 1.0])

    words: T of them, as `Caption.tokens` has them. weights (T, L) float32: how much the decoder looked at each region
    before it said the word, in 0..1; a row sums to at most 1. boxes (L, 4) float32: the regions, x0 y0 x1 y1 in 0..1
    of the upright photo; grid cells and detector regions alike, masked ones left out. All on the CPU.
    """

    words: tuple[str, ...]
    weights: Tensor
    boxes: Tensor

    @property
    def sentinel(self) -> Tensor:
        """(T,): the share of each word that went to no region; 0 for a decoder without a visual sentinel."""
        return (1 - self.weights.sum(1)).clamp(0, 1)

    def heatmap(self, place: int, *, width: int, height: int) -> Tensor:
        """The attention of one word painted on the photo: (height, width), summing to its weight inside the photo.

        Example:
            >>> boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]])
            >>> AttentionMaps(("dog",), torch.tensor([[0.2, 0.8]]), boxes).heatmap(0, width=4, height=2)[0].tolist()
            [0.05000000074505806, 0.05000000074505806, 0.20000000298023224, 0.20000000298023224]

        Each region spreads its weight evenly over its box; a pixel that lies half in a box gets half. `place`: 0..T-1
        of `words`; width and height 1..16384 pixels. Raises ArgumentError.
        """
        if type(place) is not int or not 0 <= place < len(self.words):
            raise ArgumentError(f"place is one of the {len(self.words)} words, from 0, not {place!r:.50}")
        x0, y0, x1, y1 = self.boxes.double().unbind(1)
        across = _covered(x0, x1, whole("width", width, 1, 16384))
        down = _covered(y0, y1, whole("height", height, 1, 16384))
        area = across.sum(1) * down.sum(1)
        weights = torch.where(area > 0, self.weights[place].double() / area, 0.0)
        return ((weights.unsqueeze(1) * down).T @ across).float()


class Looked(NamedTuple):
    """weights (N, T, L) float32, 0 for masked regions; boxes (N, L, 4) in 0..1 of the encoder's input; on the CPU."""

    weights: Tensor
    boxes: Tensor


def attend(
    captioner: Attending,
    images: Photos,
    captions: str | Caption | Sequence[str | Caption],
    *,
    batch_size: int = 32,
) -> AttentionMaps | list[AttentionMaps]:
    """Where the captioner looks while it is made to say a caption of a photo; `Captioner.attend` is this.

    Example:
        >>> from showtell.testing import tiny_captioner
        >>> captioner, photo = tiny_captioner(decoder="attention-lstm.v1"), torch.rand(3, 60, 80)
        >>> maps = attend(captioner, photo, "a dog runs")
        >>> maps.words, maps.weights.shape, maps.boxes[-1].tolist()
        (('a', 'dog', 'runs'), torch.Size([3, 16]), [0.75, 0.75, 1.0, 1.0])

    A `Caption` comes with all its tokens, the end token included; of a text only the words are looked at, unknown ones
    as `<unk>`. One photo and one caption give one AttentionMaps, lists of equal length and Features a list. The photos
    of Features aren't known: boxes are then in 0..1 of what the encoder saw, which for `resize="squash"` is the whole
    photo.

    Raises:
        ArgumentError: the decoder has no attention, the encoder doesn't say where its regions are, photos and captions
            don't go together, or a Caption has a token that the vocabulary lacks.
        NotFoundError, ImageError: a photo can't be read.
    """
    _check_attends(captioner)
    check_batch_size(batch_size)
    many = isinstance(images, Features) or is_many(images)
    if many == isinstance(captions, str | Caption):
        raise ArgumentError("attend takes one photo and one caption, or a list of photos and as many captions")
    if many and not isinstance(captions, list | tuple):
        raise ArgumentError(f"photos in a list, or Features, have a list of captions, not {type(captions).__name__}")
    texts = list(cast("Sequence[str | Caption]", captions)) if many else [cast("str | Caption", captions)]
    photos, count = photos_of(images, "attend takes")
    if count != len(texts):
        raise ArgumentError(f"each photo has one caption; there are {count} photos and {len(texts)} captions")
    tokens = [_ids(captioner.vocabulary, text) for text in texts]
    spec = captioner.encoder.image_spec
    found: list[AttentionMaps] = []
    for start in range(0, count, batch_size):
        said = tokens[start : start + batch_size]
        some = part_of(photos, start, start + batch_size)
        sizes: list[tuple[int, int] | None] = [None] * len(said)
        if isinstance(some, Features):
            features = some
        else:
            features = captioner.encode_pixels(load_images(some, spec))
            # A squashed photo fills the encoder's input: in 0..1 the boxes are the same.
            sizes = [None if spec.resize == "squash" else photo_size(photo) for photo in some]
        found += _maps(captioner, features, said, sizes)
    return found if many else found[0]


def look(captioner: Attending, features: Features, tokens: Sequence[Sequence[int]]) -> Looked:
    """The attention before each token, for N photos and a caption each; T is the longest's length.

    The captioner is left in the mode it was in. What is no number, or outside 0..1, is brought there. Raises
    ArgumentError as `attend` does, and for maps of another shape.
    """
    _check_attends(captioner)
    boxes = features.boxes
    if boxes is None:
        raise ArgumentError(f"{type(captioner.encoder).__name__} doesn't say where its regions are (Features.boxes)")
    expected = (len(tokens), max(map(len, tokens), default=0), boxes.shape[1])
    weights = torch.zeros(expected)
    if 0 not in expected:
        words = captioner.vocabulary
        # The token before each one; what stands behind a caption's end is not looked at.
        before = [[words.start_id, *ids[:-1]] for ids in tokens]
        padded = [[*ids, *[words.pad_id] * (expected[1] - len(ids))][: expected[1]] for ids in before]
        given = torch.tensor(padded, device=features.pooled.device)
        with torch.inference_mode(), evaluating(captioner):
            maps = captioner(features, given, attention=True).attention
        if maps is None or tuple(maps.shape) != expected:
            shape = None if maps is None else tuple(maps.shape)
            name = type(captioner.decoder).__name__
            raise ArgumentError(f"{name} returned attention of shape {shape}, not {expected}")
        weights = maps.float() if features.mask is None else maps.float() * features.mask.unsqueeze(1)
        weights = weights.nan_to_num(0.0).clamp(0.0, 1.0)
    return Looked(weights.cpu().clone(), boxes.float().clamp(0, 1).cpu().clone())


def words_of(vocabulary: Vocabulary, ids: Sequence[int]) -> tuple[str, ...]:
    """How each token reads by itself.

    Example:
        >>> words_of(Vocabulary.build(["a dog"], min_count=1), [4, 5, 2])
        ('a', 'dog', '<end>')
    """
    return tuple(vocabulary.decode([number]).strip() or vocabulary.token_of(number) for number in ids)


def _maps(
    captioner: Attending, features: Features, tokens: list[list[int]], sizes: list[tuple[int, int] | None]
) -> list[AttentionMaps]:
    looked = look(captioner, features, tokens)
    spec, found = captioner.encoder.image_spec, []
    for row, (ids, size) in enumerate(zip(tokens, sizes, strict=True)):
        weights, boxes = looked.weights[row, : len(ids)], looked.boxes[row]
        if features.mask is not None:
            real = features.mask[row].cpu()
            weights, boxes = weights[:, real], boxes[real]
        boxes = boxes if size is None else _on_photo(boxes, spec, size)
        found.append(AttentionMaps(words_of(captioner.vocabulary, ids), weights, boxes))
    return found


def _on_photo(boxes: Tensor, spec: ImageSpec, size: tuple[int, int]) -> Tensor:
    """Boxes (L, 4) in 0..1 of the encoder's input -> in 0..1 of a photo of that (width, height)."""
    width, height = size
    pixels = [spec.box_on_photo(box, width=width, height=height) for box in boxes.tolist()]
    found = torch.tensor(pixels).view(-1, 4) / torch.tensor([width, height, width, height])
    return found.clamp(0, 1)


def _covered(low: Tensor, high: Tensor, pixels: int) -> Tensor:
    """How much of each pixel lies between `low` and `high` (L,), in 0..1 of all of them: (L, pixels)."""
    edges = torch.arange(pixels + 1, dtype=low.dtype)
    inside = torch.minimum(edges[1:], high.unsqueeze(1) * pixels) - torch.maximum(edges[:-1], low.unsqueeze(1) * pixels)
    return inside.clamp(min=0)


def _ids(vocabulary: Vocabulary, caption: str | Caption) -> list[int]:
    if isinstance(caption, str):
        return vocabulary.encode(caption)
    if not isinstance(caption, Caption):
        raise ArgumentError(f"a caption is a text or a Caption, not {type(caption).__name__}")
    ids = [vocabulary.id_of(token) for token in caption.tokens]
    if None in ids:
        raise ArgumentError(
            f"the vocabulary has no {caption.tokens[ids.index(None)]!r:.100}; is the caption another captioner's? "
            "Pass its text"
        )
    return cast("list[int]", ids)


def _check_attends(captioner: Attending) -> None:
    if not captioner.decoder.has_attention:
        raise ArgumentError(f"{type(captioner.decoder).__name__} has no attention to show")
