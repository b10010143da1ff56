"""Caption photos by real generation and score the captions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..captioner import Caption, Captioner
from ..data import Batch, Record
from ..errors import ArgumentError, MissingPackageError
from ..generate import evaluating
from ..images import ImageSource
from ..metrics import METRICS
from ..metrics.coco import COCO_METRICS, coco_problem
from ..metrics.frequencies import DocumentFrequencies
from ..metrics.scores import check_frequencies, check_metrics
from ..progress import bar
from ..protocols import Features, SplitEncoder, move, slice_features
from ..ranks import ALONE, Ranks
from ..search import Search, as_search, search_text
from .result import Evaluation, ScoredPhoto, check_ids, score_predictions

__all__ = ["evaluate", "teacher_forced_loss"]

Inputs = Features | Sequence[Record] | Sequence[ImageSource] | Callable[[Sequence[int]], Features | Tensor]
"""N photos: Features as the encoder returns them, records, photos, or a function of positions in 0..N-1."""


def evaluate(
    captioner: Captioner,
    inputs: Inputs,
    references: Sequence[Sequence[str]] | None = None,
    *,
    ids: Sequence[str] | None = None,
    name: str = "captioner",
    search: Search | str | None = None,
    batch_size: int = 32,
    trunk: bool = False,
    metrics: Sequence[str] = METRICS,
    frequencies: DocumentFrequencies | None = None,
    training: Sequence[str] | None = None,
    show: bool | None = False,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Caption N photos by real generation and compare with what people wrote.

    Example:
        >>> import torch
        >>> from showtell.testing import tiny_captioner
        >>> result = evaluate(tiny_captioner(), [torch.rand(3, 32, 32)], [["a dog", "a small dog"]])
        >>> 0.0 <= result.scores.corpus["BLEU-4"] <= 1.0
        True

    Args:
        captioner: left in the mode it was in.
        inputs: the photos: records of a dataset (`dataset.split("val")`), paths or images, Features of N, or a
            function that turns positions (a list of numbers in 0..N-1) into Features or an image tensor
            (n, 3, H, W), so that N photos need not fit in memory.
        references: N lists of at least one caption; records bring their own.
        ids: N names, each once; default: the records' own, else "0", "1", ...
        name: what is scored, for tables.
        search: default: the captioner's own.
        batch_size: photos at a time.
        trunk: with a function: its Features come from `encoder.trunk` (a feature cache).
        metrics: as for `score_captions`.
        frequencies: document frequencies for CIDEr; default: those of the references, as tables have it.
        training: captions the model was trained on, for `health.novelty`.
        show: a progress bar; None: where standard error is a terminal.
        ranks: the processes that share the photos, `batch_size` after `batch_size`; all get the result of a single one.

    Raises:
        ArgumentError: no photos, a photo without references, as many photos as references are not given, or
            frequencies of anything but words.
        ImageError: a photo can't be read.
        MissingPackageError: METEOR or SPICE without what they need.
    """
    if not isinstance(captioner, Captioner):
        raise ArgumentError(f"evaluate takes a Captioner, not {captioner!r:.100}; load one with from_pretrained")
    records = _records(inputs)
    if records is not None:
        if references is not None or ids is not None:
            raise ArgumentError("records bring their own references and ids; give records alone, or photos with both")
        references, ids = [record.captions for record in records], [record.id for record in records]
    if (
        not isinstance(references, list | tuple)
        or not references
        or not all(isinstance(r, list | tuple) and r and all(isinstance(t, str) for t in r) for r in references)
    ):
        raise ArgumentError("evaluate needs a list of captions for each photo, and at least one photo")
    for metric in set(check_metrics(metrics)) & set(COCO_METRICS):
        problem = coco_problem(metric)
        if problem:
            raise MissingPackageError(problem)
    check_frequencies(frequencies)
    if type(batch_size) is not int or batch_size < 1:
        raise ArgumentError(f"batch_size must be a whole number of at least 1, not {batch_size!r}")
    count = len(references)
    given = inputs.pooled.shape[0] if isinstance(inputs, Features) else count if callable(inputs) else len(inputs)
    if given != count:
        raise ArgumentError(f"{given} photos but references for {count}; give one list of captions a photo")
    names = list(map(str, range(count) if ids is None else ids))
    if len(names) != count:
        raise ArgumentError(f"{len(names)} ids for {count} photos; give one a photo")
    check_ids(names)
    used = captioner.search if search is None else as_search(search)
    batches = [range(start, min(count, start + batch_size)) for start in range(0, count, batch_size)]
    own = ranks.own(batches)
    made: list[list[Caption]] = []
    with bar(sum(map(len, own)), "captioning", unit="photo", show=show) as progress, evaluating(captioner):
        for positions in own:
            photos = _photos(captioner, inputs, positions, trunk)
            found = captioner.generate(photos, search=used, batch_size=batch_size, positions=positions)
            made.append([best[0] for best in found])
            progress.update(len(positions))
    captions = [caption for batch in ranks.woven(made) for caption in batch]
    scored = [
        ScoredPhoto(names[i], caption.text, tuple(references[i]), _file(inputs, i), caption.log_prob)
        for i, caption in enumerate(captions)
    ]
    return ranks.first_does(
        lambda: score_predictions(
            name, scored, search=search_text(used), metrics=metrics, frequencies=frequencies, training=training
        )
    )


def _records(inputs: Inputs) -> Sequence[Record] | None:
    """The inputs where they are records, None where they are photos; raises ArgumentError for neither."""
    if isinstance(inputs, Features) or callable(inputs):
        return None
    if isinstance(inputs, str | bytes | Mapping) or not (hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")):
        raise ArgumentError(f"evaluate takes photos as a list, as Features or as a function, not {inputs!r:.100}")
    found = [isinstance(inputs[i], Record) for i in range(len(inputs))]
    if any(found) and not all(found):
        raise ArgumentError(f"records and other photos are mixed; photo {found.index(False)} is no record")
    return cast(Sequence[Record], inputs) if any(found) else None


def _file(inputs: Inputs, position: int) -> str | None:
    """The path of a photo that is one."""
    if isinstance(inputs, Features) or callable(inputs):
        return None
    photo = inputs[position]
    image = photo.image if isinstance(photo, Record) else photo
    return os.fspath(image) if isinstance(image, str | Path) else None


def _photos(captioner: Captioner, inputs: Inputs, positions: range, trunk: bool) -> Any:
    """Some of the photos, as `Captioner.caption` takes them."""
    if isinstance(inputs, Features):
        return slice_features(inputs, positions.start, positions.stop)
    if not callable(inputs):
        some = [inputs[i] for i in positions]
        return [photo.photo() if isinstance(photo, Record) else photo for photo in some]
    found = move(inputs(list(positions)), captioner.device)
    with torch.inference_mode():
        if isinstance(found, Tensor):
            return captioner.encoder(found)
        return captioner.encoder.head(found) if trunk and isinstance(captioner.encoder, SplitEncoder) else found


def teacher_forced_loss(captioner: Captioner, batches: Iterable[Batch], *, ranks: Ranks = ALONE) -> float:
    """The mean negative log-probability of each real next word, in nats, the words before it given.

    Example:
        >>> import torch
        >>> from showtell.testing import tiny_captioner
        >>> words = torch.tensor([[1, 4]])
        >>> batch = Batch(torch.rand(1, 3, 32, 32), words, torch.tensor([[4, 2]]), torch.ones(1, 2), False)
        >>> teacher_forced_loss(tiny_captioner(), [batch]) > 0
        True

    Summed over all batches before it is divided, so how photos are batched doesn't matter. It is a loss given the
    right words, not of captions that the model made. The captioner is left in the mode it was in. With `ranks` each
    process brings its own share of the batches, every `count`th one.

    Raises ArgumentError when the batches hold no word.
    """
    sums: list[tuple[float, float]] = []
    with torch.inference_mode(), evaluating(captioner):
        for batch in batches:
            inputs, tokens, targets, weights = (
                move(t, captioner.device) for t in (batch.inputs, batch.tokens, batch.targets, batch.weights)
            )
            logits = captioner(inputs, tokens, trunk=batch.trunk).logits
            each = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
            total = float((each * weights.flatten()).sum(dtype=torch.float64))
            sums.append((total, float(weights.sum(dtype=torch.float64))))
    sums = ranks.woven(sums)
    total, count = sum(each for each, _ in sums), sum(words for _, words in sums)
    if not count > 0:
        raise ArgumentError("no word to take the loss of; the batches are empty")
    return total / count
