"""CIDEr-D and CIDEr (Vedantam et al. 2015): n-grams weighted by how few photos' references have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import number
from ..errors import ArgumentError
from .frequencies import DocumentFrequencies
from .ngrams import ORDERS, Captions, Encoded, Floats, Ints, own_counts
from .overlap import ReferenceIndex

__all__ = ["Cider", "CiderD", "PreparedReferences"]


@dataclass(frozen=True, eq=False)
class PreparedReferences:
    """References of N photos, counted once for many calls by `Cider.prepare`, and the frequencies that it used."""

    frequencies: DocumentFrequencies
    index: ReferenceIndex
    scales: Floats
    """(4, captions): one over the length of each reference's vector, 0 for a vector of zeros."""


class Cider:
    """Plain CIDEr: the mean cosine of n-gram vectors, n = 1..4, no clipping and no length penalty.

    Example:
        >>> frequencies = DocumentFrequencies.of([[["a", "dog"]], [["a", "cat"]]])
        >>> Cider(frequencies)([["a", "dog"], ["a", "dog"]], [[["a", "dog"]], [["a", "cat"]]]).round(6).tolist()
        [5.0, 0.0]

    Called as `CiderD` is.
    """

    def __init__(self, frequencies: DocumentFrequencies) -> None:
        """Weigh by these document frequencies; what they don't have counts as seen in one photo."""
        if not isinstance(frequencies, DocumentFrequencies):
            raise ArgumentError(
                f"frequencies must be DocumentFrequencies, not {type(frequencies).__name__}; "
                "count them with DocumentFrequencies.of(references)"
            )
        self.frequencies = frequencies

    def prepare(self, references: Sequence[Captions]) -> PreparedReferences:
        """Count the references' n-grams once, for many calls.

        references: N photos with at least one tokenised caption each. Raises ArgumentError for anything else.
        """
        index = ReferenceIndex(references, [self.frequencies.tokens])
        return PreparedReferences(self.frequencies, index, _Vectors(index.encoded, self.frequencies).scales)

    def __call__(self, candidates: Captions, references: Sequence[Captions] | PreparedReferences) -> Floats:
        """Score R = N * K candidates for N photos: float64 (R,), in 0..10.

        candidates: tokenised; candidate r belongs to photo r // K. references: N photos' tokenised captions, or what
        `prepare` made of them. End tokens, where wanted, are the caller's, in candidates, references and frequencies.
        Raises ArgumentError when R is no multiple of N, and for captions that are no lists of tokens.
        """
        if not isinstance(references, PreparedReferences):
            references = self.prepare(references)
        elif references.frequencies is not self.frequencies:
            raise ArgumentError("the references were prepared with other document frequencies; prepare them again")
        index = references.index
        encoded = index.encode(candidates)
        rows, photos = len(encoded.lengths), len(index.sizes)
        if not rows or rows % photos:
            raise ArgumentError(
                f"{rows} candidates for {photos} photos; give the same number for each photo, at least 1"
            )
        owners = np.arange(rows) // (rows // photos)
        vectors = _Vectors(encoded, self.frequencies)
        total = np.zeros(rows)
        for overlap in index.overlaps(encoded, owners):
            captions = index.first[owners] + np.minimum(overlap.number, index.sizes[owners] - 1)
            similarity = np.zeros(rows)
            for n, (places, count) in enumerate(overlap.matches()):
                shared = self._shared(vectors.counts[n][places], count) * count * vectors.squares[n][places]
                products = np.bincount(encoded.rows[places], shared, minlength=rows)
                similarity += products * (vectors.scales[n] * references.scales[n][captions])
            total += similarity * self._penalty(encoded.lengths, index.encoded.lengths[captions])
        return total * (10 / len(ORDERS)) / index.sizes[owners]

    def _shared(self, own: Ints, count: Any) -> Ints:
        """How often an n-gram counts in a candidate that has it `own` times; 0 for `own` 0: it was counted before."""
        return own

    def _penalty(self, lengths: Ints, references: Ints) -> Floats | float:
        """What a reference counts for, given its number of words and the candidate's."""
        return 1.0


class CiderD(Cider):
    """CIDEr-D, which tables call CIDEr: counts clipped, a penalty for another length; the self-critical reward.

    Example:
        >>> references = [[["a", "dog"], ["a", "wet", "dog"]], [["a", "cat"]]]
        >>> cider = CiderD(DocumentFrequencies.of(references))
        >>> prepared = cider.prepare(references)  # once a data set
        >>> [round(value, 3) for value in cider([["a", "dog"], ["a", "cat"]], prepared).tolist()]
        [3.372, 5.0]

    For n = 1..4 an n-gram w of a caption weighs g(w) = count(w) * (ln N - ln max(1, df(w))). The similarity to a
    reference is the mean over n of sum_w min(g_c(w), g_r(w)) g_r(w) / (|g_c| |g_r|), times
    exp(-(l_c - l_r)^2 / (2 sigma^2)), where l counts bigrams; the score is 10 times the mean over references, 0..10.
    """

    def __init__(self, frequencies: DocumentFrequencies, *, sigma: float = 6.0) -> None:
        """Weigh by these document frequencies; sigma, in words: how much another length is forgiven."""
        super().__init__(frequencies)
        self.sigma = number("sigma", sigma, 1e-3, 1e6)

    def _shared(self, own: Ints, count: Any) -> Ints:
        return np.asarray(np.minimum(own, count))

    def _penalty(self, lengths: Ints, references: Ints) -> Floats | float:
        apart = np.maximum(lengths - 1, 0) - np.maximum(references - 1, 0)
        return np.asarray(np.exp(-np.square(apart) / (2 * self.sigma**2)))


class _Vectors:
    """The n-gram vectors of captions: what depends on a caption and the frequencies alone.

    counts: for n = 1..4, as `own_counts` has them. squares: for n = 1..4, (P,), squared weights of what begins at each
    place. scales: (4, R), one over the length of each vector, 0 for a vector of zeros.
    """

    def __init__(self, encoded: Encoded, frequencies: DocumentFrequencies) -> None:
        self.counts = own_counts(encoded)
        self.squares = list(frequencies.squared_weights(encoded.ids))
        self.scales = np.zeros((len(ORDERS), len(encoded.lengths)))
        for scale, counts, squares in zip(self.scales, self.counts, self.squares, strict=True):
            if len(encoded.starts):
                lengths = np.sqrt(np.add.reduceat(counts * counts * squares, encoded.starts))
                np.divide(1, lengths, out=scale, where=lengths > 0)
