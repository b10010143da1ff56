"""What training minimises: objectives return sums with weights known beforehand, the trainer divides once."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import number
from ..errors import ArgumentError
from ..protocols import Features, Forced

__all__ = ["CrossEntropy", "DoublyStochastic", "ForcedObjective", "Objective", "Term", "Timed", "at_step", "wide"]


class Term(NamedTuple):
    """One part of a loss, not yet divided.

    Example:
        >>> import torch
        >>> term = Term(sum=torch.tensor(12.0), weight=4.0, factor=0.5)
        >>> float(term.factor * term.sum / term.weight)
        1.5

    sum: scalar tensor with gradient. weight: what the sums of a whole step are divided by the total of (the number
    of real words, say); it must equal what `weights(batch)` said. factor: how much the term counts in the loss; None:
    not at all, it is only noted, and its sum needs no gradient.
    """

    sum: Tensor
    weight: float
    factor: float | None = 1.0


class Objective(Protocol):
    """A loss in named terms. Each term is divided by its own total weight over the whole step, not by the batch's."""

    def weights(self, batch: Any, /) -> dict[str, float]:
        """Term name -> weight, without running the model."""
        ...

    def __call__(self, captioner: Any, batch: Any, /) -> dict[str, Term]:
        """Run the model on one micro-batch; the same names as `weights` gives."""
        ...


@runtime_checkable
class Timed(Protocol):
    """An objective that draws at random, or changes with the step."""

    def at(self, step: int, seed: int, /) -> Objective:
        """The objective for one step, from 0: what it draws is a function of (seed, step, photo)."""
        ...


def at_step(objective: Objective, step: int, seed: int) -> Objective:
    """The objective for one step; most are the same at every one."""
    return objective.at(step, seed) if isinstance(objective, Timed) else objective


class ForcedObjective(Objective, Protocol):
    """An objective that looks at one forced pass, so that others can look at the same one."""

    def terms(self, forced: Forced, batch: Any, /) -> dict[str, Term]:
        """The terms of what the model said; the same names as `weights` gives."""
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
        """The terms of one forced pass."""
        return self.terms(captioner(batch.inputs, batch.tokens, trunk=batch.trunk), batch)

    def terms(self, forced: Forced, batch: Any) -> dict[str, Term]:
        """Targets (R, T) and weights (R, T) against the logits (R, T, V)."""
        logits = wide(forced.logits)
        each = F.cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), reduction="none", label_smoothing=self.label_smoothing
        )
        total = (each * batch.weights.flatten().to(each.dtype)).sum()
        return {"cross_entropy": Term(total, self.weights(batch)["cross_entropy"])}


class DoublyStochastic:
    """Another objective, and beside it: over a whole caption, every region should be looked at.

    Example:
        >>> from types import SimpleNamespace
        >>> import torch
        >>> batch = SimpleNamespace(
        ...     inputs=None, tokens=torch.tensor([[1, 4]]), targets=torch.tensor([[4, 2]]),
        ...     weights=torch.tensor([[1.0, 1.0]]), trunk=False,
        ... )
        >>> maps = torch.tensor([[[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]]])
        >>> model = lambda inputs, tokens, trunk, attention: SimpleNamespace(
        ...     logits=torch.zeros(1, 2, 8), attention=maps)
        >>> term = DoublyStochastic(CrossEntropy(), factor=0.5)(model, batch)["doubly_stochastic"]
        >>> float(term.sum), term.weight, term.factor  # (1 - 1)^2 + (1 - 0.5)^2 + (1 - 0.5)^2
        (0.5, 1.0, 0.5)

    The sum over captions and regions of (1 - the region's attention over all steps)^2, divided by the number of
    captions: Xu et al. 2015, "Show, Attend and Tell" (arXiv:1502.03044), equation 14. Padding steps and captions that
    are padding altogether don't count, nor do regions that a mask in `batch.inputs` hides. One forced pass serves both
    objectives; the sum is taken in float32 at least.

    Args:
        base: the objective that teaches the words, `CrossEntropy()` for instance.
        factor: how much the term counts in the loss, 0..1000; the paper's lambda.

    Raises:
        ArgumentError: when called: a decoder without attention.
    """

    def __init__(self, base: ForcedObjective, factor: float = 1.0) -> None:
        """Keep the settings."""
        self.base = base
        self.factor = number("factor", factor, 0.0, 1000.0)

    def weights(self, batch: Any) -> dict[str, float]:
        """The base's, and the number of captions of at least one word."""
        return {**self.base.weights(batch), "doubly_stochastic": float((batch.weights > 0).any(1).sum())}

    def __call__(self, captioner: Any, batch: Any) -> dict[str, Term]:
        """The terms of one forced pass with attention."""
        return self.terms(captioner(batch.inputs, batch.tokens, trunk=batch.trunk, attention=True), batch)

    def terms(self, forced: Forced, batch: Any) -> dict[str, Term]:
        """Attention (R, T, L) and weights (R, T)."""
        if forced.attention is None:
            raise ArgumentError(
                "doubly stochastic attention needs a decoder that returns attention maps, such as attention-lstm.v1; "
                "this one returned none"
            )
        real = batch.weights > 0
        seen = (wide(forced.attention) * real.unsqueeze(2)).sum(1)  # (R, L)
        each = (1 - seen).square() * real.any(1, keepdim=True)
        if isinstance(batch.inputs, Features) and batch.inputs.mask is not None:
            mask = batch.inputs.mask
            each = each * mask.repeat_interleave(each.shape[0] // mask.shape[0], dim=0)
        term = Term(each.sum(), self.weights(batch)["doubly_stochastic"], self.factor)
        return {**self.base.terms(forced, batch), "doubly_stochastic": term}


def wide(values: Tensor) -> Tensor:
    """In float32 at least."""
    return values if values.dtype == torch.float64 else values.float()
