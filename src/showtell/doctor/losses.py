"""Teacher-forced losses photo by photo, so that two ways to show the same photos can be compared in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..captioner import Captioner
from ..data import Record
from ..generate import evaluating
from ..protocols import Features, move, slice_features
from ..vocabulary import Vocabulary

__all__ = ["SHIFTS", "Losses", "Words", "losses_of", "rolled", "wins_over_others", "words_of"]

_ROWS = 96  # captions at a time
SHIFTS = (1, 2, 3, 4)
"""Which other photos each photo is compared with: so many places before it, in random order."""

_TIE = 1e-4  # nats a word: rounding
_MOST = 100.0  # nats: a decoder may rule a word out altogether, and its loss is infinite then


class Words(NamedTuple):
    """Captions of N photos as ids, K rows a photo: what is read, what should come next, and 1 where there is a word.

    Each (N, K, T); rows of a photo with fewer captions are empty.
    """

    tokens: Tensor
    targets: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Losses:
    """Of N photos, each (N,) float64: the summed loss of their captions in nats, and how many words that is."""

    totals: Tensor
    counts: Tensor

    @property
    def each(self) -> Tensor:
        """Nats a word, photo by photo."""
        return self.totals / self.counts

    @property
    def mean(self) -> float:
        """Nats a word, over all words."""
        return float(self.totals.sum() / self.counts.sum())


def words_of(vocabulary: Vocabulary, records: Sequence[Record], *, captions: int, max_length: int) -> Words:
    """At most `captions` captions of each photo, cut as in training: of a longer one no end is asked for.

    Each record has a caption of at least one word.
    """
    end, rows = vocabulary.end_id, []
    for record in records:
        known = [ids for ids in vocabulary.encode_batch(record.captions) if ids][:captions]
        rows.append([[*ids, end][:max_length] for ids in known])
    width = max(len(ids) for each in rows for ids in each)
    shape = len(rows), max(map(len, rows)), width
    targets = torch.full(shape, vocabulary.pad_id, dtype=torch.int64)
    weights = torch.zeros(shape)
    for photo, each in enumerate(rows):
        for k, ids in enumerate(each):
            targets[photo, k, : len(ids)] = torch.tensor(ids)
            weights[photo, k, : len(ids)] = 1.0
    start = torch.full((*shape[:2], 1), vocabulary.start_id, dtype=torch.int64)
    return Words(torch.cat([start, targets[:, :, :-1]], dim=2), targets, weights)


def losses_of(captioner: Captioner, features: Features, words: Words) -> Losses:
    """The loss of each photo's captions, given N photos' features; NaN where the captioner's scores are."""
    photos, slots, width = words.tokens.shape
    size = max(1, _ROWS // slots)
    totals = []
    with torch.inference_mode(), evaluating(captioner):
        for start in range(0, photos, size):
            some = Words(*(move(t[start : start + size].flatten(0, 1), captioner.device) for t in words))
            logits = captioner(slice_features(features, start, start + size), some.tokens).logits
            each = F.cross_entropy(logits.flatten(0, 1).float(), some.targets.flatten(), reduction="none")
            # An empty row has no loss, whatever the captioner makes of it.
            each = torch.where(some.weights.flatten() > 0, each, 0.0).clamp(max=_MOST)
            totals.append(each.view(-1, slots * width).cpu().double().sum(1))  # some devices have no float64
    return Losses(torch.cat(totals), words.weights.double().sum((1, 2)))


def rolled(features: Features, shift: int) -> Features:
    """Each photo with the features of the one `shift` places before it."""
    return Features(*(None if t is None else t.roll(shift, 0) for t in features))  # type: ignore[arg-type]


def wins_over_others(captioner: Captioner, features: Features, words: Words, right: Losses) -> tuple[Tensor, Tensor]:
    """What the right photo is worth, against 4 other photos each: (N,) the share of them under which the photo's own
    captions have a larger loss (an equal one counts half), and (N,) how much larger, in nats a word."""
    wins, gains = [], []
    for shift in SHIFTS:
        gain = losses_of(captioner, rolled(features, shift), words).each - right.each
        wins.append((gain > _TIE).double() + 0.5 * (gain.abs() <= _TIE).double())
        gains.append(gain)
    return torch.stack(wins).mean(0), torch.stack(gains).mean(0)
