"""Distillation: learn from what other captioners say, beside the captions themselves."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..checks import number
from ..protocols import Forced
from .objectives import ForcedObjective, Term, wide
from .soft_targets import SoftTargets

__all__ = ["Distillation"]


class Distillation:
    """Another objective, and the cross entropy against the teachers' distributions in place of a share of it.

    Example:
        >>> from types import SimpleNamespace
        >>> import torch
        >>> from showtell.training import CrossEntropy
        >>> targets = SoftTargets(torch.tensor([0, 1]), torch.tensor([[4, 5]]), torch.tensor([[0.5, 0.25]]))
        >>> batch = SimpleNamespace(
        ...     inputs=None, tokens=torch.tensor([[1]]), targets=torch.tensor([[4]]), weights=torch.ones(1, 1),
        ...     captions=torch.tensor([0]), trunk=False,
        ... )
        >>> model = lambda inputs, tokens, trunk: SimpleNamespace(logits=torch.zeros(1, 1, 8))
        >>> terms = Distillation(CrossEntropy(), targets, share=0.7)(model, batch)
        >>> {name: (round(float(term.sum), 4), round(term.factor, 1)) for name, term in terms.items()}  # ln 8
        {'cross_entropy': (2.0794, 0.3), 'distillation': (2.0794, 0.7)}

    With p the teachers' probabilities of the words they kept, r what these leave over of 1, spread evenly over all V
    words, and q the model's: -sum over kept words of p ln q - r / V sum over all words of ln q, summed over real
    words. The sum is taken in float32 at least.

    Source: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531), at
    temperature 1; for sequences word by word, Kim and Rush 2016, "Sequence-Level Knowledge Distillation"
    (arXiv:1606.07947), section 3.1.

    Args:
        base: `CrossEntropy()`, say; its terms count 1 - share.
        targets: of the captions that the batches show.
        share: how much the teachers count, 0..1.
    """

    def __init__(self, base: ForcedObjective, targets: SoftTargets, share: float = 0.7) -> None:
        """Keep the settings."""
        self.base = base
        self.targets = targets
        self.share = number("the share of distillation", share, 0.0, 1.0)

    def weights(self, batch: Any) -> dict[str, float]:
        """The base's, and the number of real words."""
        return {**self.base.weights(batch), "distillation": float(batch.weights.sum())}

    def __call__(self, captioner: Any, batch: Any) -> dict[str, Term]:
        """The terms of one forced pass."""
        return self.terms(captioner(batch.inputs, batch.tokens, trunk=batch.trunk), batch)

    def terms(self, forced: Forced, batch: Any) -> dict[str, Term]:
        """Weights (R, T) and caption numbers (R,) against the logits (R, T, V)."""
        logits = wide(forced.logits)
        taught = self.targets.of_captions(batch.captions, logits.shape[1])
        ids, chances = taught.ids.to(logits.device), taught.probabilities.to(logits)
        left: Tensor = 1 - chances.sum(2)
        said = (chances * logits.gather(2, ids)).sum(2) + left * logits.mean(2)
        total = ((logits.logsumexp(2) - said) * batch.weights.to(logits)).sum()
        terms = {
            name: term if term.factor is None else term._replace(factor=term.factor * (1 - self.share))
            for name, term in self.base.terms(forced, batch).items()
        }
        return {**terms, "distillation": Term(total, self.weights(batch)["distillation"], self.share)}
