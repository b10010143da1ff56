"""Scores with everything they were computed from, on disk as one JSON file."""

from __future__ import annotations

import codecs
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from .. import journal
from ..errors import ArgumentError, FormatError, NotFoundError
from ..metrics import METRICS, TOKENIZER, Scores, score_captions, scored_words
from ..metrics.diversity import Health, caption_health
from ..metrics.frequencies import DocumentFrequencies
from ..strict_json import parse_object
from ..version import __version__
from .signature import Signature

__all__ = ["FORMAT", "MEANS", "Evaluation", "ScoredPhoto", "check_ids", "score_predictions"]

FORMAT = "showtell.evaluation"
_VERSION = 1
_LIMIT = 1_000_000_000  # bytes; 40,000 photos with 5 references are about 30 MB
_MOST = {"CIDEr-D": 10.0, "CIDEr": 10.0} | dict.fromkeys((*METRICS[:5], "METEOR", "SPICE"), 1.0)
MEANS = ("ROUGE-L", "CIDEr-D", "CIDEr", "SPICE")  # their corpus value is the mean of the photos' values
_NEAR = 1e-6  # by which a score may be off where another machine added it up


@dataclass(frozen=True)
class ScoredPhoto:
    """One photo's caption and what people wrote.

    Example:
        >>> ScoredPhoto("dog.jpg", "a dog runs", ("a dog", "a wet dog")).id
        'dog.jpg'

    id: its name in the data. references: at least one. image: the file, where it is known. log_prob: the model's own,
    natural logarithm. Raises ArgumentError for anything else.
    """

    id: str
    caption: str
    references: tuple[str, ...]
    image: str | None = None
    log_prob: float | None = None

    def __post_init__(self) -> None:
        """Refuse what can't be scored or saved."""
        for name, value in (("id", self.id), ("caption", self.caption), ("image", self.image)):
            if not isinstance(value, str) and not (name == "image" and value is None):
                raise ArgumentError(f"the {name} of a photo must be text, not {value!r:.100}")
        given = self.references
        if not isinstance(given, list | tuple) or not given or not all(isinstance(text, str) for text in given):
            raise ArgumentError(f"photo {self.id!r:.100} needs a list of at least one reference, not {given!r:.100}")
        object.__setattr__(self, "references", tuple(given))
        if self.log_prob is not None and not _is_number(self.log_prob):
            raise ArgumentError(f"the log_prob of photo {self.id!r:.100} must be a number, not {self.log_prob!r:.50}")


@dataclass(frozen=True)
class Evaluation:
    """Scores, what they were computed from, and their signature.

    Example:
        >>> photos = [ScoredPhoto("1", "a dog runs", ("a dog runs",)), ScoredPhoto("2", "a cat", ("a black cat",))]
        >>> result = score_predictions("mine", photos)
        >>> round(result.scores.corpus["BLEU-1"], 3), result.health.unique_ratio
        (0.819, 1.0)

    name: what was scored, for tables. scores: for the corpus and photo by photo, in the order of `photos`. health:
    what scores don't show: repetition, endings, variety.
    """

    name: str
    photos: tuple[ScoredPhoto, ...]
    scores: Scores
    health: Health
    signature: Signature

    @property
    def captions(self) -> tuple[str, ...]:
        """The captions, in the order of `photos`."""
        return tuple(photo.caption for photo in self.photos)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as one JSON file, atomically; `Evaluation.load` and `evaluate --compare` read it."""
        each = self.scores.each
        value = {
            "format": FORMAT,
            "format_version": _VERSION,
            "name": self.name,
            "signature": self.signature.to_json(),
            "scores": dict(self.scores.corpus),
            "health": asdict(self.health),
            "photos": [
                {**asdict(photo), "scores": {metric: each[metric][i] for metric in each}}
                for i, photo in enumerate(self.photos)
            ],
        }
        target = Path(path)
        with journal.said_plainly(target):
            # ASCII, because a file's name may hold what is no character.
            journal.write_file(target, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Evaluation:
        """Read what `save` wrote; raises NotFoundError, and FormatError for anything else.

        The scores are checked: those of this version of showtell are computed again from the captions, in others each
        must be possible and the mean of the photos' where it is one.
        """
        source = Path(path)
        if not source.is_file():
            raise NotFoundError(f"there is no file {source}")
        try:
            data = source.read_bytes()
        except OSError as error:
            raise NotFoundError(f"{source} can't be read: {error.strerror}") from error
        # Some editors begin a file with a mark that JSON doesn't allow.
        value = parse_object(data.removeprefix(codecs.BOM_UTF8), str(source), limit=_LIMIT)
        if value.get("format") != FORMAT:
            raise FormatError(f"{source} is no saved evaluation; `showtell evaluate --output F` writes one")
        if value.get("format_version") != _VERSION:
            raise FormatError(
                f"{source} has format version {value.get('format_version')!r:.50}; this showtell reads {_VERSION}; "
                "upgrade showtell, or evaluate again"
            )
        try:
            return _from_json(value)
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{source} is a damaged evaluation ({error!r:.200}); evaluate again") from error


def score_predictions(
    name: str,
    photos: Sequence[ScoredPhoto],
    *,
    search: str = "given",
    metrics: Sequence[str] = METRICS,
    frequencies: DocumentFrequencies | None = None,
    training: Sequence[str] | None = None,
) -> Evaluation:
    """Score captions, whoever made them.

    Example:
        >>> result = score_predictions("other tool", [ScoredPhoto("1", "a dog", ("a dog", "a wet dog"))])
        >>> print(result.signature)  # doctest: +ELLIPSIS
        metrics:BLEU-1..4+ROUGE-L+CIDEr-D+CIDEr|tokenizer:ptb-1|references:2|images:1|search:given|...

    Args:
        name: what is scored, for tables.
        photos: at least one, each with another id and at least one reference.
        search: how the captions were found, for the signature.
        metrics: as for `score_captions`.
        frequencies: document frequencies for CIDEr; default: those of the references, as tables have it.
        training: captions the model was trained on, for `health.novelty`.

    Raises:
        ArgumentError: no photos, an id twice, an unknown metric.
        MissingPackageError: METEOR or SPICE without what they need.
    """
    if not isinstance(name, str):
        raise ArgumentError(f"the name of what is scored must be text, not {name!r:.100}")
    if not isinstance(photos, list | tuple) or not all(isinstance(photo, ScoredPhoto) for photo in photos):
        raise ArgumentError("score_predictions takes a list of ScoredPhoto, one a photo")
    check_ids([photo.id for photo in photos])
    captions = [photo.caption for photo in photos]
    scores = score_captions(captions, [p.references for p in photos], metrics=metrics, frequencies=frequencies)
    pairs = [(photo.id, photo.references) for photo in photos]
    weights = "own" if frequencies is None or not {"CIDEr-D", "CIDEr"} & set(metrics) else _weights(pairs, frequencies)
    return Evaluation(
        name,
        tuple(photos),
        scores,
        caption_health(captions, training=training),
        Signature.of(pairs, metrics=metrics, search=search, frequencies=weights),
    )


def _weights(pairs: Sequence[tuple[str, Sequence[str]]], frequencies: DocumentFrequencies) -> str:
    """What a signature calls document frequencies; those of the references themselves, counted before, are "own"."""
    own = [[scored_words(text) for text in references] for _, references in pairs]
    given = frequencies.digest
    return "own" if given == DocumentFrequencies.of(own).digest else given


def check_ids(ids: Sequence[str]) -> None:
    """Raise ArgumentError for an id that is given twice."""
    twice = [identity for identity, times in Counter(ids).items() if times > 1]
    if twice:
        raise ArgumentError(f"the id {twice[0]!r:.200} is given twice; give one caption a photo")


def _from_json(value: dict[str, Any]) -> Evaluation:
    signature = Signature.from_json(value["signature"])
    metrics = signature.metrics
    corpus = _scores(value["scores"], metrics)
    photos, each = [], []
    for row in value["photos"]:
        each.append(_scores(row["scores"], metrics))
        photos.append(ScoredPhoto(**{key: row[key] for key in row if key != "scores"}))
    pairs = [(photo.id, photo.references) for photo in photos]
    check_ids([photo.id for photo in photos])
    # Scores of another version of showtell are read too; what they are of must be what is here.
    again = Signature.of(pairs, metrics=metrics, search=signature.search)
    if (again.images, again.references, again.data) != (signature.images, signature.references, signature.data):
        raise ValueError("the photos aren't those of the signature")
    health = value["health"]
    for field in fields(Health):
        if not _fits(health[field.name], str(field.type)):
            raise ValueError(f"health: {field.name} can't be {health[field.name]!r:.50}")
    by_photo = {metric: tuple(scores[metric] for scores in each) for metric in metrics}
    if not isinstance(value["name"], str):
        raise ValueError("the name is no text")
    found = Evaluation(value["name"], tuple(photos), Scores(corpus, by_photo), Health(**health), signature)
    _check_scores(found)
    return found


def _check_scores(found: Evaluation) -> None:
    """Raise ValueError for scores that aren't those of the captions: a file may have been edited."""
    corpus, each = found.scores.corpus, found.scores.each
    wrong = "were changed: {} isn't that of the captions".format
    for metric in corpus:
        values = (corpus[metric], *each[metric])
        if not all(-_NEAR <= value <= _MOST.get(metric, math.inf) + _NEAR for value in values):
            raise ValueError(f"the scores {wrong(metric)}")
        if metric in MEANS and abs(math.fsum(each[metric]) / len(each[metric]) - corpus[metric]) > _NEAR:
            raise ValueError(f"the scores {wrong(metric)}")
    signature = found.signature
    if (signature.version, signature.tokenizer) != (__version__, TOKENIZER):
        return
    health = caption_health(found.captions)
    if replace(found.health, novelty=None) != health:
        raise ValueError(f"the facts {wrong('their health')}")
    # Others' frequencies aren't at hand, and Java's programs are too slow.
    known = [m for m in corpus if m in METRICS and (signature.frequencies == "own" or "CIDEr" not in m)]
    if not known:
        return
    again = score_captions(found.captions, [photo.references for photo in found.photos], metrics=known)
    for metric in known:
        pairs = zip((corpus[metric], *each[metric]), (again.corpus[metric], *again.each[metric]), strict=True)
        if any(abs(a - b) > _NEAR for a, b in pairs):
            raise ValueError(f"the scores {wrong(metric)}")


def _scores(value: Any, metrics: Sequence[str]) -> dict[str, float]:
    if set(value) != set(metrics) or not all(_is_number(value[metric]) for metric in metrics):
        raise ValueError(f"{value!r:.100} aren't the scores of {', '.join(metrics)}")
    return {metric: float(value[metric]) for metric in metrics}


def _fits(value: Any, annotation: str) -> bool:
    """Whether a value is of a type that is written like "float | None"."""
    kinds = annotation.split(" | ")
    if value is None or isinstance(value, str):
        return ("None" if value is None else "str") in kinds
    return _is_number(value) and ("float" in kinds or (type(value) is int and "int" in kinds))


def _is_number(value: Any) -> bool:
    """A finite one that a float can hold; True and False are none."""
    return isinstance(value, int | float) and type(value) is not bool and abs(value) <= sys.float_info.max
