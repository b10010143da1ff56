"""Scheduled sampling: now and then the model reads a word that it would have said itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from ..checks import number
from ..errors import ArgumentError
from ..protocols import Features
from ..rows import repeat_rows, rows_per_image
from ..search.noise import uniforms
from .drawing import bare, check_photos, encode, seed_of
from .objectives import Objective, Term, at_step

__all__ = ["ScheduledSampling"]


class ScheduledSampling:
    """Another objective, whose input words are at times the model's own instead of the caption's.

    Example:
        >>> from showtell.data import Batches, Record
        >>> from showtell.testing import tiny_captioner
        >>> from showtell.training import CrossEntropy, LinearRise
        >>> captioner = tiny_captioner()
        >>> records = [Record(f"{i}", None, ("a dog", "a cat"), "train", "made up") for i in range(2)]
        >>> batches = Batches(records, captioner.vocabulary, lambda positions: torch.rand(2, 3, 32, 32), trunk=False)
        >>> objective = ScheduledSampling(CrossEntropy(), LinearRise(most=0.25, steps=1000)).at(500, 0)
        >>> terms = objective(captioner, batches.batch(0))
        >>> terms["cross_entropy"].weight, float(terms["sampled"].sum)
        (12.0, 1.5)

    Word by word, without gradient, each input after the start token is with the step's probability a word drawn from
    what the model says next, given the inputs so far; then one forced pass of `base` reads the mixed inputs. Targets
    stay those of the caption. Both passes drop units where the model does, not the same ones. Chance is a function of
    (seed, step, the photo's position, the caption's slot). The note "sampled" is the probability.

    Source: Bengio et al. 2015, "Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks"
    (arXiv:1506.03099).

    Args:
        base: `CrossEntropy()`, or `DoublyStochastic(CrossEntropy())`.
        probability: step, from 0 -> 0..1: `LinearRise`, `InverseSigmoidRise` or your own.

    Raises:
        ArgumentError: no such function; when called: a probability out of range.
    """

    def __init__(self, base: Objective, probability: Callable[[int], float]) -> None:
        """Keep the settings."""
        if not callable(probability):
            raise ArgumentError(f"probability must be a function of the step, not {probability!r:.100}")
        self.base = base
        self.probability = probability
        self._seed = self._step = 0

    def at(self, step: int, seed: int) -> Self:
        """The same objective, drawing as that step of a trainer with that seed does."""
        other = copy.copy(self)
        other.base = at_step(self.base, step, seed)
        other._step, other._seed = step, seed
        return other

    def weights(self, batch: Any) -> dict[str, float]:
        """The base's."""
        weights = self.base.weights(batch)
        return {**weights, "sampled": next(iter(weights.values()))}

    def __call__(self, captioner: Any, batch: Any) -> dict[str, Term]:
        """Mix the inputs, then the base's terms of one forced pass."""
        chance = number("the probability of scheduled sampling", self.probability(self._step), 0.0, 1.0)
        if chance > 0:
            model = bare(captioner)
            features, forced = encode(model, batch)
            photos = check_photos(batch, features.pooled.shape[0])
            with torch.no_grad():
                batch = forced._replace(tokens=self._mixed(model, features, batch.tokens, photos, chance))
            torch.clear_autocast_cache()  # weights that were cast without gradient must not be used with one
        weight = self.weights(batch)["sampled"]
        note = Term(torch.tensor(chance * weight, dtype=torch.float64), weight, None)
        return {**self.base(captioner, batch), "sampled": note}

    def _mixed(self, model: Any, features: Features, tokens: Tensor, photos: tuple[int, ...], chance: float) -> Tensor:
        """Inputs (R, T): `tokens`, some of them replaced; the start token and padding stay."""
        rows, steps = tokens.shape
        each = rows_per_image(rows, len(photos))
        memory = model.decoder.prepare(features)
        state = repeat_rows(model.decoder.initial_state(memory, steps), each)
        words = model.vocabulary
        never = torch.tensor([words.pad_id, words.start_id, words.end_id, words.unk_id], device=tokens.device)
        seed = seed_of(self._seed, self._step, "scheduled sampling")
        # Two numbers a step: whether to draw, and what.
        chances = uniforms(seed, torch.tensor(photos, dtype=torch.int64), each, 2 * steps).view(rows, steps, 2)
        exact = torch.float32 if tokens.device.type == "mps" else torch.float64
        draws, whats = chances.to(tokens.device, exact).unbind(2)
        replaced = (draws < chance) & (tokens != words.pad_id) & (tokens != words.start_id)
        said = tokens[:, 0]
        mixed = [said]
        for place in range(1, steps):
            logits, state = model.decoder.step(said, state, memory)
            sums = logits.to(exact).index_fill(1, never, -torch.inf).softmax(1).cumsum(1)
            total = sums[:, -1:]
            reached = torch.minimum(whats[:, place : place + 1] * total, total.nextafter(torch.zeros_like(total)))
            drawn = torch.searchsorted(sums, reached, right=True).squeeze(1)
            said = drawn.where(replaced[:, place], tokens[:, place])
            mixed.append(said)
        return torch.stack(mixed, dim=1)
