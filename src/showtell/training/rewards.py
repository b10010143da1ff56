"""What a drawn caption is worth: CIDEr-D, and beside it BLEU and a price on an odd length."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from ..checks import number
from ..errors import ArgumentError
from ..metrics import CiderD, bleu_counts, bleu_of_counts

__all__ = ["MixedReward", "Reward"]

_Captions = Sequence[Sequence[Hashable]]

Reward = Callable[[Any, Any], Any]
"""(R captions, references of N photos) -> R numbers; caption r belongs to photo r // (R / N). All are lists of ids that
end with the end token, where the caption does."""


@dataclass(frozen=True)
class MixedReward:
    """CIDEr-D plus factors times BLEU-4 and minus a price on an odd length.

    Example:
        >>> from showtell.metrics import DocumentFrequencies
        >>> references = [[["a", "dog", "runs", "<end>"]], [["a", "cat", "<end>"]]]
        >>> reward = MixedReward(CiderD(DocumentFrequencies.of(references)), length=0.5)
        >>> drawn = [["a", "dog", "runs", "<end>"], ["<end>"], ["a", "cat", "<end>"], ["a", "dog", "<end>"]]
        >>> reward(drawn, references).round(2).tolist()  # the second is three words too short
        [10.0, -1.5, 7.5, 0.0]

    Called as `CiderD` is, with captions that end with the end token: it counts as a word, so a caption that stops in
    the middle is worth less.

    Args:
        cider: 0..10 a caption.
        bleu: factor of BLEU-4 (0..1) of each caption by itself, 0..100.
        length: price of each word that a caption has less than its photo's shortest reference, or more than the
            longest, 0..100.

    Raises:
        ArgumentError: a factor out of range.
    """

    cider: CiderD
    bleu: float = 0.0
    length: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if not isinstance(self.cider, CiderD):
            raise ArgumentError(f"cider must be a CiderD, not {type(self.cider).__name__}")
        object.__setattr__(self, "bleu", number("bleu", self.bleu, 0.0, 100.0))
        object.__setattr__(self, "length", number("length", self.length, 0.0, 100.0))

    def __call__(self, captions: _Captions, references: Sequence[_Captions]) -> Any:
        """R captions of N photos -> float64 (R,)."""
        total = self.cider(captions, references)
        size = len(captions) // len(references)
        if self.bleu:
            counts = bleu_counts(captions, [one for one in references for _ in range(size)])
            total = total + self.bleu * bleu_of_counts(counts)[:, 3]
        if self.length:
            lengths = [sorted(map(len, one)) for one in references]
            owned = (lengths[row // size] for row in range(len(captions)))
            odd = [
                max(words[0] - len(caption), len(caption) - words[-1], 0)
                for caption, words in zip(captions, owned, strict=True)
            ]
            total = total - [self.length * words for words in odd]
        return total
