"""BLEU-1 to BLEU-4 as caption benchmarks count them (Papineni et al. 2002)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import ArgumentError

__all__ = ["BleuScores", "bleu"]

Four = tuple[float, float, float, float]

_TINY, _SMALL = 1e-15, 1e-9  # the official scorer's guards against dividing by zero


@dataclass(frozen=True)
class BleuScores:
    """BLEU-1..4: `corpus` over all photos together, `each` photo by photo (its mean is another number)."""

    corpus: Four
    each: tuple[Four, ...]


class _Counts(NamedTuple):
    """Clipped matches and n-grams for n = 1..4, candidate length and closest reference length."""

    correct: tuple[int, ...]
    guess: tuple[int, ...]
    length: int
    reference: int


def bleu(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> BleuScores:
    """BLEU of one candidate a photo against its references.

    Example:
        >>> scores = bleu([["a", "dog", "runs"]], [[["a", "dog", "runs"], ["the", "dog"]]])
        >>> round(scores.corpus[1], 6)
        1.0

    Both are tokens, one candidate and at least one reference for each photo; empty ones are allowed. N-gram matches
    are clipped at the most any one reference has, the brevity penalty takes the reference length closest to the
    candidate's (of two as close, the shorter), and the corpus value comes from summed counts:
    (prod_k (correct_k + 1e-15) / (guess_k + 1e-9)) ** (1 / n), k = 1..n, times exp(1 - 1 / ratio) if ratio < 1, with
    ratio = (candidate length + 1e-15) / (reference length + 1e-9). Values are in 0..1 and agree with pycocoevalcap,
    given the same tokens. Raises ArgumentError when the lists don't match or a caption is a string instead of tokens.
    """
    if len(candidates) != len(references) or not candidates:
        raise ArgumentError(
            f"BLEU needs one candidate for each photo's references and at least one photo; "
            f"there are {len(candidates)} candidates and references of {len(references)} photos"
        )
    counts = [_count(i, *pair) for i, pair in enumerate(zip(candidates, references, strict=True))]
    total = _Counts(
        correct=tuple(map(sum, zip(*(c.correct for c in counts), strict=True))),
        guess=tuple(map(sum, zip(*(c.guess for c in counts), strict=True))),
        length=sum(c.length for c in counts),
        reference=sum(c.reference for c in counts),
    )
    return BleuScores(corpus=_score(total), each=tuple(map(_score, counts)))


def _count(photo: int, candidate: Sequence[str], references: Sequence[Sequence[str]]) -> _Counts:
    if isinstance(references, str) or not references:
        raise ArgumentError(f"photo {photo} has no list of references; each photo needs at least one")
    for caption in (candidate, *references):
        if isinstance(caption, str):
            raise ArgumentError(f"photo {photo}: BLEU takes tokens, not a string; split {caption!r:.60} first")
    most: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        most |= Counter(_ngrams(reference))  # | keeps the larger count
    correct = [0, 0, 0, 0]
    for ngram, times in Counter(_ngrams(candidate)).items():
        correct[len(ngram) - 1] += min(times, most[ngram])
    length = len(candidate)
    closest = min((len(r) for r in references), key=lambda r: (abs(r - length), r))
    return _Counts(tuple(correct), tuple(max(0, length - n) for n in range(4)), length, closest)


def _ngrams(tokens: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """All n-grams for n = 1..4."""
    for n in range(1, 5):
        for i in range(len(tokens) - n + 1):
            yield tuple(tokens[i : i + n])


def _score(counts: _Counts) -> Four:
    ratio = (counts.length + _TINY) / (counts.reference + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, values = 1.0, []
    for n in range(4):
        product *= (counts.correct[n] + _TINY) / (counts.guess[n] + _SMALL)
        values.append(product ** (1 / (n + 1)) * brevity)
    return values[0], values[1], values[2], values[3]
