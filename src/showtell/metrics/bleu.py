"""BLEU-1 to BLEU-4 as caption benchmarks count them (Papineni et al. 2002), from counts that can be summed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError
from .ngrams import ORDERS, Captions, Floats, Ints, own_counts
from .overlap import ReferenceIndex

__all__ = ["bleu_counts", "bleu_of_counts"]

_TINY, _SMALL = 1e-15, 1e-9  # the official scorer's guards against dividing by zero


def bleu_counts(candidates: Captions, references: Sequence[Captions] | ReferenceIndex) -> Ints:
    """What BLEU is computed from, one row a photo: int64 (N, 10).

    Example:
        >>> bleu_counts([["a", "dog", "runs"]], [[["a", "dog", "sits"], ["the", "dog"]]]).tolist()
        [[2, 1, 0, 0, 3, 2, 1, 0, 3, 3]]

    Columns: n-grams of the candidate that a reference has too, n = 1..4, each at most as often as the one reference
    with most of it; n-grams of the candidate, n = 1..4; words of the candidate; words of the reference closest to that
    in length, of two as close the shorter. candidates: one a photo, tokenised; references: at least one a photo.
    Raises ArgumentError when their numbers differ and for captions that are no lists of hashable tokens.
    """
    index = references if isinstance(references, ReferenceIndex) else ReferenceIndex(references)
    encoded = index.encode_each(candidates)
    photos = len(index.sizes)
    own = own_counts(encoded)
    most = [np.zeros(len(encoded.ids), np.int64) for _ in ORDERS]
    for overlap in index.overlaps(encoded, np.arange(photos)):
        for best, (places, count) in zip(most, overlap.matches(), strict=True):
            best[places] = np.maximum(best[places], count)
    counts = np.empty((photos, 10), np.int64)
    for n, (mine, best) in enumerate(zip(own, most, strict=True)):
        counts[:, n] = np.add.reduceat(np.minimum(mine, best), encoded.starts)
        counts[:, 4 + n] = np.maximum(encoded.lengths - n, 0)
    counts[:, 8] = encoded.lengths
    counts[:, 9] = _closest(encoded.lengths, index)
    return counts


def _closest(lengths: Ints, index: ReferenceIndex) -> Ints:
    """(N,) the length of the reference closest to each candidate's, of two as close the shorter."""
    words = index.encoded.lengths
    apart = np.abs(words - np.repeat(lengths, index.sizes))
    base = int(words.max()) + 1
    return np.minimum.reduceat(apart * base + words, index.first) % base


def bleu_of_counts(counts: Any) -> Floats:
    """BLEU-1..4 of counts as `bleu_counts` gives them, or of sums of its rows: (..., 10) to float64 (..., 4), 0..1.

    Example:
        >>> counts = bleu_counts([["a", "dog"], ["a", "cat"]], [[["a", "dog"]], [["the", "cat"]]])
        >>> bleu_of_counts(counts.sum(axis=0)).round(3).tolist()  # over both photos, not the mean of each
        [0.75, 0.612, 0.007, 0.001]

    (prod_k (correct_k + 1e-15) / (guess_k + 1e-9)) ** (1 / n), k = 1..n, times exp(1 - 1 / ratio) if ratio < 1, with
    ratio = (candidate length + 1e-15) / (reference length + 1e-9): pycocoevalcap's guards, so a photo without a match
    has a value just above 0. Raises ArgumentError for another shape and for what is no count.
    """
    try:
        values = np.asarray(counts, np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"counts must be numbers, as bleu_counts gives them: {error!s:.100}") from error
    if values.ndim < 1 or values.shape[-1] != 10:
        raise ArgumentError(f"counts must have 10 columns, as bleu_counts gives them, not the shape {values.shape}")
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ArgumentError("counts must be finite and not negative")
    ratio = (values[..., 8:9] + _TINY) / (values[..., 9:10] + _SMALL)
    precisions = np.cumprod((values[..., :4] + _TINY) / (values[..., 4:8] + _SMALL), axis=-1)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return np.asarray(precisions ** (1 / np.array(ORDERS)) * brevity)
