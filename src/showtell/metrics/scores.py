"""Captions and references as text in, the scores of the benchmark tables out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from ..errors import ArgumentError
from .bleu import bleu_counts, bleu_of_counts
from .cider import Cider, CiderD
from .frequencies import DocumentFrequencies
from .ngrams import Floats, flatten
from .overlap import ReferenceIndex
from .ptb import ptb_tokenize
from .rouge import rouge_l

__all__ = ["METRICS", "Scores", "check_frequencies", "check_metrics", "score_captions"]

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D", "CIDEr")
"""What `score_captions` computes unless told otherwise."""

_BLEU = METRICS[:4]
_WEIGHTED = {"CIDEr-D": CiderD, "CIDEr": Cider}
_JAVA = ("METEOR", "SPICE")

_Words = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Scores:
    """Every metric over all photos, and photo by photo.

    Example:
        >>> scores = Scores({"BLEU-4": 0.25}, {"BLEU-4": (0.5, 0.0)})
        >>> scores.corpus["BLEU-4"], scores.each["BLEU-4"][1]
        (0.25, 0.0)

    corpus: metric to value; BLEU and ROUGE-L are in 0..1, CIDEr-D and CIDEr in 0..10 (tables print 100 times the
    value). each: metric to one value a photo, in the order given. The mean over photos is the corpus value of
    ROUGE-L, CIDEr-D and CIDEr, but not of BLEU.
    """

    corpus: Mapping[str, float]
    each: Mapping[str, tuple[float, ...]]


def score_captions(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    metrics: Sequence[str] = METRICS,
    frequencies: DocumentFrequencies | None = None,
) -> Scores:
    """Score one caption a photo against what people wrote, as pycocoevalcap does.

    Example:
        >>> references = [["A dog runs on the grass.", "A running dog."], ["Two cats sleep.", "Cats on a sofa."]]
        >>> scores = score_captions(["a dog runs", "two cats on a sofa"], references)
        >>> round(scores.corpus["CIDEr-D"], 3), [round(value, 3) for value in scores.each["ROUGE-L"]]
        (3.906, [0.772, 0.907])

    Args:
        candidates: one caption a photo, as text; `ptb_tokenize` splits it, alone.
        references: at least one caption a photo, as text.
        metrics: of METRICS, and "METEOR" and "SPICE", which need the extra `showtell[coco]`. Only these are computed.
        frequencies: document frequencies of `ptb_tokenize` words for CIDEr-D and CIDEr; default: those of the
            references. With the references of one photo alone CIDEr is 0.

    Raises:
        ArgumentError: an unknown metric, no photos, another number of captions than photos, a photo without
            references, a caption that is no text (the message names the place), frequencies of anything but words.
        MissingPackageError: METEOR or SPICE without what they need.

    "CIDEr-D" is what COCO tables call CIDEr; "CIDEr" is the original, without clipping and length penalty.
    """
    wanted = check_metrics(metrics)
    texts = _check_texts(candidates, references)
    check_frequencies(frequencies)
    corpus: dict[str, float] = {}
    each: dict[str, tuple[float, ...]] = {}
    if set(wanted) & set(METRICS):
        split = list(map(ptb_tokenize, texts))
        rows = iter(split[len(candidates) :])
        grouped = [list(islice(rows, len(captions))) for captions in references]
        _score(split[: len(candidates)], grouped, wanted, frequencies, corpus, each)
    java = tuple(metric for metric in wanted if metric in _JAVA)
    if java:
        from .coco import coco_scores  # it needs Scores

        found = coco_scores(candidates, references, java)
        corpus.update(found.corpus)
        each.update(found.each)
    return Scores({metric: corpus[metric] for metric in wanted}, {metric: each[metric] for metric in wanted})


def _score(
    candidates: _Words,
    references: Sequence[_Words],
    wanted: Sequence[str],
    frequencies: DocumentFrequencies | None,
    corpus: dict[str, float],
    each: dict[str, tuple[float, ...]],
) -> None:
    """Put the wanted metrics of tokenised captions into `corpus` and `each`."""

    def put(metric: str, values: Floats, value: float | None = None) -> None:
        corpus[metric] = float(values.mean()) if value is None else value
        each[metric] = tuple(values.tolist())

    # A few tokens hold a space that doesn't break, "22 3/4". BLEU and CIDEr take such a token for two words, ROUGE-L
    # for one: that is how the official scorers split.
    tokens = set(chain(*candidates, *chain.from_iterable(references)))
    whole = candidates, references
    if any(token.split() != [token] for token in tokens):
        candidates = list(map(_apart, candidates))
        references = [list(map(_apart, captions)) for captions in references]
    scorers = {metric: scorer for metric, scorer in _WEIGHTED.items() if metric in wanted}
    if scorers:
        frequencies = DocumentFrequencies.of(references) if frequencies is None else frequencies
        prepared = Cider(frequencies).prepare(references)
        index = prepared.index
        for metric, scorer in scorers.items():
            put(metric, scorer(frequencies)(candidates, prepared))
    else:
        index = ReferenceIndex(references)
    if set(wanted) & set(_BLEU):
        counts = bleu_counts(candidates, index)
        values, totals = bleu_of_counts(counts), bleu_of_counts(counts.sum(axis=0))
        for n, metric in enumerate(_BLEU):
            put(metric, values[:, n], float(totals[n]))
    if "ROUGE-L" in wanted:
        put("ROUGE-L", rouge_l(candidates, index) if candidates is whole[0] else rouge_l(*whole))


def _apart(tokens: Sequence[str]) -> list[str]:
    return " ".join(tokens).split()


def check_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """The metrics, each once, in the order given; raises ArgumentError for what is none."""
    if isinstance(metrics, str) or not isinstance(metrics, Sequence) or not metrics:
        raise ArgumentError(f"metrics must be a list of metrics such as {METRICS[0]!r}, not {metrics!r:.60}")
    for metric in metrics:
        if metric not in (*METRICS, *_JAVA):
            raise ArgumentError(f"metrics can be {', '.join((*METRICS, *_JAVA))}; {metric!r:.60} is none")
    return tuple(dict.fromkeys(metrics))


def check_frequencies(frequencies: DocumentFrequencies | None) -> None:
    """Raise ArgumentError for what isn't None or document frequencies of words: those of ids would weigh nothing."""
    if frequencies is None:
        return
    if not isinstance(frequencies, DocumentFrequencies):
        raise ArgumentError(
            f"frequencies must be DocumentFrequencies, not {type(frequencies).__name__}; "
            "count them with DocumentFrequencies.of(references)"
        )
    strange = next((token for token in frequencies.vocabulary if not isinstance(token, str)), None)
    if strange is not None:
        raise ArgumentError(
            "frequencies must be those of words, as ptb_tokenize gives them, to weigh text by; these count "
            f"{strange!r:.60}"
        )


def _check_texts(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[str]:
    """All captions in one list, the candidates first."""
    if isinstance(candidates, str) or not isinstance(candidates, Sequence):
        raise ArgumentError(f"candidates must be a list with one caption a photo, not {candidates!r:.60}")
    captions, sizes = flatten(references)
    if len(candidates) != len(sizes):
        raise ArgumentError(f"{len(candidates)} candidates for {len(sizes)} photos; give one for each")
    texts = []
    for i, text in enumerate(chain(candidates, captions)):
        if not isinstance(text, str):
            place = f"candidate {i}"
            if i >= len(candidates):
                photo = int(np.searchsorted(np.cumsum(sizes), i - len(candidates), side="right"))
                place = f"reference {i - len(candidates) - int(sizes[:photo].sum())} of photo {photo}"
            raise ArgumentError(f"{place} must be text, not {text!r:.60}; captions are not split into words")
        texts.append(text)
    return texts
