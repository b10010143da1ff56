"""Records from dataset objects, Hugging Face's above all: anything with a length and rows that are dictionaries."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import ArgumentError, DataError, ImageError
from .gather import Found, Row, Rows, assemble, is_file, split_named
from .records import Dataset, photo_bytes
from .tables import caption_values, guess_columns, said

__all__ = ["ObjectPhoto", "from_objects"]

_IDS = ("image_id", "img_id", "cocoid", "filename", "file_name")
_HINT = 'expected rows such as {"image": a PIL image, a path or bytes, "caption": "a dog" or ["a dog", "a wet dog"]}'


@dataclass(frozen=True)
class ObjectPhoto:
    """A photo that stays in its dataset until it is needed."""

    dataset: Any
    row: int
    column: str

    def load(self) -> Any:
        """The photo as `load_image` takes it; raises ImageError when the dataset can't give it."""
        try:
            value = self.dataset[self.row][self.column]
        except (OSError, ValueError, LookupError) as error:
            raise ImageError(f"row {self.row}: the dataset gives no photo: {error}") from error
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if value is None:
            raise ImageError(f"row {self.row} has no photo in column {self.column!r}")
        return value

    def identity(self) -> str:
        """The dataset's own fingerprint where it has one (Hugging Face's do), else a hash of the photo."""
        whole = getattr(self.dataset, "_fingerprint", None)
        if isinstance(whole, str):
            return f"{whole}:{self.row}"
        try:
            value = self.load()
        except ImageError:
            return "missing"
        value = value.numpy(force=True) if isinstance(value, Tensor) else value
        value = Path(value) if isinstance(value, str) else value
        return hashlib.sha256(value.tobytes()).hexdigest() if hasattr(value, "tobytes") else photo_bytes(value)


def from_objects(
    dataset: Any, *, image_column: str | None = None, caption_column: str | None = None, seed: int = 0
) -> Dataset:
    """Read photos and captions from a dataset object, or from a mapping of split names to such objects.

    Example:
        >>> import numpy as np
        >>> photo = np.zeros((8, 8, 3), np.uint8)
        >>> rows = [{"image": photo, "caption": ["a dog", "a wet dog"]}, {"image": photo, "caption": "a cat"}]
        >>> dataset = from_objects(rows)
        >>> [len(record.captions) for record in dataset.records]
        [2, 1]

    A dataset needs `len(dataset)` and `dataset[i]` -> dict: Hugging Face's `datasets` have them, and so has a list.
    Photos are PIL images, arrays, paths, bytes or {"bytes": ..., "path": ...}; they are fetched when they are needed,
    not kept. Rows that name the same path, or the same image_id or filename, are one photo. Splits, the validation
    share and problems are as in `read_dataset`; a problem's line is the number of the row, from 1.

    Raises DataError when the object isn't like that or holds nothing usable; ArgumentError for an unknown column.
    """
    parts: Mapping[Any, Any] = dataset if isinstance(dataset, Mapping) else {None: dataset}
    into = Rows()
    for name, part in parts.items():
        if name is not None and split_named(name) is None:
            raise DataError(f"{name!r} is no split; name them train, val and test, or pass one of the parts alone")
        if not hasattr(part, "__len__") or not hasattr(part, "__getitem__"):
            raise DataError(f"a dataset needs len() and rows by number, unlike {type(part).__name__}; {_HINT}")
        if len(part):
            _read(part, name, into, image_column, caption_column)
    return assemble(into, _found, seed=seed, what="the dataset", hint=_HINT)


def _read(part: Any, name: str | None, into: Rows, image_column: str | None, caption_column: str | None) -> None:
    try:
        first = part[0]
    except (LookupError, TypeError) as error:
        hint = "; for a pandas table pass table.to_dict('records')" if hasattr(part, "to_dict") else ""
        raise DataError(f"{type(part).__name__} gives no row for [0] ({error!r:.100}){hint}; {_HINT}") from error
    if not isinstance(first, Mapping):
        raise DataError(f"rows must be dictionaries, not {type(first).__name__}; {_HINT}")
    columns = list(first)
    if not all(isinstance(column, str) for column in columns):
        raise DataError(f"the columns of a row have names, unlike {columns!r:.100}; {_HINT}")
    chosen = guess_columns(columns, [list(first.values())], image_column, caption_column)
    if isinstance(chosen, str):
        raise ArgumentError(chosen) if image_column or caption_column else DataError(f"{chosen}; {_HINT}")
    label = f"dataset[{name!r}]" if name else "dataset"
    into.notes.append(f"{label}: {said(chosen, columns)}")
    into.has_split |= name is not None or chosen.split is not None
    image, captions = columns[chosen.image], [columns[i] for i in chosen.captions]
    id_column = next((column for column in _IDS if column in columns and column != image), None)
    by_path = isinstance(first[image], str)
    # Without the photo's column the rows of a Hugging Face dataset come without decoding any photo.
    light = (
        part
        if by_path or not hasattr(part, "select_columns")
        else part.select_columns([column for column in columns if column != image])
    )
    for number in range(len(part)):
        row = light[number]
        if not isinstance(row, Mapping):
            into.problem(label, number + 1, f"a row must be a dictionary, not {type(row).__name__}")
            continue
        split = row.get(columns[chosen.split]) if chosen.split is not None else name
        if by_path:
            photo: Any = row.get(image)
        else:
            key = f"{name or 'row'} {number + 1}" if id_column is None else str(row.get(id_column))
            photo = _Named(key, ObjectPhoto(part, number, image))
        texts = caption_values([row.get(column) for column in captions])
        into.rows.append(Row(photo, texts, split, label, number + 1))


@dataclass(frozen=True)
class _Named:
    id: str
    photo: ObjectPhoto

    def __repr__(self) -> str:
        return repr(self.id)


def _found(row: Row) -> Found:
    if isinstance(row.image, _Named):
        return Found(row.image.id, row.image.photo)
    if isinstance(row.image, str) and is_file(Path(row.image)):
        return Found(row.image, Path(row.image))
    return Found(str(row.image), error=f"photo {row.image!r:.120} isn't there")
