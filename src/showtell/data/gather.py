"""From the rows of any caption file to records: photos found, rows of one photo merged, splits named, val held out."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from ..vocabulary import MAX_TEXT
from .records import Dataset, Problem, Record, listed

__all__ = ["Found", "Photos", "Row", "Rows", "assemble", "folders_below", "is_file", "split_named"]

_SPLIT_NAMES = {
    "train": ("train", "training", "restval"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {name: split for split, names in _SPLIT_NAMES.items() for name in names}
_HELD_OUT = 0.1
_LETTER = re.compile("[A-Za-z0-9]")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Row:
    """One row as a file gives it. image: a name, or an object; captions: whatever the file holds, unchecked."""

    image: Any
    captions: Sequence[Any]
    split: Any
    file: str
    line: int | None = None
    folder: str = ""


@dataclass
class Rows:
    """What the reader of a format hands over. split: whether the file says in which split a photo is."""

    has_split: bool = False
    merge: bool = True
    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, file: str, line: int | None, message: str) -> None:
        """Note a row that can't be used."""
        self.problems.append(Problem(file, line, message))


class Found(NamedTuple):
    """A photo that a row means: its id in the dataset, and the photo, or why there is none."""

    id: str
    image: Any = None
    error: str | None = None


def split_named(name: Any) -> str | None:
    """ "train", "val" or "test" for the usual names of a split; None for any other."""
    return _SPLIT_OF.get(name.strip().lower()) if isinstance(name, str) else None


def is_file(path: Path) -> bool:
    """Whether a regular file is there; a name that no file can have is no file."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


class Photos:
    """Finds the photos that rows name: in the likely folders, and in the other subfolders where none is there.

    folders: where to look first; fallback: where to look when no photo at all lies in those.
    """

    def __init__(self, folders: Iterable[Path], fallback: Iterable[Path] = ()) -> None:
        """Keep the folders that exist."""
        self.folders = [folder for folder in folders if folder.is_dir()]
        self._fallback = [folder for folder in fallback if folder.is_dir()]
        self.looked: list[Path] = self.folders
        self._known: dict[str, Path | None] = {}

    def settle(self, rows: Sequence[Row]) -> bool:
        """Choose the folders, once for the whole dataset; the result is whether the fallback is needed."""
        if not self._fallback or any(self.find(row).image for row in rows):
            return False
        self.folders = self._fallback
        self.looked = [*self.looked, *self._fallback]
        self._known = {}
        return any(self.find(row).image for row in rows)

    def find(self, row: Row) -> Found:
        """The photo of a row; names may be absolute, and backslashes count as slashes."""
        if not isinstance(row.image, str) or not row.image.strip():
            return Found("", error=f"no photo is named: {row.image!r:.80}")
        name = posixpath.normpath(row.image.strip().replace("\\", "/"))
        whole = posixpath.join(row.folder, name) if row.folder else name
        if whole not in self._known:
            names = dict.fromkeys((whole, name))
            # Texts, as making a Path takes longer than asking the disk; COCO has 123,287 photos.
            paths = (os.path.join(folder, each) for each in names for folder in self.folders)  # noqa: PTH118
            self._known[whole] = next((Path(path) for path in paths if os.path.isfile(path)), None)  # noqa: PTH113
        path = self._known[whole]
        if path is not None:
            return Found(whole, path)
        if "://" in row.image:
            return Found(whole, error=f"{row.image!r:.120} is a web address; download the photos and name the files")
        return Found(whole, error=f"photo {whole!r:.120} isn't there")


@dataclass
class _Draft:
    image: Any
    split: str | None
    source: str
    where: str
    captions: list[str] = field(default_factory=list)


def assemble(read: Rows, find: Callable[[Row], Found], *, seed: int, what: str, hint: str) -> Dataset:
    """Turn rows into a Dataset.

    what and hint are for the error when nothing is left: what was read, and what would be accepted.
    Raises DataError when there is no usable photo.
    """
    drafts: dict[str, _Draft] = {}
    for row in read.rows:
        split = split_named(row.split) if read.has_split else None
        captions = _clean(read, row)
        if not captions:
            continue
        if read.has_split and split is None:
            known = ", ".join(_SPLIT_OF)
            read.problem(row.file, row.line, f"{row.split!r:.80} is no split; known are {known}")
            continue
        photo = find(row)
        if photo.error is not None:
            read.problem(row.file, row.line, photo.error)
            continue
        here = row.file if row.line is None else f"{row.file}:{row.line}"
        draft = drafts.setdefault(photo.id, _Draft(photo.image, split, here, f"in {here}"))
        if draft.captions and not read.merge:
            read.problem(row.file, row.line, f"photo {photo.id!r:.120} is listed twice")
        elif draft.split != split:
            message = f"photo {photo.id!r:.120} is in {split!r} here and in {draft.split!r} {draft.where}"
            read.problem(row.file, row.line, message)
        else:
            draft.captions += captions
    if not drafts:
        raise DataError(f"{what} has no photo with a caption that could be used{listed(read.problems)}\n{hint}")
    val = _held_out(drafts, read, seed)
    records = tuple(
        Record(key, d.image, tuple(d.captions), "val" if key in val else d.split or "train", d.source)
        for key, d in drafts.items()
    )
    return Dataset(records, tuple(read.problems), tuple(read.notes))


def _clean(read: Rows, row: Row) -> list[str]:
    """The captions of a row, stripped; the bad ones become problems."""
    good = []
    odd = _SURROGATE.search(f"{row.image}") is not None
    for caption in row.captions:
        if not isinstance(caption, str):
            wrong = f"the caption of {row.image!r:.120} is {caption!r:.80}, not a text"
        elif len(caption) > MAX_TEXT:
            wrong = f"the caption of {row.image!r:.120} has {len(caption):,} characters; at most {MAX_TEXT:,} are read"
        elif not caption.strip():
            wrong = f"the caption of {row.image!r:.120} is empty"
        elif not _LETTER.search(caption) and all(unicodedata.category(each)[0] in "PZC" for each in caption):
            wrong = f"the caption of {row.image!r:.120} has no word: {caption!r:.80}"
        elif odd or _SURROGATE.search(caption):
            wrong = f"holds bytes that aren't UTF-8: {f'{row.image} {caption}'!r:.120}; save the file as UTF-8"
        else:
            good.append(caption.strip())
            continue
        read.problem(row.file, row.line, wrong)
    if not row.captions:
        read.problem(row.file, row.line, f"photo {row.image!r:.120} has no caption")
    return good


def _held_out(drafts: dict[str, _Draft], read: Rows, seed: int) -> frozenset[str]:
    """The ids of the photos to validate on, where the dataset names none.

    Each photo's own hash decides, so that adding rows moves no other photo; the lowest hash goes where nobody is
    below the threshold, the highest stays for training where everybody is.
    """
    found = Counter(draft.split for draft in drafts.values())
    train = [key for key, draft in drafts.items() if draft.split in (None, "train")]
    if found["val"] or len(train) < 2:
        return frozenset()
    hashes = {
        key: int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode("utf-8", "surrogatepass")).digest()[:8], "big")
        for key in train
    }
    order = sorted(train, key=lambda key: (hashes[key], key))
    count = sum(value < _HELD_OUT * 2**64 for value in hashes.values())
    count = min(max(count, 1), len(train) - 1)
    why = "no photo is marked val" if read.has_split else "no splits are given"
    share = f"{count:,} of {len(train):,} photos (about 10 %, chosen by name, seed {seed})"
    read.notes.append(f"{why}: {share} are held out to validate on")
    return frozenset(order[:count])


def folders_below(folder: Path) -> list[Path]:
    """The visible subfolders, sorted."""
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
