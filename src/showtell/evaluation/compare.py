"""How far a score can be trusted, and whether one result is really better than another: the bootstrap over photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from ..checks import whole
from ..errors import ArgumentError
from ..metrics import METRICS, TOKENIZER, Scores, bleu_counts, bleu_of_counts, scored_words
from .result import MEANS, Evaluation, ScoredPhoto, score_predictions

__all__ = ["Comparison", "Confidence", "Difference", "Interval", "compare", "confidence"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_BLEU = METRICS[:4]
_FEW = 8_000_000  # weights held at a time


@dataclass(frozen=True)
class Interval:
    """Both ends of a 95 % confidence interval, in the metric's own unit.

    Example:
        >>> Interval(0.1, 0.3).low
        0.1
    """

    low: float
    high: float


@dataclass(frozen=True)
class Confidence:
    """The intervals of one result's scores.

    Example:
        >>> result = score_predictions("mine", [ScoredPhoto("1", "a dog", ("a dog",))])
        >>> confidence(result).intervals["BLEU-1"] is None  # one photo says nothing about others
        True

    intervals: metric to interval; None where there is none: for METEOR, whose corpus value isn't made of photos'
    values, and for fewer than two photos. samples, seed: of the bootstrap.
    """

    intervals: Mapping[str, Interval | None]
    samples: int
    seed: int


@dataclass(frozen=True)
class Difference:
    """One metric of two results.

    Example:
        >>> Difference("ROUGE-L", 0.40, 0.45, 0.05, Interval(0.02, 0.08), 0.99).significant
        True

    a, b: the corpus values. difference: b - a. interval: of the difference, None as for `Confidence`. better: the
    share of resamples in which b is ahead, a tie counting half; None without an interval.
    """

    metric: str
    a: float
    b: float
    difference: float
    interval: Interval | None
    better: float | None

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0: chance alone rarely (1 in 20) makes such a difference."""
        return self.interval is not None and (self.interval.low > 0 or self.interval.high < 0)


@dataclass(frozen=True)
class Comparison:
    """Two results over the same photos.

    Example:
        >>> result = score_predictions("mine", [ScoredPhoto("1", "a dog", ("a dog",))])
        >>> compare(result, result).differences[0].difference
        0.0

    a, b: the results, their photos in the same order. differences: one a metric. unlike: how the signatures differ,
    and what was done about it; empty unless the comparison was forced. samples, seed: of the bootstrap.
    """

    a: Evaluation
    b: Evaluation
    differences: tuple[Difference, ...]
    unlike: tuple[str, ...]
    samples: int
    seed: int


def confidence(evaluation: Evaluation, *, samples: int = 1000, seed: int = 0) -> Confidence:
    """How much each score would move with other photos of the same kind.

    Example:
        >>> photos = [ScoredPhoto(str(i), "a dog " * (i + 1), ("a dog runs",)) for i in range(9)]
        >>> interval = confidence(score_predictions("mine", photos)).intervals["BLEU-1"]
        >>> interval.low < interval.high
        True

    Photos are drawn with replacement, as many as there are, `samples` times; the interval is the middle 95 % of the
    scores of these sets. BLEU is computed from each set's summed counts; ROUGE-L, CIDEr-D, CIDEr and SPICE are means
    of the photos' values, the document frequencies staying those of all photos (Efron and Tibshirani 1993). With
    fewer than about 30 photos such an interval is too narrow.

    Args:
        evaluation: of any size; with fewer than two photos there are no intervals.
        samples: 100..100,000.
        seed: the same one gives the same intervals.

    Raises:
        ArgumentError: an option out of range.
    """
    _check_evaluation(evaluation)
    _check_options(samples, seed)
    values = _resampled([evaluation], samples, seed)
    intervals = {
        metric: None if metric not in values else _interval(values[metric][0]) for metric in _metrics(evaluation)
    }
    return Confidence(intervals, samples, seed)


def compare(a: Evaluation, b: Evaluation, *, force: bool = False, samples: int = 1000, seed: int = 0) -> Comparison:
    """Two results over the same photos: by how much they differ, and whether that could be chance.

    Example:
        >>> words = ["a dog", "a cat on a mat", "two men", "the red ball rolls"]
        >>> right = [ScoredPhoto(str(i), text, (text,)) for i, text in enumerate(words)]
        >>> wrong = [ScoredPhoto(str(i), "a horse", (text,)) for i, text in enumerate(words)]
        >>> found = compare(score_predictions("wrong", wrong), score_predictions("right", right))
        >>> {d.metric: d.significant for d in found.differences}["ROUGE-L"]
        True

    The paired bootstrap (Koehn 2004): the same photos are drawn for both results, so that hard photos are hard for
    both. Everything else is as for `confidence`.

    Args:
        a: the one that is compared with.
        b: the one of which the differences are positive where it is better.
        force: compare results whose signatures differ: the photos that both have, by their ids, and the metrics that
            both have. Both are scored again unless only the search differs. Where the references of a photo differ,
            those of `a` count for both.
        samples: 100..100,000.
        seed: the same one gives the same intervals.

    Raises:
        ArgumentError: the signatures differ and `force` isn't given, or no photo or no metric is in both.
        MissingPackageError: METEOR or SPICE have to be scored again and can't be.
    """
    for evaluation in (a, b):
        _check_evaluation(evaluation)
    _check_options(samples, seed)
    unlike = a.signature.differences(b.signature)
    if unlike and not force:
        raise ArgumentError(
            f"{a.name!r:.100} and {b.name!r:.100} were not scored alike, so their scores can't be compared: "
            f"{'; '.join(unlike)}. Evaluate both in the same way, or add --force (force=True) to compare the photos "
            "that both have"
        )
    a, b, notes = _paired(a, b, again=any(part.split(":")[0] not in ("search", "metrics") for part in unlike))
    values = _resampled([a, b], samples, seed)
    differences = []
    for metric in _metrics(a):
        first, second = a.scores.corpus[metric], b.scores.corpus[metric]
        interval, better = None, None
        if metric in values:
            moved = values[metric][1] - values[metric][0]
            interval = _interval(moved)
            better = float(np.mean((np.sign(moved) + 1) / 2))
        differences.append(Difference(metric, first, second, second - first, interval, better))
    return Comparison(a, b, tuple(differences), (*unlike, *notes), samples, seed)


# --- pairing --------------------------------------------------------------------------------------------------------


def _paired(a: Evaluation, b: Evaluation, *, again: bool) -> tuple[Evaluation, Evaluation, tuple[str, ...]]:
    """Both over the photos and metrics that both have, in the order of `a`, and what had to be done."""
    places = _places(b)
    common = [photo for photo in a.photos if photo.id in places]
    metrics = tuple(metric for metric in _metrics(a) if metric in b.scores.corpus)
    for what, found in (("photo (by id)", common), ("metric", metrics)):
        if not found:
            raise ArgumentError(f"{a.name!r:.100} and {b.name!r:.100} have no {what} in common; nothing to compare")
    notes = []
    if len(common) < max(len(a.photos), len(b.photos)):
        notes.append(f"photos: {len(common)} are in both ({len(a.photos)} and {len(b.photos)})")
    changed = sum(photo.references != b.photos[places[photo.id]].references for photo in common)
    if changed:
        notes.append(f"references: those of {changed} photos differ; both were scored against those of {a.name}")
    if again:
        notes.append("scored again, both in the same way")
        theirs = [replace(b.photos[places[photo.id]], references=photo.references) for photo in common]
        return _scored_again(a, common, metrics), _scored_again(b, theirs, metrics), tuple(notes)
    return _reordered(a, common, metrics), _reordered(b, common, metrics), tuple(notes)


def _places(evaluation: Evaluation) -> dict[str, int]:
    places = {photo.id: i for i, photo in enumerate(evaluation.photos)}
    if len(places) != len(evaluation.photos):
        raise ArgumentError(f"{evaluation.name!r:.100} has an id twice; give one caption a photo")
    return places


def _scored_again(evaluation: Evaluation, photos: Sequence[ScoredPhoto], metrics: Sequence[str]) -> Evaluation:
    found = score_predictions(evaluation.name, photos, search=evaluation.signature.search, metrics=metrics)
    # The health of the same captions is known, novelty included.
    return replace(found, health=evaluation.health) if len(photos) == len(evaluation.photos) else found


def _reordered(evaluation: Evaluation, photos: Sequence[ScoredPhoto], metrics: Sequence[str]) -> Evaluation:
    places = _places(evaluation)
    order = [places[photo.id] for photo in photos]
    each = {metric: tuple(evaluation.scores.each[metric][i] for i in order) for metric in metrics}
    scores = Scores({metric: evaluation.scores.corpus[metric] for metric in metrics}, each)
    return replace(evaluation, photos=tuple(evaluation.photos[i] for i in order), scores=scores)


# --- resampling -----------------------------------------------------------------------------------------------------


def _resampled(evaluations: Sequence[Evaluation], samples: int, seed: int) -> dict[str, Array]:
    """Metric to the scores of the resampled sets, one row an evaluation (E, samples); only what can be resampled.

    The evaluations have the same photos in the same order.
    """
    count = len(evaluations[0].photos)
    if count < 2:
        return {}
    metrics = _metrics(evaluations[0])
    means = [metric for metric in metrics if metric in MEANS]
    # Counts of another tokeniser aren't to be had here.
    bleus = [m for m in metrics if m in _BLEU and all(e.signature.tokenizer == TOKENIZER for e in evaluations)]
    columns = []
    for evaluation in evaluations:
        of_means = np.array([evaluation.scores.each[m] for m in means], dtype=np.float64).reshape(-1, count).T
        columns.append(np.concatenate([of_means, _counts(evaluation)], axis=1) if bleus else of_means)
    sums = _sums(columns, samples, seed)
    values: dict[str, Array] = {metric: sums[:, :, i] / count for i, metric in enumerate(means)}
    if bleus:
        four = bleu_of_counts(np.rint(sums[:, :, len(means) :]).astype(np.int64))
        values |= {metric: four[:, :, _BLEU.index(metric)] for metric in bleus}
    return values


def _sums(columns: Sequence[Array], samples: int, seed: int) -> Array:
    """Sums over resampled rows: E arrays (N, C) -> (E, samples, C)."""
    rows, width = columns[0].shape
    generator = np.random.default_rng(seed)
    sums = np.empty((len(columns), samples, width))
    step = max(1, _FEW // rows)
    for start in range(0, samples, step):
        weights = np.empty((min(step, samples - start), rows))
        for weight in weights:  # how often each row is drawn: a multinomial draw
            weight[:] = np.bincount(generator.integers(rows, size=rows), minlength=rows)
        for mine, values in zip(sums, columns, strict=True):  # apart, so that equal results have equal sums
            mine[start : start + len(weights)] = weights @ values
    return sums


def _counts(evaluation: Evaluation) -> Array:
    """BLEU's counts (N, 10)."""
    candidates = [scored_words(photo.caption) for photo in evaluation.photos]
    return bleu_counts(candidates, [[scored_words(text) for text in photo.references] for photo in evaluation.photos])


def _interval(values: Array) -> Interval:
    low, high = np.percentile(values, (2.5, 97.5))
    return Interval(float(low), float(high))


# --- checks ---------------------------------------------------------------------------------------------------------


def _metrics(evaluation: Evaluation) -> tuple[str, ...]:
    return tuple(evaluation.scores.corpus)


def _check_evaluation(value: object) -> None:
    if not isinstance(value, Evaluation):
        raise ArgumentError(
            f"expected an Evaluation, not {type(value).__name__}; `evaluate`, `score_predictions` and "
            "`Evaluation.load` give one"
        )


def _check_options(samples: object, seed: object) -> None:
    whole("samples", samples, 100, 100_000)
    whole("seed", seed, 0, 2**63 - 1)
