"""Which caption fits a photo, and which photo a caption: every pair's log-probability, and the orders it gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from .checks import choice
from .errors import ArgumentError
from .generate import evaluating
from .photos import Photos, check_batch_size, part_of, photos_of
from .scoring import (
    Given,
    Scoring,
    Words,
    batches,
    check_numbers,
    forced_log_probs,
    width,
    words_in,
)

__all__ = ["By", "Ranking", "rank"]

By: TypeAlias = Literal["log_prob", "per_token", "pmi"]
"""What captions and photos are ordered by."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """How well each of C captions fits each of N photos.

    Example:
        >>> scores = torch.tensor([[-3.0, -1.0, -2.0], [-1.0, -1.0, -9.0]])
        >>> ranking = Ranking(("a dog", "a cat", "a man"), scores, torch.tensor([3, 3, 3]), scores)
        >>> ranking.caption_order.tolist(), ranking.image_order.tolist()
        ([[1, 2, 0], [0, 1, 2]], [[1, 0], [0, 1], [0, 1]])
        >>> ranking.captions[ranking.caption_order[0, 0]]
        'a cat'

    captions: their texts. log_probs (N, C): of each caption given each photo, the model's own. lengths (C,) int64:
    tokens of each caption, its end included. scores (N, C): what the orders are by. All on the CPU.
    """

    captions: tuple[str, ...]
    log_probs: Tensor
    lengths: Tensor
    scores: Tensor

    @property
    def caption_order(self) -> Tensor:
        """(N, C) int64: for each photo the numbers of the captions, best first; of equal ones the lower first."""
        return self.scores.sort(dim=1, descending=True, stable=True).indices

    @property
    def image_order(self) -> Tensor:
        """(C, N) int64: for each caption the numbers of the photos, best first; of equal ones the lower first."""
        return self.scores.T.sort(dim=1, descending=True, stable=True).indices


def rank(
    captioner: Scoring,
    images: Photos,
    captions: Sequence[Given],
    *,
    by: By = "log_prob",
    background: Photos | None = None,
    batch_size: int = 32,
) -> Ranking:
    """Every caption on every photo: captions for a photo, photos for a caption; `Captioner.rank` is this.

    Example:
        >>> from showtell.testing import tiny_captioner
        >>> photos = [torch.rand(3, 32, 32), torch.rand(3, 32, 32)]
        >>> ranking = rank(tiny_captioner(), photos, ["a dog runs", "two men on a bike", "a girl"], by="pmi")
        >>> ranking.log_probs.shape, ranking.image_order.shape
        (torch.Size([2, 3]), torch.Size([3, 2]))

    Each photo is encoded once; memory for next-word scores is bounded whatever the number of photos and captions.

    Args:
        images: as for `caption`; one photo gives N = 1.
        captions: texts, tuples of tokens or Captions, as for `score`.
        by: "log_prob"; "per_token", the mean over the caption's tokens, which takes the advantage from short captions;
            or "pmi", the pointwise mutual information log p(caption | photo) - log p(caption), which takes it from
            captions that suit any photo. p(caption) is its mean probability over `background`.
        background: photos that "pmi" compares with, at least 2; by default `images`.
        batch_size: photos at a time, at least 1.

    Raises:
        ArgumentError: as `score`; no mean for "pmi"; a background for another one.
        NotFoundError, ImageError: a photo can't be read.
        RunError: the decoder returned NaN.
    """
    check_batch_size(batch_size)
    choice("by", by, ("log_prob", "per_token", "pmi"))
    if isinstance(captions, str) or not isinstance(captions, list | tuple):
        raise ArgumentError(f"rank takes a list of captions, not {captions!r:.100}")
    if background is not None and by != "pmi":
        raise ArgumentError(f'a background belongs to by="pmi"; by={by!r} has no use for it')
    words = [words_in(captioner.vocabulary, one) for one in captions]
    lengths = torch.tensor([len(one.ids) for one in words], dtype=torch.int64)
    log_probs = _pairs(captioner, images, words, batch_size)
    scores = log_probs
    if by == "per_token":
        scores = log_probs / lengths
    elif by == "pmi":
        others = log_probs if background is None else _pairs(captioner, background, words, batch_size)
        if len(others) < 2:
            raise ArgumentError(
                'by="pmi" compares with the mean over several photos, at least 2; pass more of them as background'
            )
        scores = log_probs - (others.logsumexp(0) - math.log(len(others)))
    return Ranking(tuple(one.text for one in words), log_probs, lengths, scores)


def _pairs(captioner: Scoring, images: Photos, words: list[Words], batch_size: int) -> Tensor:
    """The log-probability of every caption given every photo, (N, C) on the CPU."""
    photos, count = photos_of(images, "rank takes")
    vocabulary = captioner.vocabulary
    # Captions of like length together: little is computed for padding.
    order = sorted(range(len(words)), key=lambda number: len(words[number].ids))
    longest = len(words[order[-1]].ids) if words else 1
    rows: list[Tensor] = []
    for start, stop in batches(count if words else 0, min(batch_size, width(vocabulary, longest))):
        ready = captioner.ready(part_of(photos, start, stop))
        with torch.inference_mode(), evaluating(ready.decoder):
            memory = ready.decoder.prepare(ready.features)
            parts: list[Tensor] = []
            first = 0
            while first < len(order):
                # As many as are scored at a time: the longest of them decides, and it is the last.
                last = first + 1
                while last < len(order) and (last + 1 - first) * (stop - start) <= width(
                    vocabulary, len(words[order[last]].ids)
                ):
                    last += 1
                some = [words[number].ids for number in order[first:last]]
                ids = torch.tensor([each + [vocabulary.end_id] * (len(some[-1]) - len(each)) for each in some])
                real = torch.arange(ids.shape[1]) < torch.tensor([len(each) for each in some]).unsqueeze(1)
                ids, real = ids.to(ready.features.pooled.device), real.to(ready.features.pooled.device)
                values = forced_log_probs(ready.decoder, memory, ids.expand(stop - start, -1, -1), vocabulary.start_id)
                parts.append(values.where(real, 0.0).sum(2))
                first = last
        found = torch.cat(parts, dim=1).cpu()
        check_numbers(found, start)
        rows.append(torch.empty_like(found).index_copy_(1, torch.tensor(order), found))
    # Autograd refuses inference tensors; a copy is an ordinary one.
    return torch.cat(rows).clone() if rows else torch.zeros(count, len(words))
