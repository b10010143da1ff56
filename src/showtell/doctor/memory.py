"""Whether a captioner knows its training photos by heart."""

from __future__ import annotations

import torch

from ..metrics import score_captions
from .findings import Check, Finding, Measure, Outcome
from .intervals import LEAST_PHOTOS, difference
from .sample import Sample

__all__ = ["check_gap"]

LOSS_GAP = 1.0
"""Nats a word by which the loss of val may exceed that of train: a word of val is then e times as surprising. The
bundled captioner, kept at its best epoch: 0.4."""

SCORE_GAP = 0.5
"""CIDEr-D by which captions of train may exceed those of val, of val's own. The bundled captioner, whose
teachers knew the training captions well: 0.46, between 0.16 and 0.76; the one before it: 0.1."""


def check_gap(train: Sample | None, val: Sample, why_not: str) -> Check:
    """Loss and CIDEr-D of photos of train against photos of another split."""
    if train is None:
        return Check("train-val-gap", "not run", why_not)
    if min(len(train.records), len(val.records)) < LEAST_PHOTOS:
        counts = f"{len(train.records)} photos of train and {len(val.records)} of {val.split}"
        return Check("train-val-gap", "not run", f"{counts}; at least {LEAST_PHOTOS} each are needed")
    gap = difference(train.losses.each, val.losses.each)
    # One set of document frequencies for both: else the scores couldn't be compared.
    scores = score_captions(
        [*train.texts, *val.texts], [*train.references, *val.references], metrics=("CIDEr-D",)
    ).each["CIDEr-D"]
    each = torch.tensor(scores)
    ours, theirs = each[: len(train.records)], each[len(train.records) :]
    fall = difference(theirs, ours)
    most = SCORE_GAP * float(theirs.mean())
    result = (
        f"loss {train.losses.mean:.3f} nats a word on train, {val.losses.mean:.3f} on {val.split}: {gap.mean:+.3f} "
        f"({gap.low:+.3f} "
        f"to {gap.high:+.3f}, at most {LOSS_GAP}); CIDEr-D {float(ours.mean()):.3f} and {float(theirs.mean()):.3f}: "
        f"{fall.mean:+.3f} ({fall.low:+.3f} to {fall.high:+.3f}, at most {most:.3f})"
    )
    measures = (
        Measure(f"nats a word, {val.split} less train", gap.mean, most=LOSS_GAP),
        Measure(f"CIDEr-D, train less {val.split}", fall.mean, most=most),
    )
    if gap.low <= LOSS_GAP and fall.low <= most:
        outcome: Outcome = "unclear" if any(measure.broken for measure in measures) else "clean"
        return Check("train-val-gap", outcome, result, measures)
    finding = Finding(
        "train-val-gap",
        f"it knows the photos of train by heart: much worse on {val.split}",
        result,
        "what it learned by heart doesn't help with new photos, and costs what it knew of them",
        "keep the captioner of an earlier step (`showtell train` keeps the best on val), or train with more photos, "
        "more "
        "dropout, fewer epochs or a smaller decoder",
    )
    return Check("train-val-gap", "found", result, measures, finding=finding)
