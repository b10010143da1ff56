"""What a dataset is, whatever file it came from: photos with their captions, and what was wrong with it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..checks import choice
from ..errors import DataError, ShowtellError
from ..image_spec import ImageSpec
from ..images import load_image
from ..progress import bar
from ..vocabulary import Vocabulary

__all__ = ["SPLITS", "Dataset", "LazyPhoto", "Problem", "Record", "listed", "photo_bytes", "stop_or_say", "wordless"]

SPLITS = ("train", "val", "test")
"""The splits a record can be in."""


@runtime_checkable
class LazyPhoto(Protocol):
    """A photo that is fetched when it is needed, so that a dataset of objects isn't held in memory."""

    def load(self) -> Any:
        """The photo as `load_image` takes it; raises ImageError when it can't be had."""
        ...

    def identity(self) -> str:
        """A short text that changes when the photo does."""
        ...


@dataclass(frozen=True)
class Record:
    """One photo and everything people said about it.

    Example:
        >>> record = Record("dog.jpg", Path("dog.jpg"), ("a dog",), "train", "captions.csv:2")
        >>> str(record.photo())
        'dog.jpg'

    id: the photo's name as the dataset writes it, unique in the dataset. image: a path, or an object's photo.
    captions: at least one, in the order of the file. split: "train", "val" or "test". source: where it was read,
    "captions.csv:12".
    """

    id: str
    image: Any
    captions: tuple[str, ...]
    split: str
    source: str

    def photo(self) -> Any:
        """The photo as `load_image` takes it: the image itself, or what a lazy one fetches."""
        lazy = not isinstance(self.image, Path) and isinstance(self.image, LazyPhoto)  # the second takes long
        return self.image.load() if lazy else self.image

    def problem(self, message: str) -> Problem:
        """What is wrong with this record, with the file and line it was read from."""
        file, colon, line = self.source.rpartition(":")
        known = bool(colon) and line.isdecimal()
        return Problem(file, int(line), message) if known else Problem(self.source, None, message)


@dataclass(frozen=True)
class Problem:
    """One row that can't be used, and why.

    Example:
        >>> print(Problem("captions.csv", 12, "the caption of 'dog.jpg' is empty"))
        captions.csv:12: the caption of 'dog.jpg' is empty
    """

    file: str
    line: int | None
    message: str

    def __str__(self) -> str:
        """File, line and message."""
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


@dataclass(frozen=True)
class Dataset:
    """Photos with captions, and what was wrong with the rest.

    Example:
        >>> dog = Record("dog.jpg", Path("dog.jpg"), ("a dog", "a wet dog"), "train", "captions.csv:2")
        >>> cat = Record("cat.jpg", Path("cat.jpg"), ("a cat",), "val", "captions.csv:4")
        >>> dataset = Dataset((dog, cat))
        >>> print(dataset.summary())
        2 photos, 3 captions (1 to 2 a photo)
          train: 1 photo, 2 captions
          val: 1 photo, 1 caption
        >>> [record.id for record in dataset.split("val")]
        ['cat.jpg']

    records: the good ones, in the order of the file. problems: every row that isn't among them, in no case dropped
    in silence. notes: what was guessed or decided while reading, one sentence each.
    """

    records: tuple[Record, ...]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    def split(self, name: str) -> tuple[Record, ...]:
        """The records of "train", "val" or "test", in order."""
        choice("split", name, SPLITS)
        return tuple(record for record in self.records if record.split == name)

    def fingerprint(self) -> str:
        """64 hexadecimal digits that change when a photo, a caption, a split or their order does.

        A photo counts by its id and its size in bytes, not by where it lies: a moved folder keeps its fingerprint.
        """
        digest = hashlib.sha256()
        for record in self.records:
            fields = (record.id, record.split, photo_bytes(record.image), *record.captions)
            for text in (str(len(record.captions)), *fields):
                data = text.encode("utf-8", "surrogatepass")
                digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    def summary(self) -> str:
        """How many photos and captions there are, in all and in each split."""
        counts = sorted({len(record.captions) for record in self.records})
        each = "" if not counts else f" ({counts[0]} a photo)"
        if len(counts) > 1:
            each = f" ({counts[0]} to {counts[-1]} a photo)"
        lines = [_amount(self.records) + each]
        found = Counter(record.split for record in self.records)
        lines += [f"  {name}: {_amount(self.split(name))}" for name in SPLITS if found[name]]
        return "\n".join(lines)

    def check_images(
        self, *, show: bool | None = None, verify: Callable[[Any], Any] | None = None
    ) -> tuple[Problem, ...]:
        """Decode every photo and list those that can't be read.

        show: a progress bar; default: where standard error is a terminal. verify: called with each photo instead of
        decoding it; it raises a ShowtellError for a bad one.
        """
        tiny = ImageSpec(32, 32)

        def look(record: Record) -> str | None:
            try:
                photo = record.photo()
                load_image(photo, tiny) if verify is None else verify(photo)
            except ShowtellError as error:
                return str(error)
            return None

        problems = []
        with (
            bar(len(self.records), "opening photos", unit="photo", show=show) as progress,
            ThreadPoolExecutor(max_workers=4, thread_name_prefix="showtell-photos") as pool,
        ):
            for start in range(0, len(self.records), 64):
                chunk = self.records[start : start + 64]
                for record, message in zip(chunk, pool.map(look, chunk), strict=True):
                    if message is not None:
                        problems.append(record.problem(message))
                progress.update(len(chunk))
        return tuple(problems)


def photo_bytes(image: Any) -> str:
    """What tells one version of a photo from another, cheaply: the size of its file."""
    if isinstance(image, Path):
        try:
            return str(image.stat().st_size)
        except OSError:
            return "missing"
    if isinstance(image, LazyPhoto):
        return image.identity()
    return hashlib.sha256(image).hexdigest() if isinstance(image, bytes) else "object"


def wordless(records: Sequence[Record], vocabulary: Vocabulary) -> dict[int, Problem]:
    """Position -> problem, for the photos whose captions hold no word, such as "!!!"."""
    return {
        number: record.problem(f"no caption of {record.id} has a word")
        for number, record in enumerate(records)
        if not any(vocabulary.split(caption) for caption in record.captions)
    }


def listed(lines: Sequence[object], limit: int = 10) -> str:
    """Lines for the end of a message: the first few, indented, and how many more there are."""
    more = [f"... and {len(lines) - limit} more"] if len(lines) > limit else []
    return "".join(f"\n  {line}" for line in [*lines[:limit], *more])


def stop_or_say(problems: Sequence[object], skip_bad: bool, say: Callable[[str], None]) -> None:
    """Bad rows are an error, or left out and counted."""
    if not problems:
        return
    count = f"{len(problems):,} bad row{'s' * (len(problems) != 1)}"
    if not skip_bad:
        raise DataError(f"{count}; mend them, or leave them out with --skip-bad (skip_bad=True){listed(problems)}")
    say(f"left out: {count}{listed(problems)}")


def _amount(records: Sequence[Record]) -> str:
    photos, captions = len(records), sum(len(record.captions) for record in records)
    return f"{photos:,} photo{'s' * (photos != 1)}, {captions:,} caption{'s' * (captions != 1)}"
