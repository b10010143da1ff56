"""Which caption belongs to which photo, where two tools name the photos differently."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..data.gather import is_file
from ..data.records import listed
from ..data.tables import looks_like_photo
from ..errors import DataError, NotFoundError
from .predictions import Prediction, Predictions
from .references import ReferencePhoto, References
from .result import ScoredPhoto

__all__ = ["Matched", "match_predictions"]

_Find = Callable[[str], int | None]


@dataclass(frozen=True)
class Matched:
    """Photos with a caption and references, ready for `score_predictions`.

    photos: in the order of the references, with the references' ids, so that all predictions for the same references
    have the same signature. notes: what was matched how and what was left out, one sentence each.
    """

    photos: tuple[ScoredPhoto, ...]
    notes: tuple[str, ...]


def match_predictions(
    predictions: Predictions,
    references: References,
    *,
    partial: bool = False,
    images: str | os.PathLike[str] | None = None,
) -> Matched:
    """Join captions and references, photo by photo.

    Example:
        >>> made = Predictions("p.jsonl", (Prediction("photos/dog.jpg", "a dog runs", "p.jsonl:1"),))
        >>> written = References("r.json", (ReferencePhoto("dog.jpg", ("a dog", "a wet dog"), {"id": "42"}),))
        >>> matched = match_predictions(made, written)
        >>> matched.photos[0].id, matched.photos[0].caption
        ('dog.jpg', 'a dog runs')
        >>> matched.notes
        ('1 photo of p.jsonl is matched with r.json by the end of its path',)

    One way of matching is used for the whole file, the one that fits the most photos; of several as good, the first
    of these: the same id; another name that the references have for the photo, such as the number of a COCO image; a
    prediction's path that ends with the reference's id; the same file name, where no other photo has it; the same but
    for the ending ("dog" and "dog.jpg"), likewise.

    Args:
        predictions: what `read_predictions` gave.
        references: what `read_references` gave.
        partial: score the photos that have both, and say how many haven't, instead of raising.
        images: the folder of the photos, for `ScoredPhoto.image`; only files inside it are looked for.

    Raises:
        DataError: photos without a prediction, predictions without a photo, two predictions for one photo, or nothing
            that fits at all.
        NotFoundError: the folder of photos doesn't exist.
    """
    if images is not None and not os.path.isdir(images):  # noqa: PTH112
        raise NotFoundError(f"the folder of photos, {Path(images)}, doesn't exist")
    how, places = _best_way(predictions, references)
    taken: dict[int, Prediction] = {}
    twice, extra = [], []
    for row, place in zip(predictions.rows, places, strict=True):
        if place is None:
            extra.append(f"{row.id!r:.120} ({row.source})")
        elif place in taken:
            same = references.photos[place].id
            twice.append(f"{row.id!r:.120} ({row.source}) and {taken[place].id!r:.120} are both photo {same!r:.120}")
        else:
            taken[place] = row
    if not taken:
        raise DataError(_nothing_fits(predictions, references))
    if twice:
        raise DataError(f"{predictions.file} has photos twice, by {how}{listed(twice)}\ngive one caption a photo")
    both: list[tuple[ReferencePhoto, Prediction]] = []
    left_out = _LeftOut(str(references), extra)
    for place, photo in enumerate(references.photos):
        prediction = taken.get(place)
        if prediction is None:
            left_out.without_prediction.append(f"{photo.id!r:.120}")
        elif prediction.caption is None:
            left_out.without_caption.append(f"{prediction.id!r:.120} ({prediction.source}): {prediction.error!s:.120}")
        elif not photo.captions:
            left_out.without_reference.append(f"{photo.id!r:.120}")
        else:
            both.append((photo, prediction))
    counted = "1 photo" if len(taken) == 1 else f"{len(taken):,} photos"
    matched = f"{'is' if len(taken) == 1 else 'are'} matched with {references} by {how}"
    notes = [f"{counted} of {predictions.file} {matched}"]
    lines = left_out.lines()
    if lines and (not partial or not both):
        way_out = "" if not both else f", or score the {len(both):,} that have both with --partial (partial=True)"
        raise DataError(
            f"{predictions.file} doesn't fit {references} (matched by {how}):\n  "
            + "\n  ".join(lines)
            + f"\ngive one caption for each photo{way_out}"
        )
    if lines:
        notes.append(f"{len(both):,} of {len(references.photos):,} photos are scored; left out: {'; '.join(lines)}")
    empty = sum(not caption for photo, _ in both for caption in photo.captions)
    if empty:
        notes.append(f"{empty:,} reference{'s' * (empty != 1)} of {references.file} without text count as they are")
    photos = tuple(
        ScoredPhoto(photo.id, made.caption or "", photo.captions, _file(images, photo, made), made.log_prob)
        for photo, made in both
    )
    if images is not None:
        found = sum(photo.image is not None for photo in photos)
        notes.append(f"{found:,} of {len(photos):,} photos are in {Path(images)}")
    return Matched(photos, tuple(notes))


@dataclass
class _LeftOut:
    references: str
    extra: list[str]

    def __post_init__(self) -> None:
        self.without_prediction: list[str] = []
        self.without_caption: list[str] = []
        self.without_reference: list[str] = []

    def lines(self) -> list[str]:
        """One line for each kind, with the number and the first few."""
        kinds = [
            ("photo", "without a prediction", self.without_prediction),
            ("prediction", "without a caption", self.without_caption),
            ("prediction", f"for no photo of {self.references}", self.extra),
            ("photo", "without a reference", self.without_reference),
        ]
        return [
            f"{len(names):,} {noun}{'s' * (len(names) != 1)} {what}: {', '.join(names[:3])}{', ...' * (len(names) > 3)}"
            for noun, what, names in kinds
            if names
        ]


def _best_way(predictions: Predictions, references: References) -> tuple[str, list[int | None]]:
    """How most photos are matched, and for each prediction the position of its photo."""
    best: tuple[str, list[int | None]] = ("id", [])
    most = -1
    for how, find in _ways(predictions, references.photos):
        places = [find(row.id) for row in predictions.rows]
        count = len({place for place in places if place is not None})
        if count > most:
            best, most = (how, places), count
    return best


def _ways(predictions: Predictions, photos: Sequence[ReferencePhoto]) -> Iterator[tuple[str, _Find]]:
    ids = {photo.id: i for i, photo in enumerate(photos)}
    yield "id", ids.get
    for key in dict.fromkeys(key for photo in photos for key in photo.names):
        named = [(photo.names[key], i) for i, photo in enumerate(photos) if key in photo.names]
        if len(dict(named)) == len(named):
            yield f"the references' {key!r}", dict(named).get

    def end(path: str) -> int | None:
        parts = _parts(path)
        return next((ids[end] for n in range(1, len(parts)) if (end := "/".join(parts[n:])) in ids), None)

    yield "the end of its path" if len(predictions.rows) == 1 else "the end of their paths", end
    for how, name in (("file name", _name), ("file name without its ending", _stem)):
        names = {name(photo.id): i for i, photo in enumerate(photos)}
        made = Counter(name(row.id) for row in predictions.rows)
        if len(names) == len(photos) and max(made.values(), default=0) <= 1:
            yield how, _through(name, names)


def _through(name: Callable[[str], str], places: Mapping[str, int]) -> _Find:
    return lambda path: places.get(name(path))


def _name(path: str) -> str:
    return _parts(path)[-1]


def _stem(path: str) -> str:
    name = _name(path)
    return posixpath.splitext(name)[0] if looks_like_photo(name) else name


def _parts(path: str) -> tuple[str, ...]:
    """The folders and the name of a path; all of an id that is none."""
    return PurePosixPath(path.replace("\\", "/")).parts or (path,)


def _nothing_fits(predictions: Predictions, references: References) -> str:
    made = ", ".join(f"{row.id!r:.80}" for row in predictions.rows[:3])
    written = ", ".join(f"{photo.id!r:.80}" for photo in references.photos[:3])
    names = references.photos[0].names
    also = f" (also called {', '.join(f'{key} {name!r:.40}' for key, name in names.items())})" if names else ""
    return (
        f"no photo of {predictions.file} is in {references}: the predictions are for {made}, the references for "
        f"{written}{also}; name the photos alike, by id, path or unique file name, or give the split that was captioned"
    )


def _file(images: str | os.PathLike[str] | None, photo: ReferencePhoto, made: Prediction) -> str | None:
    """The photo's file below a folder, by its id, the prediction's path or the file name."""
    if images is None:
        return None
    for name in (photo.id, made.id, _parts(photo.id)[-1]):
        inside = not name.startswith("/") and ".." not in _parts(name)
        if inside and is_file(Path(images, name)):
            return str(Path(images, name))
    return None
