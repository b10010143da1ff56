"""Beam search that must say certain words: a bank of prefixes for each subset of demands that is satisfied.

Image n has up to C demands, each a set of words of which one must appear. Bank b of its 2 ** C banks holds the best
K prefixes that satisfy just the demands whose bits are set in b, so that good prefixes which have said little do not
crowd out those which have said more (Post and Vilar 2018, arXiv:1804.06609, with subsets in place of counts). A
caption ends in the last bank only. Row r of N * B * K belongs to image r // (B * K).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import whole
from ..errors import ArgumentError, RunError
from ..rows import Rows, repeat_rows
from .base import ROUNDING, Hypotheses, Step, absent, call_step, check_start, raise_for, time_to_look
from .frontier import Penalty, Picked, advance, begin, best, norm, set_aside, settle, tidy

__all__ = ["MAX_DEMANDS", "Demands", "Force", "check_force", "demands_of", "fewest_words", "forced_beam"]

MAX_DEMANDS = 6
"""Demands an image; the rows of a search double with each."""

Force = Sequence[Sequence[Sequence[int]]]
"""For each image its demands, each the ids of which one must appear."""


class Demands(NamedTuple):
    """Demands as tensors.

    words (N, F) int64: the ids that satisfy something, each once, filled up with -1; bits (N, F): which demands each
    satisfies; start (N,): the bank of the empty prefix, where the demands that an image hasn't count as satisfied.
    banks: B.
    """

    words: Tensor
    bits: Tensor
    start: Tensor
    banks: int


def check_force(force: Any, images: int, end: int, max_length: int) -> list[list[list[int]]]:
    """The demands of each image as sorted lists of ids.

    Raises ArgumentError for what can't be satisfied whatever the model says: an empty demand, the end token, more
    words than `max_length`; and for more than `MAX_DEMANDS` demands.
    """
    if not _listed(force) or len(force) != images:
        given = f"{len(force)} lists" if _listed(force) else repr(force)[:100]
        raise ArgumentError(f"force takes a list of demands for each of {images} images, not {given}")
    checked: list[list[list[int]]] = []
    for image, demands in enumerate(force):
        if not _listed(demands) or not all(map(_listed, demands)):
            raise ArgumentError(
                f"image {image}: a demand is a list of ids of which one must appear, such as [[5], [7, 9]] for two; "
                f"given: {demands!r:.100}"
            )
        own = [sorted({whole("a forced word", one, 0, 2_000_000) for one in demand}) for demand in demands]
        if len(own) > MAX_DEMANDS:
            raise ArgumentError(
                f"image {image}: {len(own)} demands; a beam search takes at most {MAX_DEMANDS}, as its work doubles "
                "with each"
            )
        if not all(own):
            raise ArgumentError(f"image {image}: a demand without words can't be satisfied; leave it out")
        if any(end in demand for demand in own):
            raise ArgumentError(f"image {image}: the end token {end} ends a caption and can't be a forced word")
        needed = fewest_words(own)
        if needed > max_length:
            raise ArgumentError(
                f"image {image}: its demands take {needed} words at least and captions have at most {max_length}; "
                "raise max_length or demand less"
            )
        checked.append(own)
    return checked


def _listed(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset)


def fewest_words(demands: Sequence[Sequence[int]]) -> int:
    """How many words it takes at least to satisfy all demands.

    Example:
        >>> fewest_words([[5], [5, 6], [7]])
        2
    """
    every = {word for demand in demands for word in demand}
    masks = {sum(1 << i for i, demand in enumerate(demands) if word in demand) for word in every}
    full, reached, words = (1 << len(demands)) - 1, {0}, 0
    while full not in reached:
        reached |= {one | mask for one in reached for mask in masks}
        words += 1
    return words


def demands_of(force: Sequence[Sequence[Sequence[int]]], device: torch.device | str) -> Demands:
    """Checked demands as tensors."""
    most = max((len(demands) for demands in force), default=0)
    tables = [
        {word: sum(1 << i for i, d in enumerate(demands) if word in d) for demand in demands for word in demand}
        for demands in force
    ]
    width = max(map(len, tables), default=0)
    filled = [[*table.items(), *[(-1, 0)] * (width - len(table))] for table in tables]
    pairs = torch.tensor(filled, dtype=torch.int64).view(len(force), width, 2).to(device)
    start = torch.tensor([(1 << most) - (1 << len(demands)) for demands in force], dtype=torch.int64, device=device)
    return Demands(pairs[:, :, 0], pairs[:, :, 1], start, 1 << most)


def forced_beam(
    step: Step,
    state: Rows,
    demands: Demands,
    *,
    size: int,
    max_length: int,
    length_penalty: float,
    penalty: Penalty,
    start: int,
    end: int,
    device: torch.device | str,
) -> Hypotheses:
    """Search from a state of N rows, at least one, for K = `size` captions an image that satisfy its demands.

    Raises RunError as `Beam` does, and where no caption satisfied all the demands because words were forbidden.
    """
    images, banks = demands.start.shape[0], demands.banks
    check_start(state, images, start, end)
    per_image = banks * size
    finished = absent(images, size, max_length, end, device)
    live = begin(images * per_image, start, repeat_rows(state, per_image), device)
    totals = torch.full((images, banks, size), -math.inf, device=device)
    totals[:, :, 0] = totals[:, :, 0].masked_fill(_numbers(banks, device) == demands.start.unsqueeze(1), 0.0)
    wrong = torch.zeros(images, dtype=torch.bool, device=device)
    for length in range(1, max_length + 1):
        log_probs, state = call_step(step, live.prefix, live.state, end)
        live = live._replace(state=state)
        alive = totals.reshape(-1) > -math.inf
        wrong = wrong | (alive & ~(log_probs.amax(1) <= ROUNDING)).view(images, -1).any(1)
        picked = _candidates(log_probs, totals, demands, end)
        last = Picked(*(t[:, -1] for t in picked))
        finished = set_aside(finished, live, last, end, norm(length, length_penalty, penalty))
        if length == max_length:
            break
        flat = Picked(*(t.flatten(0, 1) for t in picked))  # each bank as if an image of its own
        live, totals = advance(live, flat, size, end)
        totals = settle(totals.view(images, -1), finished, norm(max_length, length_penalty, penalty))
        totals = totals.view(images, banks, size)
        if time_to_look(length, live.prefix.device) and not bool((totals > -math.inf).any()):
            break
    none = finished.scores[:, 0] == -math.inf
    raise_for(wrong, torch.zeros_like(none))
    if bool(none.any()):
        raise RunError(
            f"image {int(none.nonzero()[0, 0])}: no caption of at most {max_length} tokens says every forced word "
            "without one that is forbidden; forbid fewer words, force fewer or raise max_length"
        )
    return tidy(finished, end)


def _candidates(log_probs: Tensor, totals: Tensor, demands: Demands, end: int) -> Picked:
    """The best 2K continuations in each bank, each tensor (N, B, 2K); the sums of those that aren't there are -inf."""
    images, banks, size = totals.shape
    count = 2 * size
    by_image = log_probs.reshape(images, banks * size, -1)
    exists = (demands.words >= 0).unsqueeze(1)
    wanted = demands.words.clamp(min=0).unsqueeze(1).expand(-1, banks * size, -1)  # (N, B * K, F)
    forced = by_image.gather(2, wanted).masked_fill(~exists, -math.inf)

    # Words that satisfy nothing leave the prefix in its bank; the end is open to the last bank only.
    taken = torch.zeros_like(by_image[:, 0], dtype=torch.int64)
    taken = taken.scatter_add(1, wanted[:, 0], exists[:, 0].long().expand_as(wanted[:, 0])).unsqueeze(1)
    others = by_image.masked_fill(taken > 0, -math.inf).view(images, banks, size, -1)
    others[:, :-1, :, end] = -math.inf
    values, words = best(others.flatten(0, 2), count)
    width = values.shape[1]
    values, words = (t.view(images, banks * size, width) for t in (values, words))

    values, words = torch.cat([values, forced], dim=2), torch.cat([words, wanted], dim=2)
    bank = _numbers(banks, log_probs.device).repeat_interleave(size).view(1, -1, 1)
    target = torch.cat(
        [bank.expand(images, -1, width), bank | demands.bits.unsqueeze(1).expand(-1, banks * size, -1)], dim=2
    ).flatten(1)
    before = totals.view(images, -1, 1)
    sums = (before + values).masked_fill(before == -math.inf, -math.inf).flatten(1)

    # Sorted by bank and within it by sum, a continuation's place among its bank's is its distance from the first.
    sums, order = sums.sort(dim=1, descending=True, stable=True)
    target, by_bank = target.gather(1, order).sort(dim=1, stable=True)
    order, sums = order.gather(1, by_bank), sums.gather(1, by_bank)
    firsts = torch.searchsorted(target, _numbers(banks, target.device).expand(images, -1).contiguous())
    place = _numbers(target.shape[1], target.device) - firsts.gather(1, target)
    slot = torch.where(place < count, target * count + place, banks * count)

    def laid_out(values: Tensor, padding: float) -> Tensor:
        table = values.new_full((images, banks * count + 1), padding)
        return table.scatter(1, slot, values)[:, :-1].view(images, banks, count)

    row = _numbers(images, target.device).unsqueeze(1) * (banks * size) + order // values.shape[2]
    word, value = words.flatten(1).gather(1, order), values.flatten(1).gather(1, order)
    sums = laid_out(sums, -math.inf)
    return Picked(laid_out(row, 0), laid_out(word, end), laid_out(value, 0.0), sums, sums)


def _numbers(count: int, device: torch.device | str) -> Tensor:
    return torch.arange(count, device=device)
