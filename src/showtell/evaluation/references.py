"""What people wrote about photos, read from a file of any layout; the photos themselves aren't needed."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data import read_dataset
from ..data.formats import TOKEN_LINE
from ..data.gather import is_file, split_named
from ..data.records import SPLITS, listed
from ..errors import ArgumentError, DataError
from .sources import ID_KEYS, Source, id_problem, open_source, photo_id

__all__ = ["ReferencePhoto", "References", "choose_split", "read_references"]

_KEYS = ("references", "captions", "reference", "caption", "sentences", "text")


@dataclass(frozen=True)
class ReferencePhoto:
    """One photo and what people wrote.

    Example:
        >>> ReferencePhoto("dog.jpg", ("a dog", "a wet dog"), {"id": "42"}).names["id"]
        '42'

    id: the photo, as `read_dataset` would call it where it has a file name. captions: may be empty. names: what else
    it is called, by the key that says so, such as the number of a COCO image.
    """

    id: str
    captions: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class References:
    """The photos of a file, or of one split of it, in its order; `read_references` makes it.

    split: "train", "val" or "test"; None where the file has no splits or all are taken.
    """

    file: str
    photos: tuple[ReferencePhoto, ...]
    split: str | None = None

    def __str__(self) -> str:
        """The file, and the split where there is one."""
        return self.file if self.split is None else f"{self.file} (split {self.split})"


@dataclass
class _Draft:
    captions: list[str]
    names: dict[str, str]
    split: str | None


def read_references(path: str | os.PathLike[str], *, split: str | None = None) -> References:
    """Read what people wrote about photos, without looking for the photos.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "references.jsonl")
        ...     _ = file.write_text('{"image": "dog.jpg", "caption": "a dog"}\\n{"image": "dog.jpg", "caption": "wet"}')
        ...     found = read_references(file)
        >>> found.photos[0].id, found.photos[0].captions
        ('dog.jpg', ('a dog', 'wet'))

    Layouts, told apart by what is in the file:

    - JSON lines, or a JSON list, one object a photo or a caption: the photo as for `read_predictions`, the captions, a
      list or one text, under `references`, `captions`, `reference`, `caption`, `sentences` or `text` (the first that
      is there); the captions of several rows add up, a `split` is optional;
    - COCO's annotations (`annotations`, and mostly `images`): photos go by file name, and by number;
    - Karpathy's JSON (`images` with `sentences`): photos go by file name, and by `cocoid` and `imgid`;
    - a JSON object with photo and captions as key and value;
    - CSV or TSV with a line of column names;
    - Flickr8k's token file, or a folder: read as `read_dataset` reads them, which needs the photos too.

    A reference may be an empty text: it is kept and counts, as in the official tools.

    Args:
        path: the file.
        split: "train", "val" or "test" of a file that knows splits, or "all"; default: test if the file has one, else
            val, else all.

    Raises:
        NotFoundError: there is no such file.
        DataError: a row that can't be used (the first few and their number are listed with their lines), bad JSON, no
            photo.
        ArgumentError: a split that the file doesn't have.
    """
    gathered: dict[str, _Draft] = {}
    if _is_dataset(Path(path)):
        dataset = read_dataset(path)
        if dataset.problems:
            raise DataError(f"{path} has {len(dataset.problems):,} bad rows{listed(dataset.problems)}\nmend them")
        for record in dataset.records:
            gathered[record.id] = _Draft(list(record.captions), {}, record.split)
    else:
        source = open_source(path, caption_keys=_KEYS, hook=_raw_only)
        _gather(source, gathered)
        source.stop_if_bad()
    if not gathered:
        raise DataError(f"{path} holds no references")
    chosen = choose_split([draft.split for draft in gathered.values()], split, str(path))
    photos = tuple(
        ReferencePhoto(identity, tuple(draft.captions), draft.names)
        for identity, draft in gathered.items()
        if chosen in (None, draft.split)
    )
    return References(str(path), photos, chosen)


def choose_split(splits: Iterable[str | None], asked: str | None, what: str) -> str | None:
    """The split to score: the one asked for, else test, else val; None for all photos.

    Example:
        >>> choose_split(["train", "val", "val"], None, "captions.csv")
        'val'

    splits: each photo's, None where the data has none. Raises ArgumentError where nothing is in the split asked for.
    """
    known = {split for split in splits if split is not None}
    if asked not in (None, "all", *SPLITS):
        raise ArgumentError(f"split must be one of {', '.join(SPLITS)} or all, not {asked!r:.100}")
    if asked is None:
        return next((split for split in ("test", "val") if split in known), None)
    if asked == "all":
        return None
    if asked not in known:
        have = f"has the splits {', '.join(s for s in SPLITS if s in known)}" if known else "says nothing of splits"
        raise ArgumentError(f"no photo of {what} is in the split {asked!r}; it {have}")
    return asked


def _is_dataset(path: Path) -> bool:
    """Whether `read_dataset` must read it: a folder, or a token file."""
    if os.path.isdir(path):  # noqa: PTH112 - False, not an error, for names that no file can have
        return True
    if not is_file(path) or path.suffix.lower() in (".csv", ".tsv", ".json", ".jsonl", ".ndjson"):
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return TOKEN_LINE.fullmatch(file.readline(100_000).rstrip("\n")) is not None


def _raw_only(entry: dict[str, Any]) -> Any:
    """A sentence of Karpathy's without its list of tokens, which would cost a gigabyte for COCO."""
    return entry["raw"] if isinstance(entry.get("raw"), str) and "tokens" in entry else entry


def _gather(source: Source, into: dict[str, _Draft]) -> None:
    document = source.document
    if document is None:
        _rows(source, into)
    elif isinstance(document.get("annotations"), list):
        _coco(source, document.get("images"), document["annotations"], into)
    elif isinstance(document.get("images"), list):
        _karpathy(source, document["images"], into)
    elif document.get("format") == "showtell.evaluation":
        raise DataError(f"{source.path} holds no references: it is a saved evaluation, for --compare")
    else:
        for name, value in document.items():
            place = f"photo {name!r:.120}"
            captions = _captions(source, value, place)
            wrong = id_problem(name) or ("is listed twice" if photo_id(name) in into else None)
            if wrong:
                source.problem(wrong, None, place)
            into[photo_id(name)] = _Draft(captions, {}, None)


def _rows(source: Source, into: dict[str, _Draft]) -> None:
    for entry in source.rows:
        identity = source.identity(entry)
        key = next((key for key in _KEYS if key in entry.values), None)
        if key is None:
            wanted = ", ".join(map(repr, _KEYS))
            found = ", ".join(map(repr, entry.values))
            source.problem(f"the captions must be under one of {wanted}; the row holds {found:.200}", *entry[:2])
        if identity is None or key is None:
            continue
        split = _split(source, entry.values, *entry[:2])
        captions = _captions(source, entry.values[key], entry.place, entry.line)
        names = {
            key: photo_id(entry.values[key])
            for key in ID_KEYS
            if key != source.key and key in entry.values and id_problem(entry.values[key]) is None
        }
        draft = into.setdefault(identity, _Draft([], names, split))
        draft.captions += captions
        # An annotation's own number isn't its photo's: only what all rows of a photo agree on is a name of it.
        draft.names = {key: name for key, name in draft.names.items() if names.get(key) == name}
        if draft.split != split:
            source.problem(f"photo {identity!r:.120} is in {split!r} here and in {draft.split!r} before", *entry[:2])


def _split(source: Source, values: Mapping[str, Any], line: int | None, place: str) -> str | None:
    given = values.get("split")
    split = split_named(given)
    if split is None and given not in (None, ""):
        source.problem(f"{given!r:.80} is no split; use {', '.join(SPLITS)}", line, place)
    return split


def _captions(source: Source, value: Any, place: str, line: int | None = None) -> list[str]:
    """The captions of a value: a text, {"caption": text}, or a list of such; what is none becomes a problem."""
    values = value if isinstance(value, list) else [value]
    if not values:
        source.problem("there is no caption in the list", line, place)
    texts = [value["caption"] if isinstance(value, dict) and "caption" in value else value for value in values]
    texts = [text["raw"] if isinstance(text, dict) and "raw" in text else text for text in texts]
    good = [source.text(text, "a caption", line, place) for text in texts]
    return [text for text in good if text is not None]


def _coco(source: Source, images: Any, annotations: list[Any], into: dict[str, _Draft]) -> None:
    drafts: dict[str, _Draft] = {}
    for number, image in enumerate(images if isinstance(images, list) else []):
        place = f"images[{number}]"
        key = image.get("id") if isinstance(image, dict) else None
        if id_problem(key) is not None:
            source.problem(f"has no id: {image!r:.120}", None, place)
            continue
        name = image.get("file_name")
        identity = photo_id(key if id_problem(name) is not None else name)
        if str(key) in drafts or identity in into:
            source.problem(f"photo {identity!r:.120} is listed twice", None, place)
        drafts[str(key)] = into[identity] = _Draft([], {"id": str(key)}, None)
    for number, annotation in enumerate(annotations):
        place = f"annotations[{number}]"
        key = annotation.get("image_id") if isinstance(annotation, dict) else None
        if id_problem(key) is not None:
            source.problem(f"has no image_id: {annotation!r:.120}", None, place)
            continue
        if str(key) not in drafts and isinstance(images, list):
            source.problem(f"belongs to no image of this file: {annotation!r:.120}", None, place)
            continue
        if str(key) not in drafts:
            drafts[str(key)] = into[photo_id(key)] = _Draft([], {}, None)
        drafts[str(key)].captions += _captions(source, annotation.get("caption"), place)


def _karpathy(source: Source, images: list[Any], into: dict[str, _Draft]) -> None:
    for number, image in enumerate(images):
        place = f"images[{number}]"
        name = image.get("filename") if isinstance(image, dict) else None
        if id_problem(name) is not None or not isinstance(image.get("sentences"), list):
            source.problem(f"has no filename or no sentences: {image!r:.120}", None, place)
            continue
        folder = image.get("filepath")
        identity = posixpath.join(folder if isinstance(folder, str) else "", photo_id(name))
        if identity in into:
            source.problem(f"photo {identity!r:.120} is listed twice", None, place)
        names = {key: photo_id(image[key]) for key in ("cocoid", "imgid") if id_problem(image.get(key)) is None}
        captions = _captions(source, image["sentences"], place)
        into[identity] = _Draft(captions, names, _split(source, image, None, place))
