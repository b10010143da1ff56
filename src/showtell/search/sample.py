"""Captions drawn at random, each as often as the model thinks it likely."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import flag, number, whole
from ..errors import ArgumentError
from ..rows import Rows, repeat_rows
from .base import Chosen, Hypotheses, Step, absent, check_start, looking_is_free
from .frontier import best, tidy
from .noise import uniforms
from .walk import collect, walk

__all__ = ["Sample"]

_FEW = 256  # words


@dataclass(frozen=True)
class Sample:
    """Draw `count` captions of each image, word by word, from the model's own distribution or a sharpened one.

    Example:
        >>> import torch
        >>> bigram = torch.tensor([[0.0, 0.0, 0.0], [0.2, 0.0, 0.8], [0.5, 0.0, 0.5]]).log()  # 1 starts, 0 ends
        >>> found = Sample(count=1000, seed=0, max_length=3)(lambda prefix, state: (bigram[prefix[:, -1]], state), {},
        ...                                                  images=1, start=1, end=0)
        >>> round((found.lengths == 2).double().mean().item(), 1)  # 0.8 * 0.5, "a word and the end"
        0.4

    At each step the log-probabilities are divided by `temperature`; then only the `top_k` likeliest words stay in,
    then of these the fewest likeliest whose probabilities sum to `top_p`, then those at least `min_p` times as likely
    as the likeliest; of equal words the lower ids. `log_prob` is the model's own all the same: temperature 1, all
    words. Captions come best first by it, of equal ones the first drawn.

    Args:
        count: captions an image, 1..1000.
        temperature: 0.01..100; below 1 prefers the likely words, above 1 the unlikely ones.
        top_k: 0 (all) to 2,000,000.
        top_p: above 0, at most 1 (all): nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751).
        min_p: 0 (all) to 1.
        seed: a whole number of at least 0 gives the same captions every time, whatever the batch size: chance is a
            function of the seed, the image's position, the sample's number and the step. None: other ones each time.
        distinct: a caption drawn twice counts once; the places of the others hold hypotheses that don't exist.
        max_length: the most tokens, the end token included; 1..1000.

    Raises:
        ArgumentError: an option out of range; or, when called, a step or a state of the wrong shape.
        RunError: when called: a step returned NaN or values above 0, or allowed no word at all.
    """

    count: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    distinct: bool = False
    max_length: int = 20

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        whole("Sample count", self.count, 1, 1000)
        object.__setattr__(self, "temperature", number("Sample temperature", self.temperature, 0.01, 100.0))
        whole("Sample top_k", self.top_k, 0, 2_000_000)
        object.__setattr__(self, "top_p", number("Sample top_p", self.top_p, 0.0, 1.0))
        if self.top_p == 0:
            raise ArgumentError("Sample top_p must be above 0; for the likeliest word alone use Greedy() or top_k=1")
        object.__setattr__(self, "min_p", number("Sample min_p", self.min_p, 0.0, 1.0))
        if self.seed is not None:
            whole("Sample seed", self.seed, 0, 2**63 - 1)
        flag("Sample distinct", self.distinct)
        whole("Sample max_length", self.max_length, 1, 1000)

    def __call__(
        self,
        step: Step,
        state: Rows,
        *,
        images: int,
        start: int,
        end: int,
        device: torch.device | str = "cpu",
        positions: Sequence[int] | None = None,
    ) -> Hypotheses:
        """Search from a state of N = `images` rows; K is `count`. `positions`: the images' numbers, by default 0.."""
        chosen = list(self.steps(step, state, images=images, start=start, end=end, device=device, positions=positions))
        if not chosen:
            return absent(images, self.count, self.max_length, end, device)
        found = collect(chosen, images, self.max_length, end)
        if self.distinct:
            found = found._replace(scores=found.scores.masked_fill(_said_before(found.tokens), -math.inf))
        scores, order = found.scores.sort(dim=1, descending=True, stable=True)
        wide = order.unsqueeze(2).expand_as(found.tokens)
        tokens, lengths, each, sums = (t.gather(1, wide if t.ndim == 3 else order) for t in found[:4])
        return tidy(Hypotheses(tokens, lengths, each, sums, scores), end)

    def steps(
        self,
        step: Step,
        state: Rows,
        *,
        images: int,
        start: int,
        end: int,
        device: torch.device | str = "cpu",
        positions: Sequence[int] | None = None,
    ) -> Iterator[Chosen]:
        """Yield each step's words as they are drawn, of N * count rows, until every one of them has ended.

        Rows of duplicates (`distinct`) are among them, in the order of drawing. On an accelerator, which is asked only
        every few steps, a few more steps of end tokens may follow.
        """
        check_start(state, images, start, end)
        numbers = range(images) if positions is None else positions
        if not isinstance(numbers, Sequence):
            raise ArgumentError(f"positions are a list or a range of whole numbers, one an image, not {numbers!r:.100}")
        if len(numbers) != images:
            raise ArgumentError(f"{len(numbers)} positions for {images} images; give one an image")
        for one in numbers:
            whole("an image's position", one, 0, 2**62)
        if images == 0:
            return iter(())
        seed = secrets.randbits(63) if self.seed is None else self.seed
        chances = uniforms(seed, torch.tensor(numbers, dtype=torch.int64), self.count, self.max_length)
        exact = torch.float32 if torch.device(device).type == "mps" else torch.float64
        chances = chances.flatten(0, 1).to(device, exact, non_blocking=True)

        def choose(log_probs: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
            words = self._drawn(log_probs.to(exact), chances[:, number : number + 1])
            return log_probs.amax(1), words.squeeze(1), log_probs.gather(1, words).squeeze(1)

        return walk(
            choose,
            step,
            repeat_rows(state, self.count),
            images=images,
            rows=images * self.count,
            max_length=self.max_length,
            start=start,
            end=end,
            device=device,
        )

    def _drawn(self, log_probs: Tensor, chance: Tensor) -> Tensor:
        """Log-probabilities (R, V) and numbers in (0, 1), (R, 1) -> a word for each row, (R, 1)."""
        ids: Tensor | None = None
        scaled = log_probs / self.temperature
        if 0 < self.top_k < scaled.shape[1]:
            scaled, ids = best(scaled, self.top_k)
        if self.top_p == 1:
            chances = scaled.softmax(1)
        else:
            total = scaled.logsumexp(1, keepdim=True)
            if ids is None:
                scaled, ids = _likeliest(scaled, self.top_p, total)
            chances = (scaled - total).exp()
            chances = chances.where(chances.cumsum(1) - chances < self.top_p, 0.0)
        if self.min_p > 0:
            chances = chances.where(chances >= self.min_p * chances.amax(1, keepdim=True), 0.0)
        sums = chances.cumsum(1)
        total = sums[:, -1:]
        # Below the total even after rounding: then the first sum above it belongs to a word that has a chance.
        reached = torch.minimum(chance * total, total.nextafter(torch.zeros_like(total)))
        place = torch.searchsorted(sums, reached, right=True).clamp(max=sums.shape[1] - 1)
        return place if ids is None else ids.gather(1, place)


def _likeliest(scaled: Tensor, top_p: float, total: Tensor) -> tuple[Tensor, Tensor]:
    """At least the words that sum to `top_p`, best first, and their ids; equal ones: lower id first.

    Sorting a whole vocabulary takes longer than a step of a small decoder, and few words are mostly enough; whether
    they are is worth asking where looking is free. What lies beyond them changes nothing.
    """
    if scaled.shape[1] > 4 * _FEW and looking_is_free(scaled.device):
        few, ids = best(scaled, _FEW)
        if bool(((few - total).exp().sum(1) > top_p + 1e-9).all()):
            return few, ids
    values, order = scaled.sort(dim=1, descending=True, stable=True)
    return values, order


def _said_before(tokens: Tensor) -> Tensor:
    """(N, K, T) -> (N, K) bool: captions of which an earlier one of the same image is the same."""
    size = tokens.shape[1]
    same = torch.ones(size, size, dtype=torch.bool, device=tokens.device).tril(-1).expand(tokens.shape[0], -1, -1)
    for place in range(tokens.shape[2]):
        column = tokens[:, :, place]
        same = same & (column.unsqueeze(2) == column.unsqueeze(1))
    return same.any(2)
