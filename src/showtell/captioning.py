"""From photos to n-best lists, batch after batch: what `Captioner.generate` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from .caption import Caption, captions_of
from .constraints import Constraints, bind, check_constraints
from .errors import ArgumentError
from .generate import Ready, generate
from .photos import Photos, check_batch_size, part_of, photos_of
from .protocols import Features
from .search import Search, as_search
from .vocabulary import Vocabulary

__all__ = ["Captioning", "caption_photos"]


class Captioning(Protocol):
    """What is asked of a captioner here."""

    vocabulary: Vocabulary
    search: Search

    def ready(self, images: Sequence[Any] | Features, /) -> Ready:
        """Some photos or their features to what the decoder takes."""
        ...


def caption_photos(
    captioner: Captioning,
    images: Photos,
    *,
    search: Search | str | None = None,
    batch_size: int = 32,
    constraints: Constraints | Sequence[Constraints] | None = None,
    positions: Sequence[int] | None = None,
) -> list[list[Caption]]:
    """The n-best captions of each photo, best first; arguments and errors are those of `Captioner.generate`.

    Example:
        >>> from showtell.testing import tiny_captioner
        >>> import torch
        >>> [[best, second]] = caption_photos(tiny_captioner(), torch.rand(3, 32, 32), search="beam:2")
        >>> best.score >= second.score
        True
    """
    check_batch_size(batch_size)
    how = captioner.search if search is None else as_search(search)
    photos, count = photos_of(images, "caption takes")
    if constraints is not None and not isinstance(constraints, Constraints):
        constraints = check_constraints(constraints, count)
    numbers = range(count) if positions is None else positions
    if not isinstance(numbers, Sequence):
        raise ArgumentError(f"positions are a list or a range of whole numbers, one a photo, not {positions!r:.100}")
    if len(numbers) != count:
        raise ArgumentError(f"{len(numbers)} positions for {count} photos; give one a photo")
    words = captioner.vocabulary
    captions: list[list[Caption]] = []
    for at in range(0, count, batch_size):
        here = slice(at, at + batch_size)
        decoder, features = captioner.ready(part_of(photos, at, at + batch_size))
        wishes = constraints if constraints is None or isinstance(constraints, Constraints) else constraints[here]
        bound = bind(wishes, features.pooled.shape[0], words, how)
        found = generate(
            decoder,
            features,
            how,
            start=words.start_id,
            end=words.end_id,
            forbid=(words.pad_id, words.start_id, words.unk_id),
            masks=bound.masks,
            force=bound.force,
            positions=numbers[here],
        )
        captions += captions_of(found, words)
    return captions
