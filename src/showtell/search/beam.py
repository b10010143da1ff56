"""Batched beam search."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checks import number, whole
from ..rows import Rows, repeat_rows, select_rows
from .base import ROUNDING, Hypotheses, Step, absent, call_step, check_start, looking_is_free, raise_for, time_to_look

__all__ = ["Beam"]


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
    is log_prob / length ** length_penalty. Of each step's 2 * size best continuations, those among the first `size`
    that end are set aside as finished (all of the first `size` at the length limit), and the best `size` that don't
    end live on. An image is done when it has `size` finished captions and no live prefix can reach the worst of
    them; images don't influence each other. With size 1 and no length penalty it finds what `Greedy` finds. Equal
    scores: the finished one first, then the better prefix, then the lower word id.

    Args:
        size: prefixes and captions an image, 1..1000.
        max_length: the most tokens, the end token included; 1..1000.
        length_penalty: 0 (sum of log-probabilities, prefers short captions) to 5; 1 is the mean a token.

    Raises:
        ArgumentError: an option out of range; or, when called, a step or a state of the wrong shape.
        RunError: when called: a step returned NaN or values above 0, or every word was forbidden to an image before
            it had a caption.
    """

    size: int = 3
    max_length: int = 20
    length_penalty: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        whole("Beam size", self.size, 1, 1000)
        whole("Beam max_length", self.max_length, 1, 1000)
        object.__setattr__(self, "length_penalty", number("Beam length_penalty", self.length_penalty, 0.0, 5.0))

    def __call__(
        self, step: Step, state: Rows, *, images: int, start: int, end: int, device: torch.device | str = "cpu"
    ) -> Hypotheses:
        """Search from a state of N = `images` rows; K is `size`."""
        check_start(state, images, start, end)
        finished = absent(images, self.size, self.max_length, end, device)
        if images == 0:
            return finished
        state = repeat_rows(state, self.size)
        prefix = torch.full((images * self.size, 1), start, dtype=torch.int64, device=device)
        history = torch.zeros(images * self.size, 0, device=device)  # the log-probability of each prefix token
        totals = torch.full((images, self.size), -math.inf, device=device)  # of live prefixes; -inf: none here
        totals[:, 0] = 0.0
        first_rows = torch.arange(images, device=device).unsqueeze(1) * self.size
        wrong = torch.zeros(images, dtype=torch.bool, device=device)
        for length in range(1, self.max_length + 1):
            log_probs, state = call_step(step, prefix, state, end)
            values, words = _best(log_probs, 2 * self.size)
            dead = totals.reshape(-1, 1) == -math.inf
            wrong = wrong | (~dead & ~(values[:, :1] <= ROUNDING)).reshape(images, -1).any(1)

            candidates = (totals.reshape(-1, 1) + values).masked_fill(dead, -math.inf)
            candidates, picked = _best(candidates.reshape(images, -1), 2 * self.size)
            row = first_rows + picked // values.shape[1]
            word = words.reshape(images, -1).gather(1, picked)
            value = values.reshape(images, -1).gather(1, picked)
            ends = word == end

            top = slice(0, self.size)
            sums = candidates[:, top]
            if length < self.max_length:
                sums = sums.where(ends[:, top], -math.inf)
            new = Hypotheses(
                tokens=self._extended(prefix[:, 1:], row[:, top], word[:, top], end),
                lengths=torch.full_like(word[:, top], length),
                token_log_probs=self._extended(history, row[:, top], value[:, top], 0.0),
                log_probs=sums,
                scores=sums / length**self.length_penalty,
            )
            finished = self._merge(finished, new)
            if length == self.max_length:
                break

            totals, slot = _best(candidates.masked_fill(ends, -math.inf), self.size)
            kept = row.gather(1, slot).flatten()
            prefix = torch.cat([prefix[kept], word.gather(1, slot).reshape(-1, 1)], dim=1)
            history = torch.cat([history[kept], value.gather(1, slot).reshape(-1, 1)], dim=1)
            state = select_rows(state, kept)
            # Log-probabilities only fall, so the best that a prefix can still reach is its present sum at full length.
            reachable = totals[:, 0] / self.max_length**self.length_penalty
            settled = finished.scores[:, -1] >= reachable
            totals = totals.masked_fill(settled.unsqueeze(1), -math.inf)
            if time_to_look(length, prefix.device) and not bool((totals > -math.inf).any()):
                break
        raise_for(wrong, finished.scores[:, 0] == -math.inf)
        return _tidy(finished, end)

    def _extended(self, past: Tensor, row: Tensor, last: Tensor, padding: float) -> Tensor:
        """Rows `row` (N, K) of `past` (R, t), then `last` (N, K), padded to (N, K, T)."""
        whole_rows = torch.cat([past[row], last.unsqueeze(2)], dim=2)
        return F.pad(whole_rows, (0, self.max_length - whole_rows.shape[2]), value=padding)

    def _merge(self, finished: Hypotheses, new: Hypotheses) -> Hypotheses:
        """The best K of 2K finished captions; equal scores: the earlier one."""
        scores, index = _best(torch.cat([finished.scores, new.scores], dim=1), self.size)
        wide = index.unsqueeze(2).expand(-1, -1, self.max_length)
        both = [torch.cat(pair, dim=1) for pair in zip(finished[:4], new[:4], strict=True)]
        tokens, lengths, token_log_probs, log_probs = (t.gather(1, wide if t.ndim == 3 else index) for t in both)
        return Hypotheses(tokens, lengths, token_log_probs, log_probs, scores)


def _best(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of each row (or all), best first; equal ones: lower index first.

    (rows, M) -> values and index, each (rows, min(count, M)). `topk` alone picks among equal values as it likes.
    Equal values of -inf stay as they come.
    """
    width = values.shape[1]
    count = min(count, width)
    top, index = values.topk(min(count + 1, width), dim=1)
    equal = (top[:, 1:] == top[:, :-1]) & (top[:, 1:] > -math.inf)
    top, index = top[:, :count], index[:, :count]
    if looking_is_free(values.device) and not bool(equal.any()):
        return top, index
    index, order = index.sort(dim=1)
    top, order = top.gather(1, order).sort(dim=1, descending=True, stable=True)
    index = index.gather(1, order)
    # Which of the values equal to the last one are in? The lowest, as many as there is room for.
    last = top[:, -1:]
    place = torch.arange(width, device=values.device)
    tied = -torch.where(values == last, -place, -(width - 1)).topk(count, dim=1).values
    above = (top > last).sum(dim=1, keepdim=True)
    slot = torch.arange(count, device=values.device) - above
    return top, torch.where((slot >= 0) & (last > -math.inf), tied.gather(1, slot.clamp(min=0)), index)


def _tidy(found: Hypotheses, end: int) -> Hypotheses:
    """Blank the hypotheses that don't exist."""
    none = found.scores == -math.inf
    return Hypotheses(
        tokens=found.tokens.masked_fill(none.unsqueeze(2), end),
        lengths=found.lengths.masked_fill(none, 0),
        token_log_probs=found.token_log_probs.masked_fill(none.unsqueeze(2), 0.0),
        log_probs=found.log_probs.masked_fill(none, -math.inf),
        scores=found.scores,
    )
