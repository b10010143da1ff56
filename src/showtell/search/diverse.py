"""Beam search in groups that avoid each other's words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import number, whole
from ..errors import ArgumentError
from ..rows import Rows, repeat_rows
from .base import ROUNDING, Hypotheses, Step, absent, call_step, check_start, raise_for, time_to_look
from .frontier import Live, Penalty, advance, begin, best, check_options, merge, norm, pick, set_aside, settle, tidy

__all__ = ["DiverseBeam"]


@dataclass(frozen=True)
class DiverseBeam:
    """Several beam searches side by side, each avoiding the words that those before it chose at the same step.

    Example:
        >>> import torch
        >>> bigram = torch.tensor([[0.0] * 4, [0.0, 0.0, 0.6, 0.4], [0.9, 0.0, 0.1, 0.0], [0.9, 0.0, 0.0, 0.1]]).log()
        >>> found = DiverseBeam(size=2, groups=2, diversity=1.0, max_length=3)(
        ...     lambda prefix, state: (bigram[prefix[:, -1]], state), {}, images=1, start=1, end=0)
        >>> found.tokens[0].tolist(), [round(p, 2) for p in found.log_probs[0].exp().tolist()]
        ([[2, 0, 0], [3, 0, 0]], [0.54, 0.36])

    This is diverse beam search with Hamming diversity (Vijayakumar et al. 2016, arXiv:1610.02424). The groups take
    their step one after the other; a group ranks its continuations by their log-probability less `diversity` times the
    number of prefixes of earlier groups that have just gone on with the same word (ends don't count), and is otherwise
    a `Beam` of size / groups prefixes. The penalty decides and is forgotten: `log_prob` stays the model's own and
    scores are as `Beam`'s. A group is done when it has its captions and no live prefix can reach the worst of them;
    from then on no one avoids it. The groups' captions are returned as one list, best first; two groups may find the
    same one.

    Args:
        size: captions an image, 1..1000.
        groups: a divisor of `size`; with 1 it is `Beam`.
        diversity: 0 (all groups find the same) to 1000, in nats; 0.2 to 1 is usual.
        max_length: the most tokens, the end token included; 1..1000.
        length_penalty: as for `Beam`.
        penalty: as for `Beam`.

    Raises:
        ArgumentError: an option out of range; or, when called, a step or a state of the wrong shape.
        RunError: when called: a step returned NaN or values above 0, or every word was forbidden to an image before
            it had a caption.
    """

    size: int = 6
    groups: int = 3
    diversity: float = 0.5
    max_length: int = 20
    length_penalty: float = 0.0
    penalty: Penalty = "power"

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        check_options(self)
        whole("DiverseBeam groups", self.groups, 1, self.size)
        if self.size % self.groups:
            raise ArgumentError(
                f"DiverseBeam size must be a multiple of its groups, not {self.size} captions in {self.groups} groups"
            )
        object.__setattr__(self, "diversity", number("DiverseBeam diversity", self.diversity, 0.0, 1000.0))

    def __call__(
        self, step: Step, state: Rows, *, images: int, start: int, end: int, device: torch.device | str = "cpu"
    ) -> Hypotheses:
        """Search from a state of N = `images` rows; K is `size`."""
        check_start(state, images, start, end)
        if images == 0:
            return absent(images, self.size, self.max_length, end, device)
        width = self.size // self.groups
        finished = [absent(images, width, self.max_length, end, device) for _ in range(self.groups)]
        live = begin(images * self.size, start, repeat_rows(state, self.size), device)
        totals = torch.full((images, self.groups, width), -math.inf, device=device)  # of live prefixes; -inf: none
        totals[:, :, 0] = 0.0
        first_rows = torch.arange(images, device=device).unsqueeze(1) * self.size
        wrong = torch.zeros(images, dtype=torch.bool, device=device)
        longest = norm(self.max_length, self.length_penalty, self.penalty)
        for length in range(1, self.max_length + 1):
            log_probs, state = call_step(step, live.prefix, live.state, end)
            live = live._replace(state=state)
            alive = totals.reshape(-1) > -math.inf
            wrong = wrong | (alive & ~(log_probs.amax(1) <= ROUNDING)).view(images, -1).any(1)
            log_probs = log_probs.reshape(images, self.groups, width, -1)
            said = torch.zeros_like(log_probs[:, 0, 0])  # (N, V): how many live prefixes have just gone on with a word
            sums, next_live = [], []
            for group in range(self.groups):
                own, before = log_probs[:, group], totals[:, group].unsqueeze(2)
                ranked, words = best((own - self.diversity * said.unsqueeze(1)).flatten(0, 1), 2 * width)
                ranked, words = (t.view(images, width, -1) for t in (ranked, words))
                values = own.gather(2, words)
                captions, ranks = (
                    (before + t).masked_fill(before == -math.inf, -math.inf).flatten(1) for t in (values, ranked)
                )
                picked = pick(captions, ranks, values, words, first_rows + group * width, 2 * width)
                scale = norm(length, self.length_penalty, self.penalty)
                finished[group] = set_aside(finished[group], live, picked, end, scale)
                if length < self.max_length:
                    new, total = advance(live, picked, width, end)
                    total = settle(total, finished[group], longest)
                    word = new.prefix[:, -1].view(images, -1)
                    next_live.append(new)
                    sums.append(total)
                else:  # captions cut here are avoided too
                    word = picked.word[:, :width]
                    total = picked.sums[:, :width].masked_fill(word == end, -math.inf)
                said = said.scatter_add(1, word, (total > -math.inf).to(said.dtype))
            if length == self.max_length:
                break
            live, totals = _side_by_side(next_live, images), torch.stack(sums, dim=1)
            if time_to_look(length, live.prefix.device) and not bool((totals > -math.inf).any()):
                break
        found = finished[0]
        for other in finished[1:]:
            found = merge(found, other, found.scores.shape[1] + width)
        raise_for(wrong, found.scores[:, 0] == -math.inf)
        return tidy(found, end)


def _side_by_side(groups: list[Live], images: int) -> Live:
    """The groups' rows, each of N * K, as rows of N * groups * K."""

    def joined(parts: list[Tensor]) -> Tensor:
        return torch.stack([t.view(images, -1, *t.shape[1:]) for t in parts], dim=1).flatten(0, 2)

    prefix, history = joined([g.prefix for g in groups]), joined([g.history for g in groups])
    return Live(prefix, history, {name: joined([g.state[name] for g in groups]) for name in groups[0].state})
