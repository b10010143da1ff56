"""Batched beam search."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..errors import ArgumentError
from ..rows import Rows, repeat_rows
from .banks import Force, check_force, demands_of, forced_beam
from .base import ROUNDING, Hypotheses, Search, Step, absent, call_step, check_start, raise_for, time_to_look
from .frontier import Penalty, advance, begin, best, check_options, norm, pick, set_aside, settle, tidy

__all__ = ["Beam", "check_takes_force"]


@dataclass(frozen=True)
class Beam:
    """Keep the `size` best prefixes of each image at every step; return its `size` best captions.

    Example:
        >>> import torch
        >>> bigram = torch.tensor([[0.0, 0.0, 0.0], [0.4, 0.0, 0.6], [0.5, 0.5, 0.0]]).log()  # 1 starts, 0 ends
        >>> found = Beam(size=2, max_length=3)(lambda prefix, state: (bigram[prefix[:, -1]], state), {},
        ...                                    images=1, start=1, end=0)
        >>> found.tokens[0].tolist(), [round(p, 2) for p in found.log_probs[0].exp().tolist()]
        ([[0, 0, 0], [2, 0, 0]], [0.4, 0.3])

    A caption is a run of words closed by the end token, or one of exactly `max_length` tokens left open; its score
    is log_prob / length ** length_penalty, or log_prob / ((5 + length) / 6) ** length_penalty with the penalty "gnmt"
    (Wu et al. 2016, arXiv:1609.08144). Of each step's 2 * size best continuations, those among the first `size`
    that end are set aside as finished (all of the first `size` at the length limit), and the best `size` that don't
    end live on. An image is done when it has `size` finished captions and no live prefix can reach the worst of
    them; images don't influence each other. With size 1 and no length penalty it finds what `Greedy` finds. Equal
    scores: the finished one first, then the better prefix, then the lower word id.

    Args:
        size: prefixes and captions an image, 1..1000.
        max_length: the most tokens, the end token included; 1..1000.
        length_penalty: 0 (sum of log-probabilities, prefers short captions) to 5; 1 with "power" is the mean a token.
        penalty: "power" or "gnmt".

    Raises:
        ArgumentError: an option out of range; or, when called, a step or a state of the wrong shape.
        RunError: when called: a step returned NaN or values above 0, or every word was forbidden to an image before
            it had a caption.
    """

    size: int = 3
    max_length: int = 20
    length_penalty: float = 0.0
    penalty: Penalty = "power"

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        check_options(self)

    def __call__(
        self,
        step: Step,
        state: Rows,
        *,
        images: int,
        start: int,
        end: int,
        device: torch.device | str = "cpu",
        force: Force | None = None,
    ) -> Hypotheses:
        """Search from a state of N = `images` rows; K is `size`.

        `force`: for each image its demands, at most 6, each the ids of which one must appear: [[[5], [7, 9]]] asks
        one image for the word 5 and for 7 or 9. Every caption satisfies its image's demands; each subset of them
        keeps `size` prefixes of its own. Raises ArgumentError for demands that can't be satisfied, RunError where the
        forbidden words leave no way to satisfy them.
        """
        check_start(state, images, start, end)
        demands = None if force is None else check_force(force, images, end, self.max_length)
        finished = absent(images, self.size, self.max_length, end, device)
        if images == 0:
            return finished
        if demands is not None and any(demands):
            return forced_beam(
                step,
                state,
                demands_of(demands, device),
                size=self.size,
                max_length=self.max_length,
                length_penalty=self.length_penalty,
                penalty=self.penalty,
                start=start,
                end=end,
                device=device,
            )
        live = begin(images * self.size, start, repeat_rows(state, self.size), device)
        totals = torch.full((images, self.size), -math.inf, device=device)  # of live prefixes; -inf: none here
        totals[:, 0] = 0.0
        first_rows = torch.arange(images, device=device).unsqueeze(1) * self.size
        wrong = torch.zeros(images, dtype=torch.bool, device=device)
        for length in range(1, self.max_length + 1):
            log_probs, state = call_step(step, live.prefix, live.state, end)
            live = live._replace(state=state)
            values, words = best(log_probs, 2 * self.size)
            dead = totals.reshape(-1, 1) == -math.inf
            wrong = wrong | (~dead & ~(values[:, :1] <= ROUNDING)).reshape(images, -1).any(1)
            sums = (totals.reshape(-1, 1) + values).masked_fill(dead, -math.inf).reshape(images, -1)
            picked = pick(sums, sums, values, words, first_rows, 2 * self.size)
            finished = set_aside(finished, live, picked, end, norm(length, self.length_penalty, self.penalty))
            if length == self.max_length:
                break
            live, totals = advance(live, picked, self.size, end)
            totals = settle(totals, finished, norm(self.max_length, self.length_penalty, self.penalty))
            if time_to_look(length, live.prefix.device) and not bool((totals > -math.inf).any()):
                break
        raise_for(wrong, finished.scores[:, 0] == -math.inf)
        return tidy(finished, end)


def check_takes_force(search: Search) -> None:
    """Refuse a search that can't promise forced words."""
    if not isinstance(search, Beam):
        raise ArgumentError(
            f"forced words need Beam, which keeps room for them, not {type(search).__name__}; "
            'use search=Beam(size=5), or "beam:5"'
        )
