"""What training minimises: objectives return sums with weights known beforehand, the trainer divides once."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import number

__all__ = ["CrossEntropy", "Objective", "Term"]


class Term(NamedTuple):
    """One part of a loss, not yet divided.

    Example:
        >>> import torch
        >>> term = Term(sum=torch.tensor(12.0), weight=4.0, factor=0.5)
        >>> float(term.factor * term.sum / term.weight)
        1.5

    sum: scalar tensor with gradient. weight: what the sums of a whole step are divided by the total of (the number
    of real words, say); it must equal what `weights(batch)` said. factor: how much the term counts in the loss.
    """

    sum: Tensor
    weight: float
    factor: float = 1.0


class Objective(Protocol):
    """A loss in named terms. Each term is divided by its own total weight over the whole step, not by the batch's."""

    def weights(self, batch: Any, /) -> dict[str, float]:
        """Term name -> weight, without running the model."""
        ...

    def __call__(self, captioner: Any, batch: Any, /) -> dict[str, Term]:
        """Run the model on one micro-batch; the same names as `weights` gives."""
        ...


class CrossEntropy:
    """Teacher forcing: the negative log-probability of each real next word.

    Example:
        >>> from types import SimpleNamespace
        >>> import torch
        >>> batch = SimpleNamespace(
        ...     inputs=None, tokens=torch.tensor([[1, 4]]), targets=torch.tensor([[4, 2]]),
        ...     weights=torch.tensor([[1.0, 1.0]]), trunk=False,
        ... )
        >>> model = lambda inputs, tokens, trunk: SimpleNamespace(logits=torch.zeros(1, 2, 8))
        >>> term = CrossEntropy()(model, batch)["cross_entropy"]
        >>> round(float(term.sum / term.weight), 4)  # ln 8
        2.0794

    With label smoothing e the target is (1 - e) of the real word and e spread evenly over all V words (Szegedy et
    al., "Rethinking the Inception Architecture", 2016). Padding has weight 0. The sum is taken in float32 at least.

    Args:
        label_smoothing: e, 0..0.9.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        """Keep the settings."""
        self.label_smoothing = number("label_smoothing", label_smoothing, 0.0, 0.9)

    def weights(self, batch: Any) -> dict[str, float]:
        """The number of real words in the batch."""
        return {"cross_entropy": float(batch.weights.sum(dtype=torch.float64))}

    def __call__(self, captioner: Any, batch: Any) -> dict[str, Term]:
        """Targets (R, T) and weights (R, T) against the logits (R, T, V) of one forced pass."""
        logits = captioner(batch.inputs, batch.tokens, trunk=batch.trunk).logits
        logits = logits if logits.dtype == torch.float64 else logits.float()
        each = F.cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), reduction="none", label_smoothing=self.label_smoothing
        )
        total = (each * batch.weights.flatten().to(each.dtype)).sum()
        return {"cross_entropy": Term(total, self.weights(batch)["cross_entropy"])}
