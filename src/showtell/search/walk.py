"""One word a row at each step, until every row has ended: what `Greedy` and `Sample` share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..rows import Rows
from .base import ROUNDING, Chosen, Hypotheses, Step, call_step, raise_for, time_to_look

__all__ = ["collect", "walk"]

Choose = Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor]]
"""(log-probabilities (R, V), steps before this one) -> the highest, the chosen words and their own, each (R,)."""


def walk(
    choose: Choose,
    step: Step,
    state: Rows,
    *,
    images: int,
    rows: int,
    max_length: int,
    start: int,
    end: int,
    device: torch.device | str,
) -> Iterator[Chosen]:
    """Yield each step's words as they are chosen: R = `rows`, a multiple of the images, at least one each.

    Raises RunError for NaN and values above 0, and where no word is allowed, on an accelerator a few steps later.
    """
    prefix = torch.full((rows, 1), start, dtype=torch.int64, device=device)
    live = torch.ones(rows, dtype=torch.bool, device=device)
    wrong, stuck = ~live, ~live
    for length in range(1, max_length + 1):
        log_probs, state = call_step(step, prefix, state, end)
        highest, words, values = choose(log_probs, length - 1)
        wrong = wrong | (live & ~(highest <= ROUNDING))
        stuck = stuck | (live & (highest == -math.inf))
        look = length == max_length or time_to_look(length, prefix.device)
        if look:
            raise_for(wrong.view(images, -1).any(1), stuck.view(images, -1).any(1))
        words = words.where(live, end)
        yield Chosen(words, values.where(live, 0.0))
        live = live & (words != end)
        if length == max_length or (look and not bool(live.any())):
            return
        prefix = torch.cat([prefix, words.unsqueeze(1)], dim=1)


def collect(chosen: Sequence[Chosen], images: int, max_length: int, end: int) -> Hypotheses:
    """What `walk` yielded as K hypotheses of each image, in the order of their rows; at least one step."""
    unused = max_length - len(chosen)
    tokens = F.pad(torch.stack([c.tokens for c in chosen], dim=1), (0, unused), value=end)
    token_log_probs = F.pad(torch.stack([c.log_probs for c in chosen], dim=1), (0, unused))
    ended = tokens == end
    lengths = (~ended).sum(1) + ended.any(1)
    log_probs = torch.zeros_like(token_log_probs[:, 0])
    for one in chosen:  # in this order, so that the sum equals the beam's to the bit
        log_probs = log_probs + one.log_probs
    found = Hypotheses(tokens, lengths, token_log_probs, log_probs, log_probs)
    return Hypotheses(*(t.view(images, -1, *t.shape[1:]) for t in found))
