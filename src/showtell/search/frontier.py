"""What the beam searches share: ranking that doesn't depend on luck, finished captions, prefixes that live on."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checks import choice, number, whole
from ..rows import Rows, select_rows
from .base import Hypotheses, looking_is_free

__all__ = [
    "Live",
    "Penalty",
    "Picked",
    "begin",
    "best",
    "check_options",
    "follow",
    "going",
    "merge",
    "norm",
    "pick",
    "set_aside",
    "settle",
    "tidy",
]

_PIECE = 64  # words; a row of 10,000 is read once in pieces, which is quick, and 7 of them are sorted

Penalty = Literal["power", "gnmt"]
"""What a caption's log-probability is divided by: "power" length ** p, "gnmt" ((5 + length) / 6) ** p."""


class Live(NamedTuple):
    """Unfinished prefixes: prefix (R, t) with the start token, history (R, t - 1) their log-probabilities, state."""

    prefix: Tensor
    history: Tensor
    state: Rows


class Picked(NamedTuple):
    """Some continuations of each image's prefixes, best first; each tensor (N, M).

    row: the prefix's number among all R; word: what follows; value: the word's log-probability; sums: those of the
    whole caption, -inf where there is none; ranks: what the order is by.
    """

    row: Tensor
    word: Tensor
    value: Tensor
    sums: Tensor
    ranks: Tensor


def check_options(search: Any) -> None:
    """Refuse a size, max_length, length_penalty or penalty that makes no sense."""
    name = type(search).__name__
    whole(f"{name} size", search.size, 1, 1000)
    whole(f"{name} max_length", search.max_length, 1, 1000)
    object.__setattr__(search, "length_penalty", number(f"{name} length_penalty", search.length_penalty, 0.0, 5.0))
    choice(f"{name} penalty", search.penalty, ("power", "gnmt"))


def norm(length: int, length_penalty: float, penalty: Penalty) -> float:
    """What the log-probability of a caption of `length` tokens is divided by; it never falls with the length."""
    return math.pow(length if penalty == "power" else (5 + length) / 6, length_penalty)


def begin(rows: int, start: int, state: Rows, device: torch.device | str) -> Live:
    """R prefixes of the start token alone."""
    prefix = torch.full((rows, 1), start, dtype=torch.int64, device=device)
    return Live(prefix, torch.zeros(rows, 0, device=device), state)


def pick(sums: Tensor, ranks: Tensor, values: Tensor, words: Tensor, first_rows: Tensor, count: int) -> Picked:
    """The best `count` of each image's continuations.

    values and words (..., M): what each prefix may go on with, best first; sums and ranks (N, K * M): of whole
    captions; first_rows (N, 1): the number of each image's first row. Equal ranks: the better prefix, then the
    better word.
    """
    ranks, index = best(ranks, count)
    images, width = sums.shape[0], words.shape[-1]
    word, value = (t.reshape(images, -1).gather(1, index) for t in (words, values))
    return Picked(first_rows + index // width, word, value, sums.gather(1, index), ranks)


def going(picked: Picked, width: int, end: int) -> Picked:
    """The first `width` continuations of each image that don't end; sums -inf where there are fewer."""
    ranks, slot = best(picked.ranks.masked_fill(picked.word == end, -math.inf), width)
    row, word, value, sums = (t.gather(1, slot) for t in picked[:4])
    return Picked(row, word, value, sums.masked_fill(ranks == -math.inf, -math.inf), ranks)


def follow(live: Live, picked: Picked) -> Live:
    """Continuations as the prefixes of the next step, N * M rows."""
    kept = picked.row.flatten()
    prefix = torch.cat([live.prefix[kept], picked.word.reshape(-1, 1)], dim=1)
    history = torch.cat([live.history[kept], picked.value.reshape(-1, 1)], dim=1)
    return Live(prefix, history, select_rows(live.state, kept))


def set_aside(finished: Hypotheses, live: Live, picked: Picked, end: int, divisor: float) -> Hypotheses:
    """The best K of the finished captions and of the K continuations that end; at the length limit, of all K."""
    size, max_length = finished.tokens.shape[1:]
    row, word, value, sums = (t[:, :size] for t in picked[:4])
    length = live.prefix.shape[1]
    if length < max_length:
        sums = sums.where(word == end, -math.inf)

    def extended(past: Tensor, last: Tensor, padding: float) -> Tensor:
        whole_rows = torch.cat([past[row], last.unsqueeze(2)], dim=2)
        return F.pad(whole_rows, (0, max_length - whole_rows.shape[2]), value=padding)

    return merge(
        finished,
        Hypotheses(
            tokens=extended(live.prefix[:, 1:], word, end),
            lengths=torch.full_like(word, length),
            token_log_probs=extended(live.history, value, 0.0),
            log_probs=sums,
            scores=sums / divisor,
        ),
        size,
    )


def settle(totals: Tensor, finished: Hypotheses, divisor: float) -> Tensor:
    """The sums of live prefixes (N, M), -inf where an image is done: nothing beats the worst of its K captions.

    Log-probabilities only fall, so the best that a prefix can still reach is its present sum at full length.
    """
    done = finished.scores[:, -1:] >= totals.amax(1, keepdim=True) / divisor
    return totals.masked_fill(done, -math.inf)


def merge(first: Hypotheses, second: Hypotheses, size: int) -> Hypotheses:
    """The best `size` captions of both; equal scores: the first's, then the earlier one."""
    scores, index = best(torch.cat([first.scores, second.scores], dim=1), size)
    wide = index.unsqueeze(2).expand(-1, -1, first.tokens.shape[2])
    both = [torch.cat(pair, dim=1) for pair in zip(first[:4], second[:4], strict=True)]
    tokens, lengths, token_log_probs, log_probs = (t.gather(1, wide if t.ndim == 3 else index) for t in both)
    return Hypotheses(tokens, lengths, token_log_probs, log_probs, scores)


def best(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of each row (or all), best first; equal ones: lower index first.

    (rows, M) -> values and index, each (rows, min(count, M)). `topk` alone picks among equal values as it likes.
    Equal values of -inf stay as they come.
    """
    width = values.shape[1]
    count = min(count, width)
    top, index = _top(values, min(count + 1, width))
    equal = (top[:, 1:] == top[:, :-1]) & (top[:, 1:] > -math.inf)
    top, index = top[:, :count], index[:, :count]
    if looking_is_free(values.device):
        unsure = equal.any(dim=1)
        if not bool(unsure.all()):  # most often no row at all
            some = unsure.nonzero().squeeze(1)
            if len(some):
                top[some], index[some] = best(values[some], count)
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


def _top(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`topk`; of a wide row on a CPU in two goes, three times as fast: the best pieces, then the best in them.

    No value of another piece can be among the best, as `count` pieces hold a value that is at least as high.
    """
    width = values.shape[1]
    pieces = width // _PIECE
    if not looking_is_free(values.device) or pieces < 4 * count:
        return values.topk(count, dim=1)
    cut = pieces * _PIECE
    body, rest = values[:, :cut].view(-1, pieces, _PIECE), values[:, cut:]
    piece = body.amax(2).topk(count, dim=1).indices
    held = body.gather(1, piece.unsqueeze(2).expand(-1, -1, _PIECE)).flatten(1)
    top, place = torch.cat([held, rest], dim=1).topk(count, dim=1)
    first = torch.cat([piece * _PIECE, piece.new_full((len(piece), 1), cut)], dim=1)  # what each piece begins with
    slot = (place // _PIECE).clamp(max=count)  # the rest counts as one piece
    return top, first.gather(1, slot) + place - slot * _PIECE


def tidy(found: Hypotheses, end: int) -> Hypotheses:
    """Blank the hypotheses that don't exist."""
    none = found.scores == -math.inf
    return Hypotheses(
        tokens=found.tokens.masked_fill(none.unsqueeze(2), end),
        lengths=found.lengths.masked_fill(none, 0),
        token_log_probs=found.token_log_probs.masked_fill(none.unsqueeze(2), 0.0),
        log_probs=found.log_probs.masked_fill(none, -math.inf),
        scores=found.scores,
    )
