"""All checks in order: first the files, then the weights, then what the captioner makes of some photos."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn

from ..captioner import Captioner
from ..checks import choice, whole
from ..data import Dataset, Record
from ..data.records import SPLITS, wordless
from ..encoders.precomputed import PrecomputedFeatures
from ..errors import ArgumentError, RunError
from ..search import Search, as_search
from .files import check_leaks, check_reading, open_photos
from .findings import CODES, Check, Diagnosis, Finding, Measure
from .intervals import LEAST_PHOTOS
from .memory import check_gap
from .sample import Sample, choose, look_at
from .seeing import check_photo, check_preprocessing
from .wording import check_lengths, check_sameness, check_unknown

__all__ = ["diagnose"]

PHOTOS = 200
"""Photos a split that the captioner is shown: enough for every broken captioner of the tests, and about a minute."""

_EFFECTS = {
    "wrong-preprocessing": ("photo-ignored", "same-caption", "bad-lengths", "train-val-gap"),
    "photo-ignored": ("unknown-words", "same-caption", "bad-lengths"),
    "unknown-words": ("same-caption", "bad-lengths"),
}
"""A cause and what may follow from it."""


def diagnose(
    captioner: Captioner,
    dataset: Dataset,
    *,
    split: str | None = None,
    photos: int = PHOTOS,
    seed: int = 0,
    search: Search | str | None = None,
    show: bool | None = None,
) -> Diagnosis:
    """Say what is wrong with a captioner or with the data it is shown.

    Example:
        >>> from showtell.testing import tiny_captioner
        >>> shades = torch.linspace(0, 1, 6)
        >>> records = [Record(f"{i}", torch.full((3, 32, 32), s), ("a wall",), "val", "") for i, s in enumerate(shades)]
        >>> diagnosis = diagnose(tiny_captioner(), Dataset(tuple(records)))
        >>> [check.outcome for check in diagnosis.checks if check.code == "same-caption"]
        ['not run']

    Every photo of the dataset is opened, for `unreadable` and `split-leak`; the captioner sees some of them. What each
    finding means is in docs/doctor.md.

    Args:
        captioner: left in the mode it was in; its encoder takes photos.
        dataset: as `read_dataset` returns it.
        split: the photos to judge by; default: val, else test, else train. Photos of train are looked at besides.
        photos: at most so many of each split, 1..100,000.
        seed: chooses them.
        search: default: the captioner's own.
        show: progress bars; default: where standard error is a terminal.

    Raises:
        ArgumentError: the encoder takes no photos, the split is empty, or an option makes no sense.
    """
    if not isinstance(captioner, Captioner):
        raise ArgumentError(f"diagnose takes a showtell.Captioner, not {type(captioner).__name__}")
    if not isinstance(dataset, Dataset):
        raise ArgumentError(f"diagnose takes a Dataset, as read_dataset returns it, not {type(dataset).__name__}")
    whole("photos", photos, 1, 100_000)
    whole("seed", seed, 0, 2**63 - 1)
    if isinstance(captioner.encoder, PrecomputedFeatures):
        raise ArgumentError(
            "this captioner takes precomputed features, and the doctor shows it photos; give it the encoder that made "
            "the features"
        )
    chosen = _split(dataset, split)
    how = captioner.search if search is None else as_search(search)
    opened = open_photos(dataset, show)
    checks = [check_reading(dataset, opened, captioner.vocabulary), check_leaks(opened)]
    mute = set(wordless(opened.records, captioner.vocabulary))
    usable = [record for number, record in enumerate(opened.records) if number not in mute]
    named = {name: [record for record in usable if record.split == name] for name in SPLITS}
    plan = _Plan(captioner, chosen, how, show)
    if not named[chosen]:
        reason = f"no photo of {chosen} can be used"
        return _ordered([*checks, *(Check(code, "not run", reason) for code in CODES[1:] if code != "split-leak")])
    plan.judged = choose(named[chosen], photos, seed)
    plan.trained = () if chosen == "train" else choose(named["train"], photos, seed)
    plan.captions = [caption for record in named[chosen] for caption in record.captions]
    return _ordered([*checks, *_examined(plan)])


@dataclass
class _Plan:
    captioner: Captioner
    split: str
    search: Search
    show: bool | None
    judged: tuple[Record, ...] = ()
    trained: tuple[Record, ...] = ()
    captions: list[str] | tuple[str, ...] = ()


def _split(dataset: Dataset, split: str | None) -> str:
    there = {record.split for record in dataset.records}
    if split is not None:
        choice("split", split, SPLITS)
    elif not there:
        raise ArgumentError("the dataset has no photo; read it again and look at its problems")
    chosen = split or next(name for name in ("val", "test", "train") if name in there)
    if chosen not in there:
        raise ArgumentError(f"the dataset has no photo of {chosen}; it has {' and '.join(sorted(there)) or 'none'}")
    return chosen


def _ordered(checks: list[Check]) -> Diagnosis:
    """In the order of `CODES`; a finding that may follow from another says so."""
    found = {check.code for check in checks if check.finding}
    ordered = []
    for check in sorted(checks, key=lambda check: CODES.index(check.code)):
        causes = [cause for cause, effects in _EFFECTS.items() if cause in found and check.code in effects]
        if check.finding and causes:
            first = f"mend {' and '.join(causes)} first, this may follow from it; then {check.finding.remedy}"
            check = replace(check, finding=replace(check.finding, remedy=first))
        ordered.append(check)
    return Diagnosis(tuple(ordered))


def _examined(plan: _Plan) -> list[Check]:
    """The checks of the captioner itself."""
    wrong = _bad_tensors(plan.captioner)
    count = sum(1 for _ in plan.captioner.state_dict())
    measure = Measure("tensors with NaN or infinity", len(wrong), most=0)
    train: Sample | None = None
    try:
        if wrong:
            raise RunError(f"{len(wrong):,} of {count:,} tensors hold NaN or infinity")
        val = look_at(plan.captioner, plan.split, plan.judged, plan.search, plan.show)
        if plan.trained:
            train = look_at(plan.captioner, "train", plan.trained, plan.search, plan.show)
    except RunError as error:
        return _unfit(str(error), measure, wrong)
    found = [
        Check("broken-weights", "clean", f"{count:,} tensors, all finite, and so is what they compute", (measure,)),
        check_sameness(val, plan.captioner.vocabulary),
        check_lengths(val),
        check_unknown(plan.captioner, val, plan.captions, plan.search),
        check_gap(
            train,
            val,
            "the photos looked at are those of train" if plan.split == "train" else "there is no photo of train",
        ),
    ]
    plausible = not any(check.finding for check in found)
    found.append(check_photo(plan.captioner, val, plan.search, plausible=plausible))
    known = val if train is None or len(train.records) < LEAST_PHOTOS else train
    found.append(check_preprocessing(plan.captioner, known.split, known.records, plan.search, plan.show))
    return found


def _bad_tensors(captioner: Captioner) -> list[str]:
    module = cast(nn.Module, captioner)
    return [
        name
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]


def _unfit(reason: str, measure: Measure, tensors: list[str]) -> list[Check]:
    finding = Finding(
        "broken-weights",
        "what it computes are no numbers",
        f"{reason} (none may)",
        "NaN spreads to every word, so it can't make a caption at all",
        "take an earlier checkpoint, and train on with a lower learning rate, clip_norm, or float32 in place of "
        "float16",
        tuple(tensors),
    )
    checks = [Check("broken-weights", "found", reason, (measure,), finding=finding)]
    others = [code for code in CODES if code not in ("unreadable", "split-leak", "broken-weights")]
    return [*checks, *(Check(code, "not run", "the weights are broken") for code in others)]
