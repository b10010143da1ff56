"""The likeliest next word, every time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..checks import whole
from ..rows import Rows
from .base import ROUNDING, Chosen, Hypotheses, Step, absent, call_step, check_start, raise_for, time_to_look

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
        unused = self.max_length - len(chosen)
        tokens = F.pad(torch.stack([c.tokens for c in chosen], dim=1), (0, unused), value=end)
        token_log_probs = F.pad(torch.stack([c.log_probs for c in chosen], dim=1), (0, unused))
        ended = tokens == end
        lengths = (~ended).sum(1) + ended.any(1)
        log_probs = torch.zeros_like(token_log_probs[:, 0])
        for one in chosen:  # in this order, so that the sum equals the beam's to the bit
            log_probs = log_probs + one.log_probs
        first = Hypotheses(tokens, lengths, token_log_probs, log_probs, log_probs)
        return Hypotheses(*(t.unsqueeze(1) for t in first))

    def steps(
        self, step: Step, state: Rows, *, images: int, start: int, end: int, device: torch.device | str = "cpu"
    ) -> Iterator[Chosen]:
        """Yield each step's words as they are chosen, until every image has ended.

        On an accelerator, which is asked only every few steps, a few more steps of end tokens may follow.
        """
        check_start(state, images, start, end)
        if images == 0:
            return
        prefix = torch.full((images, 1), start, dtype=torch.int64, device=device)
        live = torch.ones(images, dtype=torch.bool, device=device)
        wrong, stuck = ~live, ~live
        for length in range(1, self.max_length + 1):
            log_probs, state = call_step(step, prefix, state, end)
            values, words = log_probs.max(dim=1)
            wrong = wrong | (live & ~(values <= ROUNDING))
            stuck = stuck | (live & (values == -math.inf))
            look = length == self.max_length or time_to_look(length, prefix.device)
            if look:
                raise_for(wrong, stuck)
            words = words.where(live, end)
            yield Chosen(words, values.where(live, 0.0))
            live = live & (words != end)
            if look and not bool(live.any()):
                return
            prefix = torch.cat([prefix, words.unsqueeze(1)], dim=1)
