"""Captions that any tool made, read from its file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from .sources import Entry, Source, id_problem, open_source, photo_id

__all__ = ["Prediction", "Predictions", "read_predictions"]

_KEYS = ("caption", "prediction", "text", "generated")


@dataclass(frozen=True)
class Prediction:
    """One photo's caption as a file gives it.

    Example:
        >>> Prediction("dog.jpg", "a dog runs", "p.jsonl:1").caption
        'a dog runs'

    id: the photo. caption: None where the tool gave none. source: file and line. log_prob: natural logarithm, where
    the file has it. error: why there is no caption.
    """

    id: str
    caption: str | None
    source: str
    log_prob: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Predictions:
    """All captions of a file, each photo once, in the order of the file; `read_predictions` makes it."""

    file: str
    rows: tuple[Prediction, ...]


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
    """Read captions from the file of any tool, one a photo.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "coco_results.json")
        ...     _ = file.write_text('[{"image_id": 42, "caption": "a dog runs"}]')
        ...     found = read_predictions(file)
        >>> found.rows[0].id, found.rows[0].caption
        ('42', 'a dog runs')

    Layouts, told apart by what is in the file:

    - JSON lines, one object a photo: the photo under `image`, `image_id`, `file_name`, `filename` or `id` (the first
      that is there), the caption under `caption`, `prediction`, `text` or `generated` (one of them). What
      `showtell caption --output` writes is such a file; its rows with an error, and a caption null, are photos
      without a caption;
    - COCO results: a JSON list of such objects;
    - a JSON object with photo and caption, or a list of one caption, as key and value;
    - CSV or TSV with a line of column names.

    Ids become text. A caption may be empty: that is one, and scores 0.

    Raises:
        NotFoundError: there is no such file.
        DataError: a row that can't be used (the first few and their number are listed with their lines), a photo
            given twice, an empty file, bad JSON.
    """
    source = open_source(path, caption_keys=_KEYS)
    rows: dict[str, Prediction] = {}
    for prediction, entry in _predictions(source):
        if prediction.id in rows:
            first = rows[prediction.id].source
            source.problem(f"photo {prediction.id!r:.120} has a caption already, in {first}", *entry[:2])
        else:
            rows[prediction.id] = prediction
    source.stop_if_bad()
    if not rows:
        raise DataError(f"{source.path} holds no captions")
    return Predictions(str(source.path), tuple(rows.values()))


def _predictions(source: Source) -> Iterator[tuple[Prediction, Entry]]:
    document = source.document
    if document is None:
        used: str | None = None
        for entry in source.rows:
            identity = source.identity(entry)
            key, problem = ("captions", None) if source.table else _caption_key(entry, used)
            used = used or key
            if problem:
                source.problem(problem, *entry[:2])
            elif identity is not None:
                yield from _prediction(source, entry, identity, entry.values.get(key) if key else None)
        return
    known = "it holds references, COCO's or Karpathy's" if {"annotations", "images"} & set(document) else ""
    if document.get("format") == "showtell.evaluation":
        known = "it is a saved evaluation, for --compare"
    if known:
        raise DataError(f"{source.path} holds no predictions: {known}")
    for name, value in document.items():
        entry = Entry(None, f"photo {name!r:.120}", {})
        wrong = id_problem(name)
        if wrong:
            source.problem(wrong, *entry[:2])
        else:
            yield from _prediction(source, entry, photo_id(name), value)


def _caption_key(entry: Entry, used: str | None) -> tuple[str | None, str | None]:
    """The key of a row's caption, None for a row with an error, and what is wrong with the row."""
    keys = [key for key in _KEYS if key in entry.values]
    if not keys:
        if entry.values.get("error"):
            return None, None
        wanted = ", ".join(map(repr, _KEYS))
        return None, f"the caption must be under one of {wanted}; the row holds {', '.join(map(repr, entry.values))}"
    if len(keys) > 1:
        return None, f"has {' and '.join(map(repr, keys))}; keep the one that holds the prediction"
    if used is not None and keys[0] != used:
        return None, f"the caption is under {keys[0]!r}, that of the rows before under {used!r}; write them alike"
    return keys[0], None


def _prediction(source: Source, entry: Entry, identity: str, value: Any) -> Iterator[tuple[Prediction, Entry]]:
    if isinstance(value, list):
        if len(value) != 1:
            source.problem(f"{identity!r:.120} has {len(value)} captions; one a photo is scored", *entry[:2])
            return
        value = value[0]["caption"] if isinstance(value[0], dict) and "caption" in value[0] else value[0]
    text = None
    if value is not None:
        text = source.text(value, f"the caption of {identity!r:.120}", *entry[:2])
        if text is None:
            return
    error = entry.values.get("error")
    where = f"{source.path}:{entry.line}" if entry.line else f"{source.path}, {entry.place}"
    yield (
        Prediction(
            identity,
            text,
            where,
            None if text is None else _log_prob(entry.values.get("log_prob")),
            None if text is not None else str(error) if error else "no caption",
        ),
        entry,
    )


def _log_prob(value: Any) -> float | None:
    """A logarithm that the row of another tool may call so; None for what is none."""
    return float(value) if type(value) in (int, float) and -1e9 < value <= 0 else None
