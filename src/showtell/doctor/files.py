"""Every photo opened once: those that can't be read, and those that are there more than once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data import Dataset, Problem, Record
from ..data.inputs import load_records
from ..data.records import wordless
from ..image_spec import ImageSpec
from ..progress import bar
from ..vocabulary import Vocabulary
from .copies import PRINT_SIZE, Prints, find_copies, groups_of
from .findings import Check, Finding, Measure

__all__ = ["Opened", "check_leaks", "check_reading", "open_photos"]

_CHUNK = 64


@dataclass(frozen=True)
class Opened:
    """The records whose photos can be read, their prints (None of none), and what is wrong with the others."""

    records: tuple[Record, ...]
    prints: Prints | None
    bad: tuple[Problem, ...]


def open_photos(dataset: Dataset, show: bool | None) -> Opened:
    """Decode every photo of a dataset, small."""
    good: list[Record] = []
    parts: list[Prints] = []
    bad: list[Problem] = []
    spec = ImageSpec(PRINT_SIZE, PRINT_SIZE)
    with bar(len(dataset.records), "opening photos", unit="photo", show=show) as progress:
        for start in range(0, len(dataset.records), _CHUNK):
            some = dataset.records[start : start + _CHUNK]
            images, reasons = load_records(some, spec)
            bad += [some[number].problem(reason) for number, reason in reasons.items()]
            kept = [number for number in range(len(some)) if number not in reasons]
            if kept:
                good += [some[number] for number in kept]
                parts.append(Prints.of(images[torch.tensor(kept)]))
            progress.update(len(some))
    return Opened(tuple(good), Prints.join(parts) if parts else None, tuple(bad))


def check_reading(dataset: Dataset, opened: Opened, vocabulary: Vocabulary) -> Check:
    """Photos that can't be read, and rows of the caption file that can't be used."""
    total = len(dataset.records)
    mute = wordless(dataset.records, vocabulary)
    rows = (*dataset.problems, *mute.values())
    result = (
        f"{total - len(opened.bad):,} of {total:,} photos can be read; {_count(len(rows), 'row')} of captions can't be "
        "used"
    )
    measures = (
        Measure("photos that can't be read", len(opened.bad), most=0),
        Measure("rows that can't be used", len(rows), most=0),
    )
    if not opened.bad and not rows:
        return Check("unreadable", "clean", result, measures)
    what = [_count(len(opened.bad), "photo")] * bool(opened.bad) + [_count(len(rows), "row")] * bool(rows)
    finding = Finding(
        "unreadable",
        f"{' and '.join(what)} can't be used",
        f"{result} (none may be lost)",
        "what can't be read is neither learned from nor scored, and numbers of others are over other photos than yours",
        "mend, download again or remove what is listed; `showtell data check` lists the same without a captioner",
        tuple(str(problem) for problem in (*opened.bad, *rows)),
    )
    return Check("unreadable", "found", result, measures, finding=finding)


def check_leaks(opened: Opened) -> Check:
    """The same photo in two splits; the same photo twice in one split is a note."""
    records = opened.records
    if opened.prints is None:
        return Check("split-leak", "not run", "no photo can be read")
    copies = find_copies(opened.prints, _keys(records))
    groups = groups_of(len(records), copies)
    group_of = {position: number for number, group in enumerate(groups) for position in group}
    kinds: list[set[str]] = [set() for _ in groups]
    for copy in copies:
        kinds[group_of[copy.first]].add(copy.how)
    leaks, notes, photos = [], [], Counter[str]()
    for group, kind in zip(groups, kinds, strict=True):
        splits = [records[position].split for position in group]
        line = _line([records[position] for position in group], kind)
        if len(set(splits)) == 1:
            notes.append(line)
            continue
        leaks.append(line)
        photos.update(split for split in splits if split != ("train" if "train" in splits else splits[0]))
    named = sorted({record.split for record in records})
    where = f"{len(records):,} photos of {' and '.join(named)}"
    if len(named) == 1:
        result = f"{where}: there is no other split; {_count(len(notes), 'photo')} there more than once"
        return Check("split-leak", "not run", result, notes=tuple(notes))
    result = f"{where}: {_count(len(leaks), 'photo')} in two splits; {len(notes):,} more than once in one split"
    measures = (
        Measure("photos in two splits", len(leaks), most=0),
        Measure("photos more than once in one split", len(notes)),
    )
    if not leaks:
        return Check("split-leak", "clean", result, measures, tuple(notes))
    shares = [f"{count:,} of the {_size(records, split):,} photos of {split}" for split, count in photos.items()]
    finding = Finding(
        "split-leak",
        f"{_count(len(leaks), 'photo')} in more than one split",
        f"{' and '.join(shares)} are in another split too (none may be)",
        "a captioner remembers photos it was trained on, so scores over such photos say less about new ones",
        "keep each of these photos in one split only, best in train, and score again",
        tuple(leaks),
    )
    return Check("split-leak", "found", result, measures, tuple(notes), finding)


def _keys(records: Sequence[Record]) -> list[str | None]:
    """A hash of each file's bytes, where another file has as many; None for the others, and for what is no file."""
    sizes: list[int | None] = []
    for record in records:
        try:
            sizes.append(record.image.stat().st_size if isinstance(record.image, Path) else None)
        except OSError:
            sizes.append(None)
    times = Counter(sizes)
    keys: list[str | None] = []
    for record, size in zip(records, sizes, strict=True):
        try:
            twice = size is not None and times[size] > 1
            keys.append(hashlib.sha256(record.image.read_bytes()).hexdigest() if twice else None)
        except OSError:
            keys.append(None)
    return keys


def _line(records: Sequence[Record], kinds: set[str]) -> str:
    """Which photos are one, and how they differ at most."""
    shown = [f"{record.id} ({record.split})" for record in records[:4]]
    more = [f"{len(records) - 4} more"] if len(records) > 4 else []
    how = " and ".join(kind for kind in ("changed", "mirrored") if kind in kinds) or "the same picture"
    return " = ".join([*shown, *more]) + f": {how}"


def _size(records: Sequence[Record], split: str) -> int:
    return sum(record.split == split for record in records)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
