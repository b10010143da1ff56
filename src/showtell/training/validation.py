"""How good a captioner in training is: as it would be saved, by the captions it makes for the validation photos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..captioner import Captioner
from ..data import Batches, Record
from ..evaluation import evaluate, teacher_forced_loss
from ..metrics.frequencies import DocumentFrequencies
from ..ranks import ALONE, Ranks
from .alarms import Manner

__all__ = ["Validation", "validate"]


@dataclass(frozen=True)
class Validation:
    """How good the captioner of one step is.

    scores: metric -> value over all validation photos, of captions that it made. signature: what these depend on.
    loss: teacher-forced, nats a word. manner: of the captions. captions: those that were scored, in the order of the
    photos.
    """

    scores: Mapping[str, float]
    signature: str
    loss: float
    manner: Manner
    captions: tuple[str, ...] = ()


def validate(
    captioner: Captioner,
    batches: Batches,
    records: Sequence[Record],
    *,
    frequencies: DocumentFrequencies,
    search: str,
    weights_dtype: str,
    show: bool | None,
    ranks: Ranks = ALONE,
) -> Validation:
    """Caption the photos of some records and score that, all with the weights that the file would hold.

    The scores are what `showtell evaluate` prints for the saved captioner, the same photos and the same search; where
    the photos' features come from a cache, which keeps half precision, perhaps a caption in 500 differs.

    Args:
        captioner: left as it was, to the bit.
        batches: of the same photos as `records`, in their order.
        records: the photos, their captions and their ids.
        frequencies: document frequencies of the records' captions.
        search: how to look for captions.
        weights_dtype: what the captioner is saved in.
        show: a progress bar; None: where standard error is a terminal.
        ranks: the processes that share the photos; all get the same.
    """
    with _as_saved(captioner, weights_dtype):
        found = evaluate(
            captioner,
            batches.inputs,
            [record.captions for record in records],
            ids=[record.id for record in records],
            name="validation",
            search=search,
            batch_size=batches.photos,
            trunk=batches.trunk,
            frequencies=frequencies,
            show=show,
            ranks=ranks,
        )
        own = ranks.own(range(batches.per_epoch))
        loss = teacher_forced_loss(captioner, map(batches.batch, own), ranks=ranks)
    captions = tuple(photo.caption for photo in found.photos)
    manner = Manner(found.health.mean_length, found.health.bad_ending_ratio)
    return Validation(dict(found.scores.corpus), str(found.signature), loss, manner, captions)


@contextmanager
def _as_saved(captioner: Captioner, weights_dtype: str) -> Iterator[None]:
    """Weights rounded as saving rounds them, for a while."""
    tensors = captioner.save_pieces(weights_dtype=weights_dtype)["tensors"]
    exact = {name: parameter.detach().clone() for name, parameter in captioner.named_parameters()}
    try:
        _set(captioner, tensors)
        yield
    finally:
        _set(captioner, exact)


@torch.no_grad()
def _set(captioner: Captioner, tensors: Mapping[str, torch.Tensor]) -> None:
    # In place: an optimizer holds these very parameters, and an LSTM on a GPU wants its weights where they are.
    for name, parameter in captioner.named_parameters():
        parameter.copy_(tensors[name])
