"""CSV, TSV and JSONL: rows with columns of any name; which one holds what is guessed, and said."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..images import IMAGE_SUFFIXES
from .gather import Row, Rows
from .text import read_lines, read_text

__all__ = ["Columns", "caption_values", "guess_columns", "looks_like_photo", "read_csv", "read_table"]

_IMAGE = [
    "image",
    "file_name",
    "filename",
    "image_path",
    "photo",
    "path",
    "filepath",
    "file",
    "image_name",
    "image_file",
    "img",
    "img_path",
    "jpg",
    "png",
    "picture",
]
_CAPTION = ["caption", "captions", "text", "texts", "sentence", "sentences", "description", "comment", "raw"]
_SPLIT = ["split", "subset", "partition"]
_NUMBERED = re.compile(r"(caption|text|sentence|description|comment)s?_?\d+")
_ABSENT: Any = object()


class Columns(NamedTuple):
    """Numbers of the columns that hold the photo, the captions and the split."""

    image: int
    captions: tuple[int, ...]
    split: int | None


def read_table(
    path: Path,
    label: str,
    into: Rows,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    split: str | None = None,
) -> None:
    """Read a CSV, TSV or JSONL file into rows; `split` is that of rows whose file has no split column."""
    columns, lines = (_jsonl if path.suffix.lower() in (".jsonl", ".ndjson") else read_csv)(path, label, into)
    if not columns:
        return
    chosen = guess_columns(columns, [values for _, values in lines[:50]], image_column, caption_column)
    if isinstance(chosen, str):
        into.problem(label, 1, chosen)
        return
    into.notes.append(f"{label}: {said(chosen, columns)}")
    into.has_split |= chosen.split is not None or split is not None
    for line, values in lines:
        image = values[chosen.image]
        captions = [values[i] for i in chosen.captions]
        absent = [columns[i] for i in (chosen.image, *chosen.captions) if values[i] is _ABSENT]
        if image is _ABSENT or len(absent) == len(captions):
            into.problem(label, line, f"the row has no {absent[0]!r:.80}")
            continue
        given = split if chosen.split is None else values[chosen.split]
        given = "" if given is _ABSENT else given
        into.rows.append(Row(image, caption_values(captions), given, label, line))


def caption_values(values: Sequence[Any]) -> list[Any]:
    """The captions in a row's caption columns: one text, a list of texts, or several columns, some left blank."""
    if len(values) > 1:
        filled = [v for v in values if v is not _ABSENT and v is not None and (not isinstance(v, str) or v.strip())]
        values = filled or [""]
    return [caption for value in values for caption in (value if isinstance(value, list) else [value])]


def guess_columns(
    columns: Sequence[str], sample: Iterable[Sequence[Any]], image_column: str | None, caption_column: str | None
) -> Columns | str:
    """Choose columns by the names asked for, else by usual names and by what looks like the name of a photo.

    The result is a message where nothing fits.
    """
    names = [re.sub(r"[^0-9a-z]+", "_", column.strip().lower()).strip("_") for column in columns]
    listing = f"the columns are {', '.join(map(repr, columns))}"
    photos = {i for values in sample for i, value in enumerate(values) if looks_like_photo(value)}
    for asked in (image_column, caption_column):
        if asked is not None and asked not in columns:
            return f"there is no column {asked!r}; {listing}"
    split = next((i for name in _SPLIT for i, n in enumerate(names) if n == name), None)

    if image_column is not None:
        image = columns.index(image_column)
    else:
        usual = [i for name in _IMAGE for i, n in enumerate(names) if n == name]
        first = [i for i in usual if i in photos] or (sorted(photos) if len(photos) == 1 else []) or usual
        if not first:
            return f"no column looks like the names of photos; {listing}; say which it is with image_column"
        image = first[0]
    rest = [i for i in range(len(columns)) if i not in (image, split)]

    if caption_column is not None:
        captions = [i for i, column in enumerate(columns) if column == caption_column]
        if image in captions:
            return f"column {caption_column!r} can't hold both the photos and the captions; {listing}"
    else:
        name = next((name for name in _CAPTION if any(names[i] == name for i in rest)), None)
        captions = [i for i in rest if names[i] == name] or [i for i in rest if _NUMBERED.fullmatch(names[i])]
        captions = captions or (rest if len(rest) == 1 else [])
        if not captions:
            return f"no column looks like captions; {listing}; say which it is with caption_column"
    return Columns(image, tuple(captions), split)


def said(chosen: Columns, columns: Sequence[str]) -> str:
    """The choice of columns as a sentence."""
    captions = ", ".join(repr(columns[i]) for i in chosen.captions)
    split = "" if chosen.split is None else f", splits from {columns[chosen.split]!r}"
    return f"photos from column {columns[chosen.image]!r}, captions from {captions}{split}"


def looks_like_photo(value: Any) -> bool:
    """Whether a value is a text that ends like the name of a photo."""
    return isinstance(value, str) and PurePosixPath(value.strip()).suffix.lower() in IMAGE_SUFFIXES


_Lines = list[tuple[int, list[Any]]]


def read_csv(path: Path, label: str, into: Rows) -> tuple[list[str], _Lines]:
    """The names of the columns, and each line's number and values; the delimiter is found out."""
    text = read_text(path)
    first = text[: len(text) if (end := re.search(r"[\r\n]", text)) is None else end.start()]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",\t;|", key=first.count)
    columns: list[str] = []
    lines: _Lines = []
    for line, values in _records(text, delimiter, label, into):
        if not any(value.strip() for value in values):
            continue
        if not columns:
            columns = [value.strip() for value in values]
            if any(map(looks_like_photo, values)):
                columns = [str(i + 1) for i in range(len(values))]
                into.notes.append(f"{label} has no line of column names: its columns are called {', '.join(columns)}")
            else:
                continue
        if len(values) != len(columns):
            message = f"{len(values)} values for {len(columns)} columns"
            hint = f"; a value with {delimiter!r} in it needs double quotes" if len(values) > len(columns) else ""
            into.problem(label, line, message + hint)
        else:
            lines.append((line, list(values)))
    return columns, lines


def _records(text: str, delimiter: str, label: str, into: Rows) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV text, each with the line it starts on; quoted line ends are part of a value."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    line = 1
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            last = "" if reader.line_num <= line else f"; lines {line} to {reader.line_num} were not read"
            into.problem(label, line, f"bad quoting ({error}){last}")
        else:
            yield line, values
        line = reader.line_num + 1


def _jsonl(path: Path, label: str, into: Rows) -> tuple[list[str], _Lines]:
    entries: list[tuple[int, dict[str, Any]]] = []
    for line, text in enumerate(read_lines(path), start=1):
        if not text.strip():
            continue
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError) as error:
            into.problem(label, line, f"not JSON: {error}")
            continue
        if isinstance(entry, dict):
            entries.append((line, entry))
        else:
            into.problem(label, line, f"expected an object {{...}}, not {text:.40}")
    columns = list(dict.fromkeys(key for _, entry in entries for key in entry))
    return columns, [(line, [entry.get(column, _ABSENT) for column in columns]) for line, entry in entries]
