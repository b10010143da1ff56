"""Next-word training prefix by prefix, as systems do that have no teacher forcing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..protocols import Forced
from .objectives import DoublyStochastic, ForcedObjective, Term

__all__ = ["Prefixes"]


class Prefixes:
    """Another objective, each next word predicted in a row of its own from the words before it.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from showtell.testing import tiny_captioner
        >>> from showtell.training import CrossEntropy
        >>> batch = SimpleNamespace(
        ...     inputs=torch.rand(1, 3, 32, 32), tokens=torch.tensor([[1, 4, 5]]), targets=torch.tensor([[4, 5, 2]]),
        ...     weights=torch.ones(1, 3), trunk=False,
        ... )
        >>> captioner = tiny_captioner().eval()
        >>> objectives = CrossEntropy(), Prefixes(CrossEntropy())
        >>> once, by_prefix = (each(captioner, batch)["cross_entropy"].sum.item() for each in objectives)
        >>> abs(once - by_prefix) < 1e-4
        True

    A caption of T targets becomes T rows: the start token, the start token and one word, and so on; of each row the
    last prediction alone counts. The loss and its gradient are those of teacher forcing wherever the decoder reads
    no word that is still to come (all of showtell's) and nothing is drawn; dropout draws anew for each prefix. A photo
    is encoded once, so a batch norm in the encoder sees each photo once too, not once a word.

    It takes about T times the time and memory of teacher forcing: it is here to compare, not to recommend.

    Args:
        base: the objective that looks at the predictions, `CrossEntropy()` for instance.
    """

    def __init__(self, base: ForcedObjective) -> None:
        """Keep the objective."""
        self.base = base

    def weights(self, batch: Any) -> dict[str, float]:
        """The base's."""
        return self.base.weights(batch)

    def __call__(self, captioner: Any, batch: Any) -> dict[str, Term]:
        """The base's terms of one pass over all prefixes."""
        rows, steps = batch.tokens.shape
        # Row (r, t) is row r's tokens up to t, the last one repeated to the end: no prediction there is read.
        last = torch.arange(steps, device=batch.tokens.device)
        shown = torch.minimum(last.unsqueeze(0), last.unsqueeze(1))  # (T, T): of prefix t, the token at each place
        prefixes = batch.tokens[:, shown].view(rows * steps, steps)
        asked = {"attention": True} if isinstance(self.base, DoublyStochastic) else {}
        forced = captioner(batch.inputs, prefixes, trunk=batch.trunk, **asked)
        maps = None if forced.attention is None else _last(forced.attention, rows, steps)
        return self.base.terms(Forced(_last(forced.logits, rows, steps), maps), batch)


def _last(values: Tensor, rows: int, steps: int) -> Tensor:
    """(R * T, T, ...) -> (R, T, ...): of prefix t the value at its own last place, t."""
    each = values.view(rows, steps, steps, -1)
    return each.diagonal(dim1=1, dim2=2).movedim(-1, 1)
