"""The likeliest next word, every time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import whole
from ..rows import Rows
from .base import Chosen, Hypotheses, Step, absent, check_start
from .walk import collect, walk

__all__ = ["Greedy"]


@dataclass(frozen=True)
class Greedy:
    """Take the likeliest next word until the end token or `max_length`.

    Example:
        >>> import torch
        >>> bigram = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.1, 0.9], [0.0, 0.8, 0.2]]).log()  # 1 starts, 0 ends
        >>> found = Greedy(max_length=3)(lambda prefix, state: (bigram[prefix[:, -1]], state), {},
        ...                              images=1, start=1, end=0)
        >>> found.tokens[0, 0].tolist()
        [2, 1, 2]

    Args:
        max_length: the most tokens, the end token included; 1..1000.

    Raises:
        ArgumentError: an option out of range; or, when called, a step or a state of the wrong shape.
        RunError: when called: a step returned NaN or values above 0, or allowed no word at all.
    """

    max_length: int = 20

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        whole("Greedy max_length", self.max_length, 1, 1000)

    def __call__(
        self, step: Step, state: Rows, *, images: int, start: int, end: int, device: torch.device | str = "cpu"
    ) -> Hypotheses:
        """Search from a state of N = `images` rows; K is 1. Equal words: the lower id."""
        chosen = list(self.steps(step, state, images=images, start=start, end=end, device=device))
        if not chosen:
            return absent(images, 1, self.max_length, end, device)
        return collect(chosen, images, self.max_length, end)

    def steps(
        self, step: Step, state: Rows, *, images: int, start: int, end: int, device: torch.device | str = "cpu"
    ) -> Iterator[Chosen]:
        """Yield each step's words as they are chosen, until every image has ended.

        On an accelerator, which is asked only every few steps, a few more steps of end tokens may follow.
        """
        check_start(state, images, start, end)
        if images == 0:
            return iter(())
        size = self.max_length
        return walk(
            _likeliest, step, state, images=images, rows=images, max_length=size, start=start, end=end, device=device
        )


def _likeliest(log_probs: Tensor, _: int) -> tuple[Tensor, Tensor, Tensor]:
    values, words = log_probs.max(dim=1)
    return values, words, values
