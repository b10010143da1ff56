"""Files of captions as any tool writes them: opened strictly and taken apart into rows."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..data.gather import Rows, is_file
from ..data.records import Problem, listed
from ..data.tables import caption_values, guess_columns, looks_like_photo, read_csv
from ..data.text import read_text
from ..errors import DataError, FormatError, NotFoundError
from ..strict_json import parse_json, parse_object
from ..vocabulary import MAX_TEXT

__all__ = ["ID_KEYS", "Entry", "Source", "id_problem", "open_source", "photo_id"]

ID_KEYS = ("image", "image_id", "file_name", "filename", "id")
"""The keys that may name a row's photo, the first that is there counting."""
_ROW_SUFFIXES = (".jsonl", ".ndjson")
_LIMIT = 1_000_000_000  # bytes of one file; 40,000 photos with 5 references are about 15 MB
_LINE_LIMIT = 10_000_000  # characters of one line of JSON
_SURROGATES = re.compile("[\ud800-\udfff]")


class Entry(NamedTuple):
    """One row: its line (None in a JSON list), what to call it where it has none, and its values by key."""

    line: int | None
    place: str
    values: dict[str, Any]


@dataclass
class Source:
    """An opened file: rows, or the one JSON object that it is; and everything that is wrong with it so far.

    key: what names the photo in every row. table: rows of CSV or TSV, whose captions are lists under "captions".
    """

    path: Path
    rows: list[Entry] = field(default_factory=list)
    document: dict[str, Any] | None = None
    table: bool = False
    key: str | None = None
    problems: list[Problem] = field(default_factory=list)

    def problem(self, message: str, line: int | None = None, place: str = "") -> None:
        """Note what can't be used."""
        self.problems.append(Problem(str(self.path), line, f"{place}: {message}" if place else message))

    def stop_if_bad(self) -> None:
        """Raise a DataError with the first few problems and their number, if there are any."""
        if self.problems:
            count = len(self.problems)
            raise DataError(
                f"{self.path} has {count:,} row{'s' * (count != 1)} that can't be used{listed(self.problems)}\n"
                "mend the file, or write it anew"
            )

    def identity(self, entry: Entry) -> str | None:
        """The id of a row's photo as text; None, and a problem noted, where it has none that can be used."""
        if self.key is None:
            self.key = next((key for key in ID_KEYS if key in entry.values), None)
        if self.key is None or self.key not in entry.values:
            found = ", ".join(map(repr, entry.values)) or "nothing"
            wanted = f"{self.key!r}, as the rows before it" if self.key else f"one of {', '.join(map(repr, ID_KEYS))}"
            self.problem(f"the photo must be named under {wanted}; the row holds {found:.200}", *entry[:2])
            return None
        wrong = id_problem(entry.values[self.key])
        if wrong:
            self.problem(f"{self.key!r} {wrong}", *entry[:2])
            return None
        return photo_id(entry.values[self.key])

    def text(self, value: Any, what: str, line: int | None = None, place: str = "") -> str | None:
        """A caption, stripped; None, and a problem noted, where it is none."""
        if not isinstance(value, str):
            wrong = f"is {value!r:.80}, not a text"
        elif len(value) > MAX_TEXT:
            wrong = f"has {len(value):,} characters; at most {MAX_TEXT:,} are read"
        elif _SURROGATES.search(value):
            wrong = f"holds what is no character: {value!r:.120}"
        else:
            return value.strip()
        self.problem(f"{what} {wrong}", line, place)
        return None


def id_problem(value: Any) -> str | None:
    """Why a value can't name a photo, as the end of a sentence."""
    if type(value) is not int and not isinstance(value, str):
        return f"must be a text or a whole number, not {value!r:.80}"
    if isinstance(value, str) and not value.strip():
        return "is empty"
    if len(str(value)) > MAX_TEXT:
        return f"has {len(str(value)):,} characters; at most {MAX_TEXT:,} are read"
    return None


def photo_id(value: Any) -> str:
    """An id, a text or a number, as text; the path of a photo is spelled as `read_dataset` spells it.

    Example:
        >>> photo_id(42), photo_id("./dogs\\\\1.jpg"), photo_id("dogs")
        ('42', 'dogs/1.jpg', 'dogs')
    """
    text = str(value).strip()
    if looks_like_photo(text) and "://" not in text:
        return posixpath.normpath(text.replace("\\", "/"))
    return text


def open_source(
    path: str | os.PathLike[str],
    *,
    caption_keys: Sequence[str],
    hook: Callable[[dict[str, Any]], Any] | None = None,
) -> Source:
    """Open a file of captions and find out its layout by its content; only .csv, .tsv and .jsonl are believed.

    caption_keys: what a table may call its captions. hook: replaces each object of a JSON document as it is read.

    Raises:
        NotFoundError: there is no such file.
        DataError: it isn't UTF-8 text, not JSON, too large, or a table whose columns can't be told.
    """
    source = Source(Path(path))
    _check(source.path)
    suffix = source.path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        _table(source, caption_keys)
        return source
    text = read_text(source.path)
    start = text.lstrip()[:1]
    if start == "[":
        _list(source, text)
    elif start == "{" and (suffix in _ROW_SUFFIXES or _is_rows(text, caption_keys)):
        _lines(source, text)
    elif start == "{":
        source.document = _parse(source, text, hook)
    elif not start:
        raise DataError(f"{source.path} is empty")
    elif suffix in (*_ROW_SUFFIXES, ".json"):
        raise DataError(f"{source.path} isn't JSON: it begins {text.lstrip()[:40]!r}")
    else:
        _table(source, caption_keys)
    return source


def _check(path: Path) -> None:
    if not os.path.exists(path):  # noqa: PTH110 - False, not an error, for names that no file can have
        raise NotFoundError(f"there is no file {path} (looked in {Path.cwd()})")
    if not is_file(path):
        raise DataError(f"{path} is no ordinary file; name a JSONL, JSON, CSV or TSV file")
    size = path.stat().st_size
    if size > _LIMIT:
        raise DataError(f"{path} has {size:,} bytes; at most {_LIMIT:,} are read")


def _is_rows(text: str, caption_keys: Sequence[str]) -> bool:
    """Whether a text that begins with "{" has one object a line."""
    first, _, rest = text.lstrip().partition("\n")
    try:
        value = parse_object(first, "", limit=_LINE_LIMIT)
    except FormatError:
        return False
    named = any(key in value for key in ID_KEYS)
    return bool(rest.strip()) or (named and any(key in value for key in (*caption_keys, "error")))


def _parse(source: Source, text: str, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    bad = _SURROGATES.search(text)
    if bad:
        line = text.count("\n", 0, bad.start()) + 1
        raise DataError(f"{source.path}:{line}: holds bytes that aren't UTF-8; save the file as UTF-8")
    try:
        return parse_json(text, str(source.path), limit=_LIMIT, hook=hook)
    except FormatError as error:
        raise DataError(f"{error}; write the file anew") from error


def _list(source: Source, text: str) -> None:
    for number, value in enumerate(_parse(source, text)):
        place = f"entry {number + 1}"
        if isinstance(value, dict):
            source.rows.append(Entry(None, place, value))
        else:
            source.problem(f"expected an object {{...}}, not {value!r:.80}", None, place)


def _lines(source: Source, text: str) -> None:
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        if not line.strip():
            continue
        if _SURROGATES.search(line):
            source.problem("holds bytes that aren't UTF-8; save the file as UTF-8", number)
            continue
        try:
            source.rows.append(Entry(number, "", parse_object(line, "the line", limit=_LINE_LIMIT)))
        except FormatError as error:
            source.problem(str(error), number)


def _table(source: Source, caption_keys: Sequence[str]) -> None:
    path, read = source.path, Rows()
    columns, lines = read_csv(path, str(path), read)
    source.table = True
    source.problems += read.problems
    if read.notes:
        raise DataError(
            f"{path} has no line of column names; write one such as image,caption first "
            "(showtell's own rows are read from JSON lines: `showtell caption --output F`, without --format text)"
        )
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{path} has several columns called {twice[0]!r:.80}; give each a name of its own")
    known = {column.lower(): column for column in reversed(columns)}
    image = next((known[key] for key in ID_KEYS if key in known), None)
    captions = [known[key] for key in caption_keys if key in known]
    if len(captions) > 1:
        raise DataError(f"{path} has {_and(captions)}; keep the column that holds the captions to read")
    chosen = guess_columns(columns, [values for _, values in lines[:50]], image, captions[0] if captions else None)
    if isinstance(chosen, str):
        raise DataError(
            f"{path} isn't understood: the columns are {', '.join(map(repr, columns))}; call the photos' "
            f"{ID_KEYS[0]!r} and the captions' {caption_keys[0]!r}"
        )
    source.key = columns[chosen.image]
    for line, values in lines:
        if any(isinstance(value, str) and _SURROGATES.search(value) for value in values):
            source.problem("holds bytes that aren't UTF-8; save the file as UTF-8", line)
            continue
        row = {source.key: values[chosen.image], "captions": caption_values([values[i] for i in chosen.captions])}
        if chosen.split is not None:
            row["split"] = values[chosen.split]
        source.rows.append(Entry(line, "", row))


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(map(repr, names[:-1])), repr(names[-1])])
