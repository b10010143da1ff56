"""Self-critical training: captions are drawn, scored, and made likelier where they beat the photo's others."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import choice, flag, number, whole
from ..errors import ArgumentError, RunError
from ..generate import begin, generate
from ..metrics.diversity import BAD_ENDINGS
from ..protocols import Features, Forced
from ..search import Greedy, Sample
from ..vocabulary import Vocabulary
from .distillation import Distillation
from .drawing import bare, check_photos, encode, seed_of, without_dropout
from .objectives import CrossEntropy, ForcedObjective, Term, wide
from .rewards import Reward

__all__ = ["Draw", "SelfCritical"]

Draw = Callable[[Any, Features, Sequence[int]], Tensor]
"""(captioner, features of N photos, their positions) -> captions (N, K, T) int64; after an end token: padding."""


class _Drawn(NamedTuple):
    """R captions as teacher forcing takes them, (R, T), and as lists of ids, with the end token where there is one."""

    tokens: Tensor
    targets: Tensor
    real: Tensor
    words: list[list[int]]


class SelfCritical:
    """Policy gradient on a score: minus (reward - baseline) times the log-probability of each drawn caption.

    Example:
        >>> from showtell.data import Batches, Record
        >>> from showtell.metrics import CiderD, DocumentFrequencies
        >>> from showtell.testing import tiny_captioner
        >>> captioner = tiny_captioner()
        >>> records = [Record(f"{i}", None, ("a dog", "a cat"), "train", "made up") for i in range(2)]
        >>> batches = Batches(records, captioner.vocabulary, lambda positions: torch.rand(2, 3, 32, 32), trunk=False)
        >>> frequencies = DocumentFrequencies.of(batches.references(range(2)))
        >>> objective = SelfCritical(CiderD(frequencies), samples=3, max_length=6)
        >>> terms = objective(captioner, batches.with_references().batch(0))
        >>> terms["self_critical"].weight, terms["reward"].factor  # 2 photos, 3 captions each; a note
        (6.0, None)

    `samples` captions a photo are drawn without gradient, as `Sample` does, and then all are scored in one forced pass.
    The photo is encoded once where the encoder is frozen. The sum is divided by the number of drawn captions, of
    photos that have references. Chance is a function of (seed, step, the photo's position), so that neither the
    batches nor the number of processes matter. Drawing and scoring know the same words, never `<pad>`, `<start>` and
    `<unk>`; captions are drawn without dropout. The loss hovers around 0 and says little; what to look at are the
    notes: reward, words (without the end token), bad_endings (the share of captions that end in "a", "of", "and" ...),
    reference_words, and baseline where it is the greedy one.

    Sources: Rennie et al. 2017, "Self-critical Sequence Training" (arXiv:1612.00563); the mean of the others as
    baseline: Luo 2020, "A Better Variant of Self-Critical Sequence Training" (arXiv:2003.09971); with words beside:
    Paulus, Xiong, Socher 2017, "A Deep Reinforced Model for Abstractive Summarization" (arXiv:1705.04304), eq. 16.

    Args:
        reward: (captions, references) -> a number a caption: `CiderD(frequencies)`, `MixedReward(...)` or your own.
            Captions and references are lists of ids, each with the end token where the caption ends.
        samples: captions a photo, 1..100; at least 2 for the baseline "others".
        baseline: "others", the mean reward of the photo's other captions; "greedy", the reward of the caption that
            greedy search finds.
        temperature: 0.01..100, of the distribution that is drawn from and learnt: below 1 a sharper one. A model that
            learnt with label smoothing is flat: what it draws at 1 is mostly noise, of which short captions win.
        dropout: drop in the forced pass; captions are always drawn without.
        words: `CrossEntropy()` or `Distillation(...)`, learnt in the same pass: a mixed objective, by which what the
            captions taught isn't unlearnt.
        share: how much the words count, 0..1000; the score counts 1.
        max_length: the most tokens drawn, the end token included, 1..1000.
        draw: gives the captions instead, for tests.

    Raises:
        ArgumentError: an option makes no sense; when called: a batch without references (`Batches.with_references`).
        RunError: when called: a reward isn't finite.
    """

    def __init__(
        self,
        reward: Reward,
        *,
        samples: int = 5,
        baseline: Literal["others", "greedy"] = "others",
        temperature: float = 1.0,
        max_length: int = 20,
        dropout: bool = False,
        words: ForcedObjective | None = None,
        share: float = 1.0,
        draw: Draw | None = None,
    ) -> None:
        """Keep the settings."""
        if not callable(reward):
            raise ArgumentError(f"the reward must be a function such as CiderD(frequencies), not {reward!r:.100}")
        self.reward = reward
        self.samples = whole("samples", samples, 1, 100)
        self.baseline = choice("baseline", baseline, ("others", "greedy"))
        if self.baseline == "others" and self.samples < 2:
            raise ArgumentError('samples = 1 has no others to compare with; draw at least 2, or use baseline="greedy"')
        self.temperature = number("temperature", temperature, 0.01, 100.0)
        self.max_length = whole("max_length", max_length, 1, 1000)
        self.dropout = flag("dropout", dropout)
        if words is not None and not isinstance(words, CrossEntropy | Distillation):
            raise ArgumentError(f"words is CrossEntropy(...) or Distillation(...), not {words!r:.100}")
        self.words = words
        self.share = number("the weight of the words", share, 0.0, 1000.0)
        self.draw = draw
        self._seed = self._step = 0

    def at(self, step: int, seed: int) -> Self:
        """The same objective, drawing as that step of a trainer with that seed does."""
        other = copy.copy(self)
        other._step, other._seed = step, seed
        return other

    def weights(self, batch: Any) -> dict[str, float]:
        """The number of captions that will be drawn for photos that have references."""
        drawn = float(self.samples * sum(map(bool, _references(batch))))
        names = ("self_critical", "reward", "words", "bad_endings", "reference_words")
        found = dict.fromkeys((*names, "baseline") if self.baseline == "greedy" else names, drawn)
        return {**found, **(self.words.weights(batch) if self.words is not None else {})}

    def __call__(self, captioner: Any, batch: Any) -> dict[str, Term]:
        """Draw, score, and say by how much each caption is to become likelier."""
        model = bare(captioner)
        references = _references(batch)
        words: Vocabulary = model.vocabulary
        with torch.no_grad(), without_dropout(model):
            features, forced = encode(model, batch)
            images = features.pooled.shape[0]
            draw = self._sample if self.draw is None else self.draw
            tokens = draw(model, features, check_photos(batch, images))
            if tuple(tokens.shape[:2]) != (images, self.samples) or len(references) != images:
                raise ArgumentError(
                    f"{images} photos, {self.samples} samples each, need captions ({images}, {self.samples}, length) "
                    f"and {images} lists of references, not {tuple(tokens.shape)} and {len(references)}"
                )
            drawn = _forced(tokens, words)
            first = self._greedy(model, features) if self.baseline == "greedy" else []
        torch.clear_autocast_cache()  # weights that were cast without gradient must not be used with one
        rewards = self._rewards(drawn.words, references, self.samples)
        if self.baseline == "greedy":
            base = self._rewards(first, references, 1).expand(-1, self.samples)
        else:
            base = (rewards.sum(1, keepdim=True) - rewards) / (self.samples - 1)
        with nullcontext() if self.dropout else without_dropout(model):
            said, terms = self._said(captioner, forced, drawn, words.pad_id)
        logits = said / self.temperature
        never = torch.tensor([words.pad_id, words.start_id, words.unk_id], device=logits.device)
        logits = logits.index_fill(2, never, -torch.inf)
        losses = F.cross_entropy(logits.flatten(0, 1), drawn.targets.flatten(), reduction="none")
        each = (losses * drawn.real.flatten()).view(drawn.targets.shape).sum(1)
        advantages = (rewards - base).flatten().to(each.device, each.dtype)
        sums = {"reward": rewards.sum(), **_manner(drawn.words, references, words, self.samples)}
        if self.baseline == "greedy":
            sums["baseline"] = base.sum()
        weight = self.weights(batch)["self_critical"]
        notes = {name: Term(total, weight, None) for name, total in sums.items()}
        return {"self_critical": Term((advantages * each).sum(), weight), **notes, **terms}

    def _said(self, captioner: Any, batch: Any, drawn: _Drawn, pad: int) -> tuple[Tensor, dict[str, Term]]:
        """What the model says to the captions drawn, (R, T, V), and the terms of the words, of the same forced pass."""
        if self.words is None:
            return wide(captioner(batch.inputs, drawn.tokens, trunk=batch.trunk).logits), {}
        width, known = drawn.tokens.shape[1], batch.tokens.shape[1]
        longest = max(width, known)
        images = len(drawn.tokens) // self.samples
        both = [
            F.pad(tokens, (0, longest - tokens.shape[1]), value=pad).view(images, -1, longest)
            for tokens in (drawn.tokens, batch.tokens)
        ]
        said = captioner(batch.inputs, torch.cat(both, 1).flatten(0, 1), trunk=batch.trunk).logits
        said = said.view(images, -1, *said.shape[1:])
        terms = self.words.terms(Forced(said[:, self.samples :, :known].flatten(0, 1)), batch)
        return wide(said[:, : self.samples, :width].flatten(0, 1)), {
            name: term if term.factor is None else term._replace(factor=term.factor * self.share)
            for name, term in terms.items()
        }

    def _sample(self, model: Any, features: Features, photos: Sequence[int]) -> Tensor:
        words = model.vocabulary
        search = Sample(
            self.samples,
            temperature=self.temperature,
            seed=seed_of(self._seed, self._step, "self-critical"),
            max_length=self.max_length,
        )
        begun = begin(
            model.decoder,
            features,
            search,
            start=words.start_id,
            end=words.end_id,
            forbid=(words.pad_id, words.start_id, words.unk_id),
            masks=(),
            force=None,
            positions=photos,
        )
        tokens: Tensor = begun.search(begun.step, begun.state, **begun.options).tokens
        return tokens

    def _greedy(self, model: Any, features: Features) -> list[list[int]]:
        found = generate(model.decoder, features, Greedy(self.max_length))
        return _forced(found.tokens, model.vocabulary).words

    def _rewards(self, captions: list[list[int]], references: Any, size: int) -> Tensor:
        """(N, size) float64 on the CPU, 0 for photos without references."""
        found = torch.zeros(len(references), size, dtype=torch.float64)
        known = [i for i, each in enumerate(references) if each]
        if not known:
            return found
        some = [captions[i * size + k] for i in known for k in range(size)]
        values = torch.as_tensor(self.reward(some, [references[i] for i in known]), dtype=torch.float64)
        if tuple(values.shape) != (len(some),):
            raise ArgumentError(f"a reward of {len(some)} captions is {len(some)} numbers, not {tuple(values.shape)}")
        if not bool(values.isfinite().all()):
            bad = int((~values.isfinite()).nonzero()[0, 0])
            raise RunError(
                f"step {self._step + 1}: the reward of the caption {some[bad]!r:.200} is {float(values[bad])}; "
                "the weights are still those of the step before. Mend the reward: it must be finite for any caption"
            )
        found[known] = values.view(-1, size)
        return found


def _references(batch: Any) -> Any:
    if batch.references is None:
        raise ArgumentError(
            "self-critical training compares with all captions of a photo and the batch has none; "
            "train on batches.with_references()"
        )
    return batch.references


def _forced(tokens: Tensor, vocabulary: Vocabulary) -> _Drawn:
    """Captions (N, K, T) as teacher forcing takes them, no wider than the longest."""
    tokens = tokens.flatten(0, 1)
    ended = tokens == vocabulary.end_id
    real = ended.cumsum(1) - ended.long() == 0  # up to the first end token
    lengths = real.sum(1).tolist()
    width = max(lengths)
    targets, real = tokens[:, :width], real[:, :width]
    targets = targets.where(real, vocabulary.end_id)
    starts = targets.new_full((len(targets), 1), vocabulary.start_id)
    inputs = torch.cat([starts, targets[:, :-1].where(real[:, 1:], vocabulary.pad_id)], dim=1)
    words = [row[:length] for row, length in zip(targets.tolist(), lengths, strict=True)]
    return _Drawn(inputs, targets, real, words)


def _manner(captions: list[list[int]], references: Any, vocabulary: Vocabulary, size: int) -> dict[str, Tensor]:
    """Sums over the captions of photos with references: words, bad endings, and words of their mean reference."""
    endings = _bad_endings(vocabulary)
    sizes = set(map(len, endings))
    length = bad = expected = 0.0
    for i, known in enumerate(references):
        if not known:
            continue
        expected += size * (sum(map(len, known)) / len(known) - 1)
        for caption in captions[i * size : (i + 1) * size]:
            words = caption[:-1] if caption[-1] == vocabulary.end_id else caption
            length += len(words)
            bad += any(tuple(words[-n:]) in endings for n in sizes)
    sums = {"words": length, "bad_endings": bad, "reference_words": expected}
    return {name: torch.tensor(total, dtype=torch.float64) for name, total in sums.items()}


@lru_cache(maxsize=4)
def _bad_endings(vocabulary: Vocabulary) -> frozenset[tuple[int, ...]]:
    ids = map(tuple, vocabulary.encode_batch(sorted(BAD_ENDINGS)))
    return frozenset(each for each in ids if each and vocabulary.unk_id not in each)
