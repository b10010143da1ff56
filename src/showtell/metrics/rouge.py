"""ROUGE-L as caption benchmarks count it (Lin 2004): the longest common subsequence with each reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .ngrams import Captions, Encoded, Floats, Ints, row_starts
from .overlap import WINDOW, Overlap, ReferenceIndex, popcount

__all__ = ["rouge_l"]

_BETA = 1.2  # how much recall weighs against precision


def rouge_l(candidates: Captions, references: Sequence[Captions] | ReferenceIndex) -> Floats:
    """ROUGE-L of one candidate a photo: float64 (N,), 0..1; the corpus value is the mean.

    Example:
        >>> rouge_l([["a", "dog", "runs"]], [[["a", "dog"], ["a", "wet", "dog", "runs"]]]).round(4).tolist()
        [1.0]

    With the longest common subsequence L, precision is the largest L / words of the candidate over the references,
    recall the largest L / words of the reference, maybe of another reference; the score is
    (1 + b^2) P R / (R + b^2 P) with b = 1.2, 0 when P or R is. A caption without a token counts as one word that only
    another such caption has, so two empty ones score 1.

    candidates: tokenised; references: at least one a photo. Raises ArgumentError when their numbers differ and for
    captions that are no lists of hashable tokens.
    """
    index = references if isinstance(references, ReferenceIndex) else ReferenceIndex(references)
    encoded = index.encode_each(candidates)
    photos = len(index.sizes)
    precision, recall = np.zeros(photos), np.zeros(photos)
    for overlap in index.overlaps(encoded, np.arange(photos)):
        rows = overlap.rows
        captions = index.first[rows] + overlap.number
        common = _common(encoded, index.encoded, overlap, captions)
        mine, theirs = encoded.lengths[rows], index.encoded.lengths[captions]
        common[(mine == 0) & (theirs == 0)] = 1
        precision[rows] = np.maximum(precision[rows], common / np.maximum(mine, 1))
        recall[rows] = np.maximum(recall[rows], common / np.maximum(theirs, 1))
    below = recall + _BETA**2 * precision
    return np.divide((1 + _BETA**2) * precision * recall, below, out=np.zeros(photos), where=below > 0)


def _common(candidates: Encoded, references: Encoded, overlap: Overlap, captions: Ints) -> Ints:
    """The length of the longest common subsequence of each candidate and its reference, whose number is given.

    Bit-parallel (Hyyro 2004): after each word of the candidate, a 0 at place i of `state` says that the subsequence
    grew when the reference's word i was let in. All pairs take a step together, long candidates more of them.
    """
    lengths = candidates.lengths[overlap.rows]
    order = np.argsort(-lengths, kind="stable")
    starts = row_starts(lengths)[order]
    active = np.searchsorted(-lengths[order], -np.arange(int(lengths.max())))
    state = np.full(len(lengths), 2**64 - 1, np.uint64)
    for step, some in enumerate(active):
        met = overlap.first.bits[starts[:some] + step]
        now = state[:some]
        state[:some] = (now + (now & met)) | (now & ~met)
    words = references.lengths[captions]
    short = np.minimum(words, WINDOW).astype(np.uint64)
    common = np.empty(len(lengths), np.int64)
    common[order] = popcount(~state & ((np.uint64(1) << short[order]) - np.uint64(1)))
    for i in np.flatnonzero(words > WINDOW):
        common[i] = _common_of_two(_words(candidates, overlap.rows[i]), _words(references, captions[i]))
    return common


def _words(encoded: Encoded, row: Any) -> list[int]:
    start = encoded.starts[row]
    words: list[int] = encoded.ids[start : start + encoded.lengths[row]].tolist()
    return words


def _common_of_two(candidate: list[int], reference: list[int]) -> int:
    """The same for one pair of any length, in one large number."""
    places: dict[int, int] = {}
    for i, word in enumerate(reference):
        places[word] = places.get(word, 0) | 1 << i
    every = (1 << len(reference)) - 1
    state = every
    for word in candidate:
        met = state & places.get(word, 0)
        state = ((state + met) | (state - met)) & every
    return len(reference) - state.bit_count()
