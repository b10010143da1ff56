"""What the parts of a run minimise: words first, then, where the recipe says so, a score."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from ..captioner import Captioner
from ..data import Batches
from ..errors import ArgumentError
from ..metrics import CiderD
from ..search import parse_search
from .distillation import Distillation
from .frequencies import cached_frequencies
from .objectives import CrossEntropy, DoublyStochastic, ForcedObjective, Objective
from .prefixes import Prefixes
from .recipe import Recipe
from .rewards import MixedReward
from .schedule import InverseSigmoidRise, LinearRise
from .scheduled_sampling import ScheduledSampling
from .self_critical import SelfCritical
from .soft_targets import SoftTargets

__all__ = ["check_objective", "of_scores", "of_words"]


def check_objective(plan: Recipe, captioner: Captioner, *, carried: bool) -> None:
    """Refuse, before anything is computed, what this captioner can't learn by."""
    if plan.doubly_stochastic and not captioner.decoder.has_attention:
        raise ArgumentError(
            f"doubly_stochastic = {plan.doubly_stochastic:g} needs a decoder with attention and "
            f"{type(captioner.decoder).__name__} has none; set it to 0, or train attention-lstm.v1 (init none)"
        )
    if plan.objective == "self-critical" and not carried:
        raise ArgumentError(
            'objective = "self-critical" starts from a captioner that knows how to write; name one with init (--init '
            "FOLDER), or train both in one run: leave the objective at cross-entropy and set self_critical_epochs"
        )


def of_words(plan: Recipe, total: int, taught: SoftTargets | None = None) -> Objective:
    """Cross entropy, with what the recipe adds; `total` steps. taught: what the teachers say, for distillation."""
    words = _words(plan, taught)
    base: Any = DoublyStochastic(words, plan.doubly_stochastic) if plan.doubly_stochastic else words
    if plan.prefixes:
        return Prefixes(base)
    if plan.objective != "scheduled-sampling":
        return cast(Objective, base)
    if plan.sampling_rise == "linear":
        return ScheduledSampling(base, LinearRise(plan.sampling, total))
    return ScheduledSampling(base, InverseSigmoidRise(plan.sampling, max(1, total // 2)))


def of_scores(
    plan: Recipe, captioner: Captioner, train: Batches, photos: int, frequencies: Path, taught: SoftTargets | None
) -> SelfCritical:
    """Self-critical training on `photos` photos, weighing n-grams as all their captions do.

    Captions are drawn as long as the search may make them. taught: as for `of_words`, where words are learnt beside.
    """
    references = train.references(range(photos))
    cider = CiderD(cached_frequencies(frequencies, references, vocabulary=captioner.vocabulary))
    mixed = plan.self_critical_bleu or plan.self_critical_length
    return SelfCritical(
        MixedReward(cider, plan.self_critical_bleu, plan.self_critical_length) if mixed else cider,
        samples=plan.self_critical_samples,
        baseline=cast(Any, plan.self_critical_baseline),
        temperature=plan.self_critical_temperature,
        dropout=plan.self_critical_dropout,
        words=_words(plan, taught) if plan.self_critical_words else None,
        share=plan.self_critical_words,
        max_length=parse_search(plan.search).max_length,
    )


def _words(plan: Recipe, taught: SoftTargets | None) -> ForcedObjective:
    words: ForcedObjective = CrossEntropy(plan.label_smoothing)
    return words if taught is None else Distillation(words, taught, plan.distillation)
