"""How good a captioner is on photos whose captions are known."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .captioner import Caption, Captioner
from .data import Batch
from .errors import ArgumentError
from .generate import evaluating
from .images import ImageSource
from .metrics.bleu import BleuScores, bleu
from .progress import bar
from .protocols import Features, SplitEncoder, move, slice_features
from .search import Search

__all__ = ["Evaluation", "evaluate", "score_words", "teacher_forced_loss"]

Inputs = Features | Sequence[ImageSource] | Callable[[Sequence[int]], Features | Tensor]
"""N photos: Features as the encoder returns them, photos, or a function of positions in 0..N-1."""

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


@dataclass(frozen=True)
class Evaluation:
    """Captions and their scores.

    captions: one `Caption` a photo. bleu: `bleu.corpus` holds BLEU-1 to BLEU-4, 0..1, over words as `score_words`
    splits them, which is not the official tokeniser: compare these scores with each other only.
    """

    captions: tuple[Caption, ...]
    bleu: BleuScores

    @property
    def bleu4(self) -> float:
        """Corpus BLEU-4, 0..1."""
        return self.bleu.corpus[3]


def score_words(text: str) -> list[str]:
    """The words of a caption as `evaluate` counts them: lower case, no punctuation.

    Example:
        >>> score_words("A black-and-white dog's ball, on grass.")
        ['a', 'black', 'and', 'white', "dog's", 'ball', 'on', 'grass']
    """
    return _WORD.findall(text.lower().replace("’", "'"))


def evaluate(
    captioner: Captioner,
    inputs: Inputs,
    references: Sequence[Sequence[str]],
    *,
    search: Search | str | None = None,
    batch_size: int = 32,
    trunk: bool = False,
    show: bool | None = False,
) -> Evaluation:
    """Caption N photos by real generation and compare with what people wrote.

    Example:
        >>> import torch
        >>> from showtell.testing import tiny_captioner
        >>> result = evaluate(tiny_captioner(), [torch.rand(3, 32, 32)], [["a dog", "a small dog"]])
        >>> 0.0 <= result.bleu4 <= 1.0
        True

    Args:
        captioner: left in the mode it was in.
        inputs: the photos: paths or images, Features of N, or a function that turns positions (a list of numbers
            in 0..N-1) into Features or an image tensor (n, 3, H, W), so that N photos need not fit in memory.
        references: N lists of at least one caption.
        search: default: the captioner's own.
        batch_size: photos at a time.
        trunk: with a function: its Features come from `encoder.trunk` (a feature cache).
        show: a progress bar; None: where standard error is a terminal.

    Raises:
        ArgumentError: no photos, a photo without references, or as many photos as references are not given.
        ImageError: a photo can't be read.
    """
    if not references or any(isinstance(r, str) or not r or not all(isinstance(t, str) for t in r) for r in references):
        raise ArgumentError("evaluate needs a list of captions for each photo, and at least one photo")
    if type(batch_size) is not int or batch_size < 1:
        raise ArgumentError(f"batch_size must be a whole number of at least 1, not {batch_size!r}")
    count = len(references)
    given = inputs.pooled.shape[0] if isinstance(inputs, Features) else count if callable(inputs) else len(inputs)
    if given != count:
        raise ArgumentError(f"{given} photos but references for {count}; give one list of captions a photo")
    captions: list[Caption] = []
    with bar(count, "captioning", unit="photo", show=show) as progress, evaluating(captioner):
        for start in range(0, count, batch_size):
            positions = range(start, min(count, start + batch_size))
            photos = _photos(captioner, inputs, positions, trunk)
            captions += cast(list[Caption], captioner.caption(photos, search=search, batch_size=batch_size))
            progress.update(len(positions))
    scores = bleu(
        [score_words(caption.text) for caption in captions],
        [[score_words(text) for text in texts] for texts in references],
    )
    return Evaluation(tuple(captions), scores)


def _photos(captioner: Captioner, inputs: Inputs, positions: range, trunk: bool) -> Any:
    """Some of the photos, as `Captioner.caption` takes them."""
    if isinstance(inputs, Features):
        return slice_features(inputs, positions.start, positions.stop)
    if not callable(inputs):
        return [inputs[i] for i in positions]
    found = move(inputs(list(positions)), captioner.device)
    with torch.inference_mode():
        if isinstance(found, Tensor):
            return captioner.encoder(found)
        return captioner.encoder.head(found) if trunk and isinstance(captioner.encoder, SplitEncoder) else found


def teacher_forced_loss(captioner: Captioner, batches: Iterable[Batch]) -> float:
    """The mean negative log-probability of each real next word, in nats, the words before it given.

    Example:
        >>> import torch
        >>> from showtell.testing import tiny_captioner
        >>> words = torch.tensor([[1, 4]])
        >>> batch = Batch(torch.rand(1, 3, 32, 32), words, torch.tensor([[4, 2]]), torch.ones(1, 2), False)
        >>> teacher_forced_loss(tiny_captioner(), [batch]) > 0
        True

    Summed over all batches before it is divided, so how photos are batched doesn't matter. It is a loss given the
    right words, not of captions that the model made. The captioner is left in the mode it was in. Raises
    ArgumentError when the batches hold no word.
    """
    total, count = 0.0, 0.0
    with torch.inference_mode(), evaluating(captioner):
        for batch in batches:
            inputs, tokens, targets, weights = (
                move(t, captioner.device) for t in (batch.inputs, batch.tokens, batch.targets, batch.weights)
            )
            logits = captioner(inputs, tokens, trunk=batch.trunk).logits
            each = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
            total += float((each * weights.flatten()).sum(dtype=torch.float64))
            count += float(weights.sum(dtype=torch.float64))
    if not count > 0:
        raise ArgumentError("no word to take the loss of; the batches are empty")
    return total / count
